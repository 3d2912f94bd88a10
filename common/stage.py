"""What the runner passes to a stage, and how a stage reports its progress."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanoalign.common.files import SURROGATES


class StageLog:
    """Appends rows to ``metrics.jsonl`` (read live by the parent), ``samples.jsonl`` and ``held_out.jsonl`` of a stage
    folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def metrics(self, step: int, total_steps: int | None = None, **values: float | str) -> None:
        """One step's figures. Usual names: loss, reward, tokens_per_s, tokens, learning_rate, phase (a word)."""
        self._append("metrics.jsonl", {"time": time.time(), "step": step, "total_steps": total_steps, **values})

    def sample(self, **values: Any) -> None:
        """One rendered sample for the report. Usual names: kind, step, domain, prompt, thinking, answer, reward."""
        self._append("samples.jsonl", values)

    def held_out(self, step: int, rewards: Sequence[float]) -> None:
        """One measurement on what is held out: the reward of each prompt or task, always in the same order. A resumed
        stage measures some steps again; the last row of a step counts."""
        self._append("held_out.jsonl", {"step": step, "rewards": list(rewards)})

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.folder / name).open("a", encoding="utf-8", errors=SURROGATES) as file:
            file.write(json.dumps(row, ensure_ascii=False, default=float) + "\n")


class PartLog(StageLog):
    """The log of a part of a stage in a folder of its own, whose figures the stage's log has too, as a phase."""

    def __init__(self, folder: Path, whole: StageLog, phase: str) -> None:
        super().__init__(folder)
        self.whole, self.phase = whole, phase

    def metrics(self, step: int, total_steps: int | None = None, **values: float | str) -> None:
        super().metrics(step, total_steps, **values)
        self.whole.metrics(step, total_steps, **{**values, "phase": self.phase})


def held_out_rewards(folder: Path) -> dict[int, list[float]]:
    """What :meth:`StageLog.held_out` noted in a stage's folder, by step."""
    path, found = folder / "held_out.jsonl", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):  # the last line of a stage that was killed
            row = json.loads(line)
            found[row["step"]] = row["rewards"]
    return {step: found[step] for step in sorted(found)}


@dataclass(frozen=True)
class StageContext:
    """Where a stage works and what it works on.

    A stage writes ``folder/model`` (through ``common.files.atomic_folder``) and returns a flat dict of figures; the
    runner then writes ``stage.json``. ``folder`` survives a crash: a stage that finds its own checkpoints under
    ``folder/checkpoints`` resumes from the newest complete one and ends with the same weights.
    """

    name: str
    """The stage's name in the recipe."""
    folder: Path
    """``runs/<run>/<stage>``."""
    inputs: Mapping[str, Path]
    """Model folders by role: ``from`` for a training stage, ``reasoning`` and ``chat`` for a merge, stage names for
    ``evaluate``, ``reward_model`` where GRPO uses one, ``teacher`` where a distillation's is a stage or the base."""
    chat: str
    """The chat format's name, for :func:`data_recipes.chat.chat_format`."""
    seed: int
    data_root: Path | None
    """Where mirrored data sets are, or None."""
    device: str = "auto"
    """auto, cpu or cuda."""
    log: StageLog = field(kw_only=True)
