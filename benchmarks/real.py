"""recipes/smollm2-reasoner.yaml on several GPUs at once, as far as the time goes: what issue 17 asks of a real model.

    python -m benchmarks.real data FOLDER                    at home: the recipe's generated sources as files
    python -m benchmarks.real plan --gpus 0 1 2 3            who works when, by the estimates below
    python -m benchmarks.real run --gpus 0 1 2 3 --seconds 1380 --sources FOLDER --folder DIR --json FILE

A job is a stage of the recipe (or more) in a run of its own, begun on copies of the finished stages that it needs. The
most urgent job that can start takes the next free GPU; when one ends, the figures (benchmarks/real_figures.py) are
collected anew. A job that fails is tried once more; what rests on one that failed twice is left out.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.real_figures import collect, table
from benchmarks.real_recipe import NAME, derived, write_sources
from nanoalign.common.files import write_json
from nanoalign.recipe.load import load

NANOALIGN = [sys.executable, "-c", "from nanoalign.cli import main; main()"]
BUDGETS = "8,16,32,64"
"""Of the comparison of enforcements."""


@dataclass(frozen=True)
class Job:
    """One process on one GPU."""

    name: str
    until: Sequence[str]
    """Stages to be made."""
    seconds: int
    """What it takes on an H100, start included: for the plan, and to tell what hangs."""
    after: Sequence[str] = ()
    """Jobs whose stages it starts from."""
    sets: Sequence[str] = ()
    seed: int = 17
    curve_of: str = ""
    """In place of stages: the enforcements compared on this stage's model."""

    @property
    def vllm(self) -> bool:
        """It asks a vLLM."""
        return not set(self.until) & {"tools", "refine", "refine_0", "refine_1", "refine_5", "judge"}


def jobs() -> list[Job]:
    """In the order of their urgency: first what the most rests on."""
    return [
        Job("tools17", ["tools"], 300),
        Job("refine17", ["refine"], 80, ["tools17"]),
        Job("taught17", ["taught"], 150, ["refine17"]),
        Job("instruct17", ["instruct"], 260, ["refine17"]),
        Job("workplace17", ["workplace"], 480, ["refine17"]),
        Job("judge17", ["judge"], 75, ["refine17"]),
        Job("chat17", ["chat"], 220, ["instruct17", "judge17"]),
        Job("merged17", ["merged"], 180, ["workplace17", "chat17"]),
        Job("verdict17", ["verdict"], 220, ["merged17", "judge17"]),
        Job("tools18", ["tools"], 300, seed=18),
        Job("refine18", ["refine"], 80, ["tools18"], seed=18),
        Job("workplace18", ["workplace"], 480, ["refine18"], seed=18),
        Job("enforced_refine", [], 150, ["refine17"], curve_of="refine"),
        Job("refine_0", ["refine_0"], 80, ["tools17"]),
        Job("refine_5", ["refine_5"], 80, ["tools17"]),
        Job("refine_1", ["refine_1"], 80, ["tools17"]),
        Job("shares", ["shares"], 180, ["refine_0", "refine_1", "refine_5", "refine17"]),
        Job("plain", ["plain"], 230, ["refine17"]),
        Job("aware", ["aware"], 230, ["refine17"]),
        Job("effort", ["effort"], 160, ["plain", "aware"]),
        Job("taught18", ["taught"], 150, ["refine18"], seed=18),
        Job("tools19", ["tools"], 300, seed=19),
        Job("refine19", ["refine"], 80, ["tools19"], seed=19),
        Job("taught19", ["taught"], 150, ["refine19"], seed=19),
        Job("enforced_tools", [], 150, ["refine17"], curve_of="tools"),
        Job("bare17", ["workplace"], 460, ["refine17"], ["stages.workplace.nll_weight=0"]),
    ]


@dataclass
class Running:
    job: Job
    gpu: str
    process: "subprocess.Popen[bytes]"
    begun: float


