"""GRPO with tool calls beside iterative DPO, in the miniature's workplace, from one model and in equal time.

    python benchmarks/agentic.py MODEL --steps 24 --json docs/results/agentic.json

MODEL is a finished `refine` stage of recipes/miniature.yaml (runs/miniature/refine/model), which that recipe's DPO starts
from. GRPO takes so many steps; DPO, with the recipe's settings, as many rounds as it takes to have used as much processor
time (the benchmark is one thread, and a shared machine's wall time is that of its other users too; both are recorded).
Neither branch measures held-out success in that time. After it, every model plays the same held-out tasks once, greedily.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nanoalign.common.files import write_json
from nanoalign.common.intervals import mean, proportion
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.models.config import Training
from nanoalign.rl.config import DPOStage, GRPOStage
from nanoalign.rollouts.config import Rollouts, Thinking

ENVIRONMENT, CHAT, MAX_TURNS = "miniature-workplace", "nemotron-nano-v2", 6
MOST_ROUNDS = 30


def grpo_stage(options: argparse.Namespace) -> GRPOStage:
    train = Training(
        learning_rate=options.learning_rate, schedule="constant", warmup_ratio=0.0, batch_size=options.batch,
        steps=options.steps, micro_batch_size=options.micro, dtype="float32", checkpoint_every=10_000,
    )  # fmt: skip
    return GRPOStage.model_validate(
        {
            "kind": "grpo", "from": "base", "environment": ENVIRONMENT, "max_turns": MAX_TURNS, "train": train,
            "reward": {"environment": 1.0, "format": 0.1}, "group_size": options.group,
            "rollouts": Rollouts(max_tokens=64, grace=8, temperature=0.8, batch_size=96),
            "thinking": Thinking(),
        }
    )  # fmt: skip


def dpo_stage(rounds: int) -> DPOStage:
    """The stage `workplace` of recipes/miniature.yaml, with one held-out task: what is held out is measured here."""
    return DPOStage.model_validate(
        {
            "kind": "dpo", "from": "base", "environment": ENVIRONMENT, "rounds": rounds, "tasks_per_round": 48,
            "samples_per_task": 4, "held_out_tasks": 1, "max_turns": MAX_TURNS,
            "rollouts": Rollouts(max_tokens=64, grace=8, temperature=0.8, batch_size=96),
            "train": Training(learning_rate=5e-5, batch_size=16, epochs=1, dtype="float32", checkpoint_every=25),
        }
    )  # fmt: skip


def held_out(model: Path, count: int, seed: int) -> list[bool]:
    """Success on each of the first ``count`` test tasks of the DPO stage's own order, greedily, thinking."""
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.loading import load_model, load_tokenizer
    from nanoalign.rl.collect import row_schedule
    from nanoalign.rl.dpo import HELD_OUT
    from nanoalign.rollouts import open_engine
    from nanoalign.rollouts.base import Mode, Sampling
    from nanoalign.rollouts.environments import environment
    from nanoalign.rollouts.episodes import play
    from nanoalign.rollouts.seeds import derive_seed

    chat, tokenizer, played = chat_format(CHAT), load_tokenizer(model), environment(ENVIRONMENT, None)
    test = list(played.tasks("test"))
    tasks = [test[row] for row in row_schedule(len(test), count, derive_seed(seed, HELD_OUT))]
    engine = open_engine("hf", load_model(model), tokenizer, chat, batch_size=128)
    settings = Mode(True), Sampling(max_tokens=64, temperature=0.0, grace=8)
    records = play(engine, played, tasks, 1, lambda *_: settings, chat, tokenizer, MAX_TURNS)
    return [record.success for record in records]


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of processor and of wall time."""
    processor, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - processor, time.perf_counter() - wall


def train(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """The models of both branches, and what they took."""
    from nanoalign.rl import dpo, grpo

    def context(name: str) -> StageContext:
        place = folder / name
        return StageContext(name, place, {"from": options.model}, CHAT, options.seed, None, "cpu", log=StageLog(place))

    stage, told = grpo_stage(options), {}
    processor_s, wall_s = timed(lambda: told.update(grpo.run(stage, {}, context("grpo"))))
    models = {"grpo": folder / "grpo/model"}
    figures = {"grpo.processor_s": processor_s, "grpo.wall_s": wall_s, "grpo.steps": options.steps,
               "grpo.episodes": options.steps * options.batch,
               "grpo.sampled_first": told["success"]["first"]["value"],
               "grpo.sampled_last": told["success"]["last"]["value"]}  # fmt: skip
    spent = wall = 0.0
    for rounds in range(1, MOST_ROUNDS + 1):
        more, more_wall = timed(lambda rounds=rounds: dpo.run(dpo_stage(rounds), {}, context("dpo")))
        spent, wall = spent + more, wall + more_wall
        models[f"dpo_round_{rounds}"] = folder / f"dpo/round-{rounds}/model"
        figures |= {f"dpo.round_{rounds}.processor_s": spent, "dpo.processor_s": spent, "dpo.wall_s": wall,
                    "dpo.rounds": rounds, "dpo.episodes": 192 * rounds}  # fmt: skip
        if spent >= processor_s and rounds >= 3:
            break
    return models, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--micro", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--folder", type=Path, help="keep the models here")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        models, figures = train(options, options.folder or Path(temporary))
        before = held_out(options.model, options.held_out, options.seed)
        estimates = {"before": proportion(sum(before), len(before)).as_dict()}
        for name, model in models.items():
            after = held_out(model, options.held_out, options.seed)
            gain = mean([100.0 * (late - early) for early, late in zip(before, after, strict=True)])
            estimates |= {name: proportion(sum(after), len(after)).as_dict(), f"{name}.gain_points": gain.as_dict()}
            print(name, estimates[name], estimates[f"{name}.gain_points"], flush=True)
    last = f"dpo_round_{figures['dpo.rounds']}"
    for ours, name in (("grpo", "success_gain_points"), (last, "dpo_success_gain_points")):
        gained = estimates[f"{ours}.gain_points"]
        figures |= {f"agentic.{name}": gained["value"], f"agentic.{name}_low": gained["low"]}
    for name, value in figures.items():
        print(f"{name:36} {value:12,.3f}")
    if options.json:
        machine = {
            "cpus": os.cpu_count(), "load_before": load, "load_after": os.getloadavg()[0], "niced": os.nice(0) > 0,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "trl", "accelerate")},
        }  # fmt: skip
        said = ["python", *sys.argv]
        record = {"command": " ".join(said), "machine": machine, "seed": options.seed, "figures": figures}
        write_json(options.json, record | {"estimates": estimates})


if __name__ == "__main__":
    main()
