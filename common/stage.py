"""What the runner passes to a stage, and how a stage reports its progress."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanoalign.common.files import SURROGATES


class StageLog:
    """Appends rows to ``metrics.jsonl`` (read live by the parent) and to ``samples.jsonl`` of a stage folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def metrics(self, step: int, total_steps: int | None = None, **values: float | str) -> None:
        """One step's figures. Usual names: loss, reward, tokens_per_s, tokens, learning_rate, phase (a word)."""
        self._append("metrics.jsonl", {"time": time.time(), "step": step, "total_steps": total_steps, **values})

    def sample(self, **values: Any) -> None:
        """One rendered sample for the report. Usual names: kind, step, domain, prompt, thinking, answer, reward."""
        self._append("samples.jsonl", values)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.folder / name).open("a", encoding="utf-8", errors=SURROGATES) as file:
            file.write(json.dumps(row, ensure_ascii=False, default=float) + "\n")


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