@dataclass
class Schedule:
    """What has become of the jobs."""

    folder: Path
    tiny: bool
    vllm: Path | None = None
    """Where vLLM is, or is being unpacked: for jobs that need it alone, once ``vllm_there``."""
    vllm_there: Sequence[Path] = ()
    waiting: list[Job] = field(default_factory=jobs)
    running: list[Running] = field(default_factory=list)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name to status (done, failed, left out, stopped), seconds, GPU and, where it failed, the end of its log."""

    def ready(self) -> Job | None:
        """The most urgent job that can start now; those that never can are left out."""
        for job in list(self.waiting):
            states = [self.ended.get(name, {}).get("status") for name in job.after]
            if any(state in ("failed", "left out", "stopped") for state in states):
                self.waiting.remove(job)
                self.ended[job.name] = {"status": "left out"}
        vllm = all(path.exists() for path in self.vllm_there)
        for job in self.waiting:
            if (vllm or not job.vllm) and all(self.ended.get(name, {}).get("status") == "done" for name in job.after):
                return job
        return None

    def start(self, job: Job, gpu: str) -> None:
        self.waiting.remove(job)
        root = self.folder / job.name
        for name in job.after:
            copy_finished(self.folder / name / NAME, root / NAME)
        environment = os.environ | ({} if gpu == "cpu" else {"CUDA_VISIBLE_DEVICES": gpu})
        if job.vllm and self.vllm:
            environment["PYTHONPATH"] = f"{os.environ['PYTHONPATH']}:{self.vllm}"
        log = (self.folder / f"{job.name}.log").open("ab")
        with log:
            process = subprocess.Popen(
                command(job, self.folder, self.tiny), stdin=subprocess.DEVNULL, stderr=log, env=environment,
                stdout=(root.with_suffix(".out")).open("wb") if job.curve_of else log, start_new_session=True,
            )  # fmt: skip
        self.running.append(Running(job, gpu, process, time.monotonic()))

    def look(self) -> list[str]:
        """Takes note of jobs that have ended, and ends those that take far too long; the GPUs that are free now."""
        freed = []
        for each in list(self.running):
            took = time.monotonic() - each.begun
            code = each.process.poll()
            if code is None and took > (3600 if self.tiny else 240 + 2 * each.job.seconds):
                stop(each.process)
                code = -1
            if code is None:
                continue
            self.running.remove(each)
            freed.append(each.gpu)
            before = self.ended.get(each.job.name)
            record = {"status": "done" if code == 0 else "failed", "seconds": round(took), "gpu": each.gpu}
            if code:
                record["log"] = log_end(self.folder, each.job)
                if before is None and took < 120 and not self.tiny:
                    self.waiting.insert(0, each.job)
                    record["status"] = "again"
            self.ended[each.job.name] = record
            print(f"{time.strftime('%T')} {each.job.name}: {record['status']} after {took:.0f} s", flush=True)
        return freed

    def stop(self) -> None:
        for each in self.running:
            stop(each.process)
            self.ended[each.job.name] = {"status": "stopped", "seconds": round(time.monotonic() - each.begun)}
        self.running.clear()
        for job in self.waiting:
            self.ended.setdefault(job.name, {"status": "no time"})

    def state(self) -> dict[str, Any]:
        under_way = {each.job.name: {"status": "running", "gpu": each.gpu} for each in self.running}
        return self.ended | under_way


def command(job: Job, folder: Path, tiny: bool) -> list[str]:
    """What a job runs."""
    recipe, root = str(folder / "recipe.yaml"), str(folder / job.name)
    sets = [part for each in [f"seed={job.seed}", *job.sets] for part in ("--set", each)]
    device = ["--device", "cpu"] if tiny else []
    if not job.curve_of:
        stages = [part for stage in job.until for part in ("--until", stage)]
        return [*NANOALIGN, "run", recipe, "--root", root, *sets, *device, *stages]
    model = str(folder / job.name / NAME / job.curve_of / "model")
    size = ["--budgets", BUDGETS, "--max-tokens", "256", "--grace", "16", "--engine", "vllm", "--batch-size", "512"]
    if tiny:
        size = ["--budgets", "4,8", "--max-tokens", "24", "--grace", "4", "--engine", "hf"]
    how = ["--suite", "reasoning", "--enforcement", "rule,hard,none", "--json"]
    return [*NANOALIGN, "budget-curve", model, recipe, *how, *size, *device]


def copy_finished(source: Path, target: Path) -> None:
    """Hard links to another run's finished stages."""
    for record in sorted(source.glob("*/stage.json")):
        stage = record.parent
        if json.loads(record.read_text())["status"] == "finished" and not (target / stage.name).exists():
            shutil.copytree(stage, target / stage.name, copy_function=os.link)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """A run ends its stage's processes itself when it is told to."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def log_end(folder: Path, job: Job) -> str:
    """The ends of the logs of the job and of its last stage."""
    logs = [folder / f"{job.name}.log", *(folder / job.name / NAME / stage / "log.txt" for stage in job.until)]
    return "\n".join(each.read_text(errors="replace")[-2000:] for each in logs if each.is_file())


def run(options: argparse.Namespace) -> None:
    """Runs the jobs until all have ended or the time has."""
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    recipe = derived(options.sources, options.tiny, options.model, options.chat)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=200))
    load(str(folder / "recipe.yaml"))  # a mistake in it is known at once
    begun, schedule = time.monotonic(), Schedule(folder, options.tiny, options.vllm, options.vllm_there)
    if options.only:
        schedule.waiting = [job for job in schedule.waiting if job.name in options.only]
    free = list(options.gpus)
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def save() -> None:
        took = round(time.monotonic() - begun)
        about = {"command": " ".join(sys.argv[1:]), "gpus": options.gpus, "seconds": took, "versions": versions()}
        write_json(options.json, about | {"jobs": schedule.state()} | finite(collect(folder, jobs())))

    save()
    try:
        while (schedule.waiting or schedule.running) and time.monotonic() - begun < options.seconds:
            if freed := schedule.look():
                free += freed
                save()
            while free and (job := schedule.ready()) is not None:
                schedule.start(job, free.pop(0))
            time.sleep(0.5)
    except KeyboardInterrupt:
        print("told to stop", flush=True)
    finally:
        schedule.stop()
        save()
    print(table(json.loads(options.json.read_text())), flush=True)


def finite(value: Any) -> Any:
    """With None for what is not a number, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    from nanoalign.runner import versions as found

    return found()


