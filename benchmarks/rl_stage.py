"""A stage of a recipe in a folder of its own, on chosen GPUs, as the runner would start it, and what its files record.

``python -m benchmarks.rl_stage JOB`` is the stage's process: nanoalign.stage_process, with torch's peak memory written
every second (runs are ended from outside) and one more reward, `parity`, which gives random weights a signal.
"""

import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from nanoalign.artifacts import finite
from nanoalign.common.errors import ConfigError
from nanoalign.common.files import write_json
from nanoalign.common.intervals import mean
from nanoalign.launch import command
from nanoalign.recipe.load import load
from nanoalign.reward.base import Sample
from nanoalign.reward.table import REWARDS, RewardEntry

STOP = threading.Event()
"""Set by SIGTERM: runs in progress are ended and reported, no other is started."""

STACKS_S = 2.0
"""Seconds for which processes of a run that hangs may write their stacks."""
OVERDUE_S = 20.0
"""A run without a step for so long, and for three times its longest one, hangs."""

TOLD = ("loss", "grad_norm", "learning_rate", "epoch", "time", "step", "total_steps", "phase")
"""Metrics that say nothing of speed."""


def score_parity(sample: Sample) -> float:
    """Differs from completion to completion, whatever the model wrote."""
    return float(sum(map(ord, sample.answer.reasoning[-40:] + sample.answer.content[-40:])) % 2)


REWARDS["parity"] = RewardEntry("benchmarks.rl_stage:score_parity", "chance, for random weights", each=True)


@dataclass
class Run:
    """A stage's processes."""

    folder: Path
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)

    def rows(self) -> list[dict[str, Any]]:
        """The steps so far; a resumed stage logs those after its checkpoint again, and the last row counts."""
        return rows_of(self.folder)

    def tell_stacks(self) -> None:
        """Aborts all that the stage started, the youngest first, before its parents take it along: with
        PYTHONFAULTHANDLER each writes the stacks of its threads into its log, trainers, servers and engines alike."""
        self._strike(reversed(processes_of(self.folder)), signal.SIGABRT)
        time.sleep(STACKS_S)

    def hangs(self) -> bool:
        """Whether its next step is long overdue."""
        times = [row["time"] for row in self.rows()]
        usual = max((after - before for before, after in pairwise(times)), default=0.0)
        return not times or time.time() - times[-1] > max(OVERDUE_S, 3 * usual)

    def end(self) -> None:
        """Kills all that the stage started."""
        for _ in range(40):
            left = processes_of(self.folder)
            self._strike(left, signal.SIGKILL)
            if not left:
                break
            time.sleep(0.25)
        self.process.wait()

    def _strike(self, processes: Iterable[int], number: signal.Signals) -> None:
        """Group by group, once each: launchers' workers and servers are sessions of their own, and vLLM's engine, which
        outlives its server, overwrites its environment with its title."""
        struck = {os.getpgrp()}
        for process in processes:
            with suppress(ProcessLookupError):
                group = os.getpgid(process)
                if group not in struck:
                    struck.add(group)
                    os.killpg(group, number)


def stop_on_signal() -> None:
    signal.signal(signal.SIGTERM, lambda *_: STOP.set())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        row = json.loads(line)
        if "reward" in row:
            found[row["step"]] = row
    return [found[step] for step in sorted(found)]


