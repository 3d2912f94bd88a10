"""Where a run stands: ``nanoalign status``. Reads what the stages leave behind; never imports torch."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.printable import nearest
from nanoalign.graph import order
from nanoalign.progress import Pace, clock, figures_text, numbers
from nanoalign.report.read import StageData, read_run
from nanoalign.resume import next_steps, reached, resume_point

RECENT = 20
"""Rows from whose pace the time left is reckoned."""
SHOWN = 4
"""Figures of a finished stage in its line."""


@dataclass(frozen=True)
class StageStatus:
    """One stage. What does not apply is None or empty."""

    name: str
    kind: str
    state: str
    """finished, running, failed, stopped, killed, or to come."""
    step: int | None = None
    total_steps: int | None = None
    eta_s: float | None = None
    """Seconds left of a running stage (of a DPO stage: of its round)."""
    wall_s: float | None = None
    """Seconds over all attempts that ended."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """A finished stage's; else those of the last row it logged."""
    shown: str = ""
    """The figures in words."""
    error: str | None = None
    log: str | None = None
    on: tuple[tuple[str, str], ...] = ()
    """Of a stage that ended unfinished: what can be done, and the command."""


@dataclass(frozen=True)
class RunStatus:
    """A whole run."""

    name: str
    folder: str
    state: str
    """finished, running, failed, stopped or killed (as the stage that was), or begun: some stages are to come."""
    stages: tuple[StageStatus, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def find_run(run: str, root: Path) -> Path:
    """The folder of a run, given as a folder or by its name under ``root``. Raises ConfigError where there is none."""
    for folder in (Path(run), root / run):
        if (folder / "recipe.yaml").is_file():
            return folder
    runs = [path.parent.name for path in root.glob("*/recipe.yaml")]
    raise ConfigError(f"{run}: neither a run's folder nor a run in {root}{nearest(run, runs)}")


def status_of(folder: Path) -> RunStatus:
    """Raises ConfigError where the folder holds no run, or one of another version."""
    run = read_run(folder)
    stages = []
    for name in order(run.recipe):
        begun, kind = run.begun.get(name), run.recipe.stages[name].kind
        if begun is None:
            stages.append(StageStatus(name, kind, "to come"))
            continue
        status = _begun(name, begun, folder)
        if status.state in ("failed", "stopped", "killed"):
            status = StageStatus(**{**status.__dict__, "on": tuple(next_steps(run.recipe, name, folder))})
        stages.append(status)
    states = {stage.state for stage in stages}
    named = ("running", "failed", "killed", "stopped")
    state = next((state for state in named if state in states), "begun" if "to come" in states else "finished")
    return RunStatus(run.recipe.name, str(folder), state, tuple(stages))


def _begun(name: str, data: StageData, folder: Path) -> StageStatus:
    record, last = data.record, data.metrics[-1] if data.metrics else {}
    plain = {key: each.get("value") if isinstance(each, Mapping) else each for key, each in record.figures.items()}
    figures = {key: value for key, value in plain.items() if isinstance(value, int | float)}
    eta = None
    if data.state == "running":
        pace = Pace()
        for row in data.metrics[-RECENT:]:
            eta = pace.eta(row)
    if data.state == "finished":
        shown = "  ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in list(figures.items())[:SHOWN])
    else:
        figures, shown = dict(numbers(last)), figures_text(last, eta) if last else ""
    return StageStatus(
        name,
        record.kind,
        data.state,
        last.get("step"),
        last.get("total_steps"),
        eta,
        record.wall_s or None,
        figures,
        shown,
        record.error,
        str(folder / name / "log.txt"),
    )


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def render(status: RunStatus) -> str:
    """For a terminal."""
    return "\n".join(_lines(status))


def _lines(status: RunStatus) -> Iterator[str]:
    done = sum(stage.state == "finished" for stage in status.stages)
    yield f"{status.name} ({status.folder}): {status.state}, {done} of {len(status.stages)} stages finished"
    width = max(len(stage.name) for stage in status.stages)
    kinds = max(len(stage.kind) for stage in status.stages)
    for stage in status.stages:
        yield f"  {stage.name:<{width}}  {stage.kind:<{kinds}}  {_state(stage)}".rstrip()
    for stage in status.stages:
        if stage.on:
            place = Path(status.folder) / stage.name
            yield ""
            yield f"{stage.name} {stage.state}: {stage.error or 'no error was recorded'}"
            yield f"  it reached: {reached(place)}; it resumes from {resume_point(place)}; its log: {stage.log}"
            for what, how in stage.on:
                yield f"  {what}:"
                yield f"    {how}"


def _state(stage: StageStatus) -> str:
    took = f" in {clock(stage.wall_s)}" if stage.state == "finished" and stage.wall_s is not None else ""
    steps = ""
    if stage.state != "finished" and stage.step is not None:
        steps = f"  step {stage.step}" + (f"/{stage.total_steps}" if stage.total_steps else "")
    return f"{stage.state}{took}{steps}  {stage.shown}"
