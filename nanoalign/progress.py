"""How a run shows its progress: live bars on a terminal, plain lines elsewhere; TensorBoard events with both."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from nanoalign.common.printable import printable

PLAIN_EVERY_S = 10.0
"""Seconds between two plain lines of one stage."""


class Display(Protocol):
    """What the runner reports to."""

    def start(self, stage: str, kind: str, index: int, stages: int, reason: str) -> None: ...

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""
        ...

    def note(self, text: str) -> None:
        """A permanent line."""
        ...

    def close(self) -> None: ...


def display(console: Console) -> Display:
    """Live bars where ``console`` is a terminal, plain lines elsewhere."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


class Pace:
    """Time left, from the pace since counting began (a resumed stage begins in the middle, a new round at 0 again)."""

    def __init__(self) -> None:
        self._begun: tuple[float, int, object] | None = None
        self._last = 0

    def eta(self, row: Mapping[str, Any]) -> float | None:
        """Seconds left after this row; None where nothing is known yet."""
        step, total, now = row["step"], row.get("total_steps"), row["time"]
        if self._begun is None or step < self._last or total != self._begun[2]:
            self._begun = (now, step, total)
        self._last = step
        seconds, steps = now - self._begun[0], step - self._begun[1]
        return max(0.0, (total - step) * seconds / steps) if total is not None and steps > 0 and seconds > 0 else None


def figures_text(row: Mapping[str, Any], eta: float | None) -> str:
    """``round 2  loss 0.412  reward 0.75  4,480 tok/s  ETA 1:20``, as far as the row has them."""
    parts = [str(row["phase"])] if row.get("phase") else []
    for name in (
        "loss", "held_out_loss", "held_out_kl", "reward", "held_out_reward", "success", "accuracy", "score"
    ):  # fmt: skip
        if isinstance(row.get(name), int | float):
            parts.append(f"{name.replace('_', ' ')} {row[name]:.3f}")
    if "train_s" in row:
        parts_s = [
            f"{name} {row[f'{name}_s']:.1f}" for name in ("sync", "rollout", "reward", "train") if f"{name}_s" in row
        ]
        parts.append(f"{' + '.join(parts_s)} s")
    if "engine_idle_share" in row:
        parts.append(f"engine idle {row['engine_idle_share']:.0%}")
    if row.get("tokens_per_s"):
        parts.append(f"{row['tokens_per_s']:,.0f} tok/s")
    if eta is not None:
        parts.append(f"ETA {clock(eta)}")
    return printable("  ".join(parts))


def clock(seconds: float) -> str:
    """1:05 or 2:01:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class PlainDisplay:
    """A line when a stage starts, one every ten seconds, one at its end."""

    def __init__(self, console: Console) -> None:
        self._console, self._said = console, 0.0

    def start(self, stage: str, kind: str, index: int, stages: int, reason: str) -> None:
        self._stage, self._pace = stage, Pace()
        self.note(f"[{index}/{stages}] {stage} ({kind}): {reason}")

    def row(self, row: Mapping[str, Any]) -> None:
        eta = self._pace.eta(row)
        if time.monotonic() - self._said >= PLAIN_EVERY_S or row["step"] == row.get("total_steps"):
            self._said = time.monotonic()
            steps = f"{row['step']}/{row['total_steps']}" if row.get("total_steps") else str(row["step"])
            self.note(f"  {self._stage}  step {steps}  {figures_text(row, eta)}".rstrip())

    def note(self, text: str) -> None:
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None: ...


class LiveDisplay:
    """One moving bar for the stage at work, finished stages as lines above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            TextColumn("{task.fields[place]}", style="dim", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[steps]}", markup=False),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._progress.start()

    def start(self, stage: str, kind: str, index: int, stages: int, reason: str) -> None:
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._pace = Pace()
        place = f"{index}/{stages} {kind}"
        self._task = self._progress.add_task(stage, total=None, place=place, steps="", figures="starting")

    def row(self, row: Mapping[str, Any]) -> None:
        steps = f"{row['step']}/{row['total_steps']}" if row.get("total_steps") else str(row["step"])
        self._progress.update(self._task, completed=row["step"], total=row.get("total_steps"), steps=steps,
                              figures=figures_text(row, self._pace.eta(row)))  # fmt: skip

    def note(self, text: str) -> None:
        self._progress.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def numbers(row: Mapping[str, Any]) -> dict[str, int | float]:
    """Every figure of a metrics row, under ``phase/name`` where the row has a phase."""
    prefix = f"{row['phase']}/" if row.get("phase") else ""
    skipped = ("time", "step", "total_steps")
    return {prefix + name: value for name, value in row.items()
            if name not in skipped and isinstance(value, int | float)}  # fmt: skip


class Events:
    """TensorBoard event files of one stage, written without torch or TensorFlow."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))

    def row(self, row: Mapping[str, Any]) -> None:
        """A row's :func:`numbers`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(row).items()]
        self._writer.add_event(Event(wall_time=row["time"], step=row["step"], summary=Summary(value=values)))

    def close(self) -> None:
        self._writer.close()
