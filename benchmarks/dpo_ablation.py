"""Which settings of iterative DPO raise held-out success in the miniature's workplace.

    nanoalign run recipes/miniature.yaml --until refine
    python benchmarks/dpo_ablation.py WAY --seed 17 --model runs/miniature/refine/model --folder runs/dpo [--json FILE]

One run of the recipe's `workplace` stage from ``--model``, with the changes that WAYS has for the way. The stage draws
its tasks and episodes from the seed; the model is the same for every seed. Ways that sample alike in the first round
take its episodes, and the success before it, from ``FOLDER/shipped-SEED`` where that is.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

from nanoalign.common.files import write_json
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.graph import stage_seed
from nanoalign.recipe.load import load
from nanoalign.rl import dpo

LONGER = ["train.learning_rate=2e-4", "train.epochs=4"]
WAYS: dict[str, list[str]] = {
    "shipped": [],
    "longer": LONGER,
    "nll": [*LONGER, "nll_weight=0.2"],
    "revisit": [*LONGER, "revisit=0.5"],
    "partial": [*LONGER, "partial_credit=true"],
    "more": [*LONGER, "min_pairs=96", "max_batches=3"],
    "successes": [
        "train.learning_rate=1e-4",
        "train.epochs=2",
        "min_pairs=96",
        "max_batches=3",
        "held_out_samples=4",
        "nll_weight=1.0",
        "nll_on=successes",
        "nll_turns=2",
    ],
    "no_successes": [
        "train.learning_rate=1e-4",
        "train.epochs=2",
        "min_pairs=96",
        "max_batches=3",
        "held_out_samples=4",
    ],
}
PAIRS_ALIKE = ("longer", "nll", "revisit")
"""Ways whose first round has the pairs of `shipped`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=128, help="tasks of which success is measured")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sets = [f"held_out_tasks={options.held_out}", *WAYS[options.way]]
    recipe = load("miniature", [f"seed={options.seed}", *(f"stages.workplace.{each}" for each in sets)])
    folder, shipped = options.folder / f"{options.way}-{options.seed}", options.folder / f"shipped-{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    shared = ["round-0/round.json"]
    if options.way in PAIRS_ALIKE:
        shared += ["round-1/episodes.jsonl", "round-1/pairs.jsonl"]
    for name in shared:
        if options.way != "shipped" and (shipped / name).exists() and not (folder / name).exists():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(shipped / name, folder / name)
    context = StageContext(
        "workplace", folder, {"from": options.model}, recipe.chat, stage_seed(recipe, "workplace"), None, "cpu",
        log=StageLog(folder),
    )  # fmt: skip
    begun = time.perf_counter()
    figures = dpo.run(recipe.stages["workplace"], recipe.data, context)
    figures["wall_s"] = time.perf_counter() - begun
    print(
        json.dumps({name: value for name, value in figures.items() if name.startswith(("success", "sampled", "pairs"))})
    )
    if options.json:
        kept = json.loads(options.json.read_text()) if options.json.exists() else {}
        write_json(options.json, kept | {f"{options.way}-{options.seed}": {"changes": sets, "figures": figures}})


if __name__ == "__main__":
    main()