def plan(gpus: Sequence[str]) -> Iterable[str]:
    """The schedule by the estimates, from the moment the jobs start."""
    waiting, free, running, done, now = jobs(), list(gpus), [], set[str](), 0
    while waiting or running:
        for job in [each for each in waiting if set(each.after) <= done]:
            if free:
                waiting.remove(job)
                running.append((now + job.seconds, free.pop(0), job))
                yield f"{_clock(now)} to {_clock(running[-1][0])}  GPU {running[-1][1]}  {job.name}"
        running.sort(key=lambda each: each[0])
        now, gpu, job = running.pop(0)
        free.append(gpu)
        done.add(job.name)


def _clock(seconds: int) -> str:
    return f"{seconds // 60:3d}:{seconds % 60:02d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data")
    data.add_argument("folder", type=Path)
    data.add_argument("--tiny", action="store_true")
    planned = commands.add_parser("plan")
    planned.add_argument("--gpus", nargs="+", default=["0", "1", "2", "3"])
    runs = commands.add_parser("run")
    runs.add_argument("--gpus", nargs="+", default=["0"], help="`cpu` with --tiny")
    runs.add_argument("--seconds", type=float, default=1380)
    runs.add_argument("--sources", type=Path, help="what `data` wrote; none: reasoning-gym is asked")
    runs.add_argument("--folder", type=Path, required=True)
    runs.add_argument("--json", type=Path, required=True)
    runs.add_argument("--vllm", type=Path, help="a folder for PYTHONPATH, of jobs that need vLLM")
    runs.add_argument("--vllm-there", type=Path, nargs="*", default=[], help="files that say that it is there")
    runs.add_argument("--only", nargs="+", help="these jobs")
    runs.add_argument(
        "--tiny", action="store_true", help="a rehearsal on a CPU: every job, a few steps and samples each"
    )
    runs.add_argument("--model", help="in place of the recipe's")
    runs.add_argument("--chat", help="in place of the recipe's")
    options = parser.parse_args()
    if options.command == "data":
        write_sources(options.folder, options.tiny)
    elif options.command == "plan":
        print("\n".join(plan(options.gpus)))
    else:
        run(options)


if __name__ == "__main__":
    main()
