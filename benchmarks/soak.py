"""The miniature recipe under many seeds and other matrix kernels: does every run end, and do the aims hold?

    python -m benchmarks.soak rl --base runs/miniature/refine/model --seeds 50 --jobs 2 --folder soak
    python -m benchmarks.soak hot --base runs/miniature/refine/model --seeds 50 --jobs 2 --folder soak
    python -m benchmarks.soak all --seeds 5 --jobs 1 --folder soak
    python -m benchmarks.soak table --folder soak --json docs/results/soak.json

``rl`` runs the four reinforcement stages on one SFT checkpoint; ``hot`` does so in few steps at a temperature that
makes most completions nonsense, each seed on one of the kernels in turn; ``all`` runs the recipe whole. Another seed
samples other completions, and so does another kernel, which rounds otherwise: what one machine never samples another
one does. A finished run is not run again, a stopped one resumes, so that the soak can be stopped at any moment.
``table`` reads what is there.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nanoalign.common.files import write_json
from nanoalign.recipe.source import read_yaml
from nanoalign.report.page import HEADLINES

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes/miniature.yaml"
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "MKL_CBWR": "AVX2", "OPENBLAS_CORETYPE": "Haswell"}  # fmt: skip
KERNELS: dict[str, dict[str, str]] = {
    "native-2": {"OMP_NUM_THREADS": "2"},
    "native-1": {"OMP_NUM_THREADS": "1"},
    "avx2-2": {"OMP_NUM_THREADS": "2", **AVX2},
    "avx2-1": {"OMP_NUM_THREADS": "1", **AVX2},
}
"""Instruction sets (the processor's own, or no more than AVX2) and threads."""
RL_STAGES = ("workplace", "instruct", "preference", "chat")


def reinforcement(base: Path, seed: int) -> dict[str, Any]:
    """The recipe's reinforcement stages, on ``base`` in place of its third SFT stage."""
    recipe: Any = read_yaml(RECIPE)[0].data
    stages = {name: recipe["stages"][name] for name in RL_STAGES}
    for stage in stages.values():
        stage["from"] = "base" if stage["from"] == "refine" else stage["from"]
    return {
        **{key: recipe[key] for key in ("chat", "device", "data")},
        "name": "run", "seed": seed, "model": str(base.resolve()), "stages": stages,
    }  # fmt: skip


def hot(recipe: dict[str, Any]) -> dict[str, Any]:
    """The same stages in few steps, at a temperature of 2."""
    for stage in recipe["stages"].values():
        if "rollouts" in stage:
            stage["rollouts"]["temperature"] = 2.0
        stage |= {"rounds": 1, "tasks_per_round": 24, "held_out_tasks": 12} if stage["kind"] == "dpo" else {}
        stage["train"] |= {"steps": 3} if stage["kind"] == "grpo" else {}
    recipe["data"]["preferences"]["sources"] = {"miniature:preference": 200}
    return recipe


def run(folder: Path, recipe: Path, settings: list[str], kernel: str) -> dict[str, Any]:
    """One complete run; the end of its output if it failed."""
    outcome, begun = folder / "outcome.json", time.monotonic()
    if not outcome.exists():
        start = [sys.executable, "-c", "from nanoalign.cli import main; main()", "run", str(recipe)]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, **KERNELS[kernel], "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(
            [*start, "--root", str(folder), *settings],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        )  # fmt: skip
        write_json(
            outcome,
            {
                "code": done.returncode,
                "said": done.stdout[-3000:],
                "wall_s": time.monotonic() - begun,
                "kernel": kernel,
            },
        )
    return json.loads(outcome.read_text(encoding="utf-8"))


def jobs(options: argparse.Namespace) -> Iterator[tuple[Path, Path, list[str], str]]:
    """Folder, recipe, settings and kernel of each run."""
    for seed in range(options.first, options.first + options.seeds):
        turn = options.kernels[seed % len(options.kernels)]
        for kernel in [turn] if options.what == "hot" else options.kernels:
            folder = options.folder.resolve() / options.what / f"{kernel}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            if options.what == "all":
                yield folder, RECIPE, ["--set", f"seed={seed}", "--set", "name=run"], kernel
            else:
                recipe = folder / "recipe.yaml"
                stages = reinforcement(options.base, seed)
                write_json(recipe, hot(stages) if options.what == "hot" else stages)  # JSON is YAML
                yield folder, recipe, [], kernel


def found(folder: Path, what: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, outcome and figures of the runs that ended in some way."""
    for outcome in sorted((folder / what).glob("*/outcome.json")):
        report = outcome.parent / "run/report.json"
        figures = json.loads(report.read_text(encoding="utf-8"))["figures"] if report.exists() else {}
        yield outcome.parent.name, json.loads(outcome.read_text(encoding="utf-8")), figures


def counted(figures: Mapping[str, Any]) -> Counter[str]:
    """Completions by what was wrong with them, and ``of`` how many there were, over a run's stages."""
    counts: Counter[str] = Counter()
    for name, value in figures.items():
        stage, _, rest = name.partition(".answers.")
        if stage and rest:
            counts[rest.removeprefix("reasons.")] += int(value)
    return counts


def table(folder: Path) -> dict[str, Any]:
    """The flat figures of all runs in ``folder``; a table goes to the screen."""
    result: dict[str, Any] = {}
    for what, prefix in (("rl", "soak"), ("hot", "soak.hot"), ("all", "soak.whole")):
        runs = list(found(folder, what))
        if not runs:
            continue
        ended = [name for name, outcome, _ in runs if outcome["code"] == 0]
        result |= {f"{prefix}.runs": len(runs), f"{prefix}.ended": len(ended)}
        print(f"{what}: {len(ended)} of {len(runs)} runs came to their end")
        counts = sum((counted(figures) for _, _, figures in runs), Counter[str]())
        for reason, count in counts.most_common():
            result[f"{prefix}.answers.{reason}"] = count
            print(f"  {count:>9,}  {reason}")
        for name, outcome, _ in runs:
            if outcome["code"]:
                print(f"  {name}: status {outcome['code']}\n{outcome['said'][-600:]}")
    for line in HEADLINES:
        values = [figures[line.figure] for _, _, figures in found(folder, "all") if line.figure in figures]
        if values:
            met = sum(line.met(value) for value in values)
            spread = {"min": min(values), "max": max(values), "met": met}
            result |= {f"soak.whole.{line.figure}.{part}": value for part, value in spread.items()}
            each = " ".join(f"{line.scale * value:.{line.digits}f}" for value in values)
            print(f"  {line.name} (aim {line.aim or 'none'}): met {met} of {len(values)}: {each}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rl", "hot", "all", "table"))
    parser.add_argument("--folder", type=Path, default=Path("soak"))
    parser.add_argument("--base", type=Path, help="rl, hot: the SFT checkpoint")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=["native-1", "avx2-2"])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--json", type=Path, help="table: where the figures go")
    options = parser.parse_args()
    if options.what == "table":
        figures = table(options.folder)
        if options.json:
            machine = {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()}
            write_json(options.json, {"command": " ".join(sys.argv), "machine": machine, "figures": figures})
        return
    with ThreadPoolExecutor(options.jobs) as threads:
        for job, outcome in zip(jobs(options), threads.map(lambda job: run(*job), list(jobs(options))), strict=True):
            print(f"{job[0].name}: status {outcome['code']} in {outcome['wall_s']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