def kill(process: int, number: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def processes_of(folder: Path, word: str = "") -> list[int]:
    """The living processes of the stage in ``folder``, each of which inherits its STAGE_FOLDER, oldest first; with
    ``word``, those with that word on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"STAGE_FOLDER={folder}".encode() in (path / "environ").read_bytes().split(b"\0")
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if marked and words != [b""] and (not word or word.encode() in words):
            found.append(int(path.name))
    return sorted(found)


def start(recipe: Mapping[str, Any], stage: str, folder: Path, data_root: Path | None, gpus: Sequence[int] = (),
          fresh: bool = True) -> Run:  # fmt: skip
    """Starts ``stage`` of a recipe, checked as a user's file is; ``from`` must be `base`."""
    if STOP.is_set():
        raise SystemExit(1)
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    loaded = load(str(folder / "recipe.yaml"), data_root=data_root)
    job = folder / "job.json"
    (folder / "result.json").unlink(missing_ok=True)
    write_json(job, {
        "stage": stage, "recipe": loaded.model_dump(mode="json", by_alias=True), "inputs": {"from": loaded.model},
        "seed": loaded.seed, "data_root": str(data_root.resolve()) if data_root else None, "runner": os.getpid(),
    })  # fmt: skip
    begun = command(loaded, stage, job)
    if loaded.launch.devices > 1 and "torch.distributed.run" not in begun.argv:
        raise ConfigError(f"{folder}: the stage would run on one process of {loaded.launch.devices}")
    argv = ["benchmarks.rl_stage" if word == "nanoalign.stage_process" else word for word in begun.argv]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort tells stacks, and leaves no core of many GB
    threads = {"OMP_NUM_THREADS": "8"} if gpus else {"VLLM_CPU_KVCACHE_SPACE": "1"}
    environment = {"PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false",
                   "PYTHONFAULTHANDLER": "1", **threads,
                   **os.environ, **begun.environment, "STAGE_FOLDER": str(folder)}  # fmt: skip
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    return Run(folder, process)


@dataclass
class GPUs:
    """Memory and use of GPUs, looked at twice a second while a run lasts; nothing without nvidia-smi."""

    gpus: Sequence[int]
    peak_gb: dict[int, float] = field(default_factory=dict)
    use: dict[int, list[float]] = field(default_factory=dict)
    """Share of the time since the last look in which a kernel ran, by nvidia-smi."""
    counting: bool = False
    """Whether `use` is noted: from the first step on."""

    def look(self) -> None:
        if not self.gpus or shutil.which("nvidia-smi") is None:
            return
        fields = "--query-gpu=index,memory.used,utilization.gpu"
        asked = subprocess.run(["nvidia-smi", fields, "--format=csv,noheader,nounits"], capture_output=True, text=True,
                               check=False)  # fmt: skip
        for line in asked.stdout.splitlines():
            gpu, used, share = (word.strip() for word in line.split(","))
            if not gpu.isdigit() or int(gpu) not in self.gpus:
                continue
            if used.isdigit():
                self.peak_gb[int(gpu)] = max(self.peak_gb.get(int(gpu), 0.0), int(used) / 1024)
            if self.counting and share.isdigit():  # "[N/A]" on some machines
                self.use.setdefault(int(gpu), []).append(int(share) / 100)

    def figures(self) -> dict[str, Any]:
        idle = {gpu: 1 - statistics.fmean(shares) for gpu, shares in self.use.items()}
        return {"peak_smi_gb": self.peak_gb, "idle_smi": idle}


def follow(run: Run, seconds: float, start_s: float, gpus: Sequence[int], steps: int | None = None,
           each: Callable[[Run], bool] = lambda run: False) -> dict[str, Any]:  # fmt: skip
    """Waits until the stage ends by itself, or ends it: ``seconds`` after its first step, after ``steps``, where no
    step came in ``start_s``, or where ``each``, asked twice a second, says so. Returns its :func:`summary`."""
    watched, first = GPUs(gpus), None
    ended = "by itself"
    try:
        while run.process.poll() is None:
            time.sleep(0.5)
            watched.look()
            now, rows = time.monotonic(), run.rows()
            if rows and first is None:
                first, watched.counting = now, True
            if STOP.is_set() or each(run):
                ended = "from outside" if STOP.is_set() else "by the part"
                break
            if (first and now > first + seconds) or (steps and len(rows) >= steps):
                ended = "after its time"
                break
            if not first and now > run.started + start_s:
                ended = f"no step in {start_s:g} s"
                break
    finally:
        code = run.process.poll()
        if hung := code is None and ended != "by the part" and run.hangs():
            run.tell_stacks()
        run.end()
    found = summary(run.folder) | watched.figures()
    found |= {"ended": ended, "exit": code, "hung": hung, "start_s": (first or time.monotonic()) - run.started}
    if code or hung or "steps" not in found:
        found["log"] = tail(run.folder / "log.txt")
        logs = [*run.folder.glob("exchange/*.log")]
        found |= {"server_log": "\n".join(map(tail, logs))} if logs else {}
    return found


def tail(log: Path) -> str:
    """Its end, without faulthandler's list of modules."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if not line.startswith("Extension modules:")]
    return "\n".join(lines)[-4000:]


def summary(folder: Path) -> dict[str, Any]:
    """What the files of a run record, even if it was stopped from outside. Medians leave out the first two steps, where
    there are more than four: engines warm up and kernels compile there."""
    rows = rows_of(folder)
    peaks = [json.loads(path.read_text()) for path in sorted(folder.glob("memory-*.json"))]
    if len(rows) < 2:
        return {"rows": len(rows), "peak_allocated_gb": [peak["allocated_gb"] for peak in peaks]}
    times, later = [row["time"] for row in rows], rows[2:] if len(rows) > 4 else rows[1:]
    tenth = max(1, len(rows) // 10)
    durations = [b - a for a, b in pairwise(times)][1 if len(rows) > 4 else 0 :]
    names = [name for name, value in rows[-1].items() if isinstance(value, int | float) and name not in TOLD]
    return {
        "steps": len(rows),
        "wall_s": times[-1] - times[0],
        "step_s": statistics.median(durations),
        "step_s_mean": statistics.fmean(durations),
        "peak_allocated_gb": [peak["allocated_gb"] for peak in peaks],
        "peak_reserved_gb": [peak["reserved_gb"] for peak in peaks],
        "reward_first": mean([row["reward"] for row in rows[:tenth]]).as_dict(),
        "reward_last": mean([row["reward"] for row in rows[-tenth:]]).as_dict(),
        "medians": {name: statistics.median(row[name] for row in later if name in row) for name in names},
        "largest": {name: max(row[name] for row in rows if name in row) for name in names},
        "curve": [[round(row["time"] - times[0], 2), round(row["reward"], 4)] for row in rows],
        "staleness": {name: [row[name] for row in rows if name in row] for name in names if "stale" in name},
    }


def watch_memory(folder: Path) -> None:
    """Writes torch's peaks of this process every second."""
    import torch

    path = folder / f"memory-{os.environ.get('RANK', '0')}.json"

    def watch() -> None:
        while True:
            allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            write_json(path, {"allocated_gb": allocated / 1e9, "reserved_gb": reserved / 1e9})
            time.sleep(1.0)

    if torch.cuda.is_available():
        threading.Thread(target=watch, daemon=True).start()


class Report:
    """Runs, figures and tables, written whenever a run has ended."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.runs, self.figures, self.tables = path, {}, {}, {}
        self.runs: dict[str, dict[str, Any]]
        self.figures: dict[str, float]
        self.tables: dict[str, Any]

    def note(self, name: str, run: dict[str, Any]) -> None:
        self.runs[name] = run
        self.write()
        memory = ("peak_allocated_gb", "peak_smi_gb")
        kept = ("steps", "step_s", *memory, "idle_smi", "start_s", "ended", "exit", "hung", "error")
        print(name, {key: run[key] for key in kept if key in run}, flush=True)
        for log in ("log", "server_log"):
            if log in run:
                print(run[log], flush=True)

    def status(self) -> int:
        """That of the script: 1 where a run came to no second step, so that a chain of calls ends there."""
        ended = [not run.get("exit") and not run.get("hung") and "error" not in run for run in self.runs.values()]
        came = [run.get("exit") == 0 or "steps" in run or "round_s" in run for run in self.runs.values()]
        return 0 if self.runs and all(ended + came) else 1

    def write(self) -> None:
        if self.path:
            told = {"command": " ".join(sys.argv), "figures": self.figures, "tables": self.tables, "runs": self.runs}
            write_json(self.path, finite(told))

    def table(self) -> None:
        self.write()
        for name, value in self.tables.items():
            print(f"{name:44} {value}")
        for name, run in self.runs.items():
            told = ("sync_s", "rollout_s", "reward_s", "train_s", "mismatch", "reward", "completions/mean_length")
            medians = run.get("medians", {})
            more = [key for key in medians if "idle" in key or "stale" in key or "busy" in key or "wait" in key]
            print(f"{name:24}", {key: round(medians[key], 4) for key in (*told, *more) if key in medians})
        for name, value in self.figures.items():
            print(f"{name:56} {value:.4g}")


if __name__ == "__main__":
    from benchmarks import rl_stage  # its entry in REWARDS names the module, not __main__
    from nanoalign.stage_process import main

    rl_stage.watch_memory(Path(sys.argv[1]).parent)
    if "ACCELERATE_USE_DEEPSPEED" in os.environ and "VLLM_CPU_KVCACHE_SPACE" in os.environ:
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU would compile it for minutes
    sys.exit(main())
