"""GRPO with tool calls in WorkBench: ``python -m benchmarks.rl_cluster_workbench --gpus 1 2 --model FOLDER/model``.

The model is the one that ``rl_cluster_dpo --teach`` makes. One trainer and one server on two GPUs (``--ahead``), or
vLLM in the trainer's process on one. Success on all test tasks, greedily, is measured before the first step and every
``--every`` steps by the engine that trains, and the gain is task by task: no other engine starts, and what is there
when the time ends is a result. Training ends at the measurement after which there is no time for another one.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.agentic import gain
from benchmarks.rl_cluster import GROUP, Options, engine_of, grpo, layout, recipe_of
from benchmarks.rl_stage import Report, Run, follow, start, stop_on_signal
from nanoalign.common.intervals import mean, proportion
from nanoalign.common.stage import held_out_rewards

TEST_TASKS = 1000
"""More than there are: all are measured on."""


def stage_of(options: Options, engine: dict[str, Any], ahead: int) -> dict[str, Any]:
    tiny = options.tiny
    stage = grpo(
        options, engine, ahead, data=None, environment="miniature-workplace" if tiny else "workbench",
        reward={"environment": 1.0}, max_turns=4, held_out=8 if tiny else TEST_TASKS,
    )  # fmt: skip
    stage["rollouts"]["grace"] = options.tokens // 4
    stage["train"]["evaluate_every"], stage["thinking"] = options.every, {"on": float(tiny)}
    return stage


def outcome(run: Run) -> dict[str, Any]:
    """What the stage's files say by now: success of sampled episodes by step, and of the test tasks by measurement."""
    rows, measured = run.rows(), held_out_rewards(run.folder)
    found: dict[str, Any] = {
        "success_by_step": [round(row["success"], 4) for row in rows],
        "seconds_by_step": [round(row["time"] - rows[0]["time"], 1) for row in rows],
    }
    if rows:
        tenth = max(1, len(rows) // 10)
        ends = {"first": rows[:tenth], "last": rows[-tenth:]}
        found["sampled"] = {end: mean([row["success"] for row in part]).as_dict() for end, part in ends.items()}
        found["turns"] = [rows[0]["episodes/turns"], rows[-1]["episodes/turns"]]
        found["without_signal"] = mean([row["frac_reward_zero_std"] for row in rows]).as_dict()
    if measured:
        solved = {step: [reward >= 1 for reward in rewards] for step, rewards in measured.items()}
        found["held_out"] = {step: proportion(sum(each), len(each)).as_dict() for step, each in solved.items()}
        found["gain_points"] = {step: gain(solved[min(solved)], each) for step, each in solved.items() if step}
    return found


def train(options: Options, report: Report, place: str, until: float) -> None:
    """``until``: the monotonic time by which all is measured."""
    processes, servers = layout(place)
    ahead, gpus = options.ahead if servers else 0, options.gpus[: processes + servers]
    name = f"workbench/{place}/ahead{ahead}"
    recipe = recipe_of(options, stage_of(options, engine_of(options, processes, servers), ahead), processes)
    run = start(recipe, "run", options.folder / name.replace("/", "-"), options.data_root, gpus)
    noted: dict[int, float] = {}

    def look(run: Run) -> bool:
        """Whether another measurement would come too late."""
        now = time.monotonic()
        new = set(held_out_rewards(run.folder)) - set(noted)
        noted.update(dict.fromkeys(new, now))
        if new:
            report.runs[name] = {**outcome(run), "at_s": now - run.started}
            report.write()
        times = sorted(noted.values())
        return len(times) > 1 and bool(new) and now + times[-1] - times[-2] > until

    found = follow(run, 1e9, min(options.start, until - time.monotonic()), gpus, options.steps, each=look)
    report.note(name, found | outcome(run))
    last = max(noted, default=0)
    if last:
        gained = report.runs[name]["gain_points"][last]
        report.figures |= {f"{name}.gain_points{end}": gained[key] for end, key in
                           (("", "value"), ("_low", "low"), ("_high", "high"))}  # fmt: skip
        report.figures[f"{name}.measured_after_steps"] = last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="*", default=[], help="their numbers on this machine; none: a CPU")
    parser.add_argument(
        "--layout", help="1+1: a trainer and a server; 1+0: vLLM in the trainer; by the GPUs if left out"
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("NANOALIGN_DATA"))
    parser.add_argument("--ahead", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256, help=f"episodes per step, {GROUP} of each task")
    parser.add_argument("--pack-tokens", type=int, default=32768)
    parser.add_argument("--tokens", type=int, default=128, help="longest turn")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=5, help="steps between measurements")
    parser.add_argument("--start", type=float, default=240.0, help="seconds to the first step")
    parser.add_argument("--seconds", type=float, default=400.0, help="of the whole script")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-rl-cluster"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    stop_on_signal()
    report = Report(options.json)
    place = options.layout or ("1+1" if len(options.gpus) > 1 else "1+0")
    try:
        train(options, report, place, until)
    finally:
        for run in report.runs.values():
            for step, found in run.get("held_out", {}).items():
                gained = run["gain_points"].get(step)
                told = f"gain {gained['value']:+.1f} ({gained['low']:+.1f} to {gained['high']:+.1f})" if gained else ""
                report.tables[f"test tasks solved after {step} steps"] = (
                    f"{found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%}, n {found['n']}) {told}"
                )
            report.tables["sampled success by step"] = run.get("success_by_step")
        report.table()
    sys.exit(report.status())


if __name__ == "__main__":
    main()
