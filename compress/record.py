"""``search.json``: the order of removal and every candidate, with what is known of it so far."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoalign.common.files import write_json
from nanoalign.common.stage import StageContext
from nanoalign.compress.config import CompressStage
from nanoalign.compress.search import GIB, Candidate, speed
from nanoalign.compress.shapes import Depth, units
from nanoalign.models.footprint import count, memory

if TYPE_CHECKING:
    from nanoalign.compress.calibrate import Rows
    from nanoalign.compress.depth import Step

RESULT = "search.json"
LISTED = 200
"""Candidates that the record holds; the largest are first, and those that are measured among them."""


class Record:
    """A stage's ``search.json``, rewritten as it grows."""

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        self.file, self.content = file, content
        self._rows = {row["name"]: row for row in content["candidates"]}

    @classmethod
    def open(
        cls,
        context: StageContext,
        config: CompressStage,
        shape: Mapping[str, Any],
        found: Sequence[Candidate],
        steps: Mapping[Depth, Sequence["Step"]],
        rows: "Rows",
    ) -> "Record":
        """The record of an earlier process of this very stage, or a new one."""
        file = context.folder / RESULT
        if file.exists():  # the runner clears the folder where anything has changed
            return cls(file, json.loads(file.read_text(encoding="utf-8")))
        budget, listed = config.memory, max(LISTED, config.screen)
        taken = memory(shape, budget.context, budget.batch, budget.weights, budget.cache, budget.state)
        kinds = units(shape)
        content = {
            "budget": budget.model_dump(),
            "floor_tokens_per_s": config.throughput.floor,
            "calibration": {"tokens": rows.tokens, "rows": len(rows.scoring), "held_out_rows": len(rows.held_out),
                            "cut": rows.cut},
            "whole": {"parameters": count(shape).total, "memory_gib": taken.total / GIB, "blocks": len(kinds),
                      "tokens_per_s": speed(shape, config.throughput, budget)},
            "removals": [
                {**asdict(depth), "steps": [
                    {"block": step.block, "kind": kinds[step.block], "error": step.error,
                     "candidates": {str(block): error for block, error in step.candidates.items()}}
                    for step in order]}
                for depth, order in steps.items()
            ],
            "within_budget": len(found),
            "candidates": [each.as_dict() for each in found[:listed]],
            "chosen": None,
        }  # fmt: skip
        record = cls(file, content)
        record.save()
        return record

    def row(self, candidate: Candidate) -> dict[str, Any]:
        """What is known of a candidate."""
        return self._rows[candidate.name]

    def note(self, candidate: Candidate, **values: Any) -> None:
        """Adds to it, and writes the record."""
        self._rows[candidate.name] |= values
        self.save()

    def measure_whole(self, loss: Callable[[], float]) -> None:
        """The whole model's loss on the held-out rows, measured once."""
        if "loss" not in self.content["whole"]:
            self.content["whole"]["loss"] = loss()
            self.save()

    def choose(self, candidate: Candidate) -> None:
        """Names the chosen one."""
        self.content["chosen"] = candidate.name
        self.save()

    def save(self) -> None:
        """Writes the record atomically."""
        write_json(self.file, self.content)

    def figures(self, chosen: Candidate) -> dict[str, Any]:
        """``compress.parameters``, ``.memory_gib``, ``.tokens_per_s`` and ``.loss`` (nats per trained token on held-out
        rows, as pruned) of the chosen model, and with ``.whole`` those of the original; ``.candidates`` within the
        budget; ``.blocks_removed``; where measured ``.loss_distilled``, ``.kl_distilled`` and ``.accuracy``, with its
        interval."""
        row, whole = self.row(chosen), self.content["whole"]
        figures: dict[str, Any] = {
            "compress.candidates": self.content["within_budget"],
            "compress.blocks_removed": whole["blocks"] - row["blocks"],
        }
        for name in ("parameters", "memory_gib", "tokens_per_s", "loss"):
            figures |= {f"compress.{name}": row[name], f"compress.{name}.whole": whole[name]}
        more = {
            "loss_distilled": "distilled_loss",
            "kl_distilled": "distilled_kl",
            "accuracy": "accuracy",
            "tokens_per_s_vllm": "measured_tokens_per_s",
        }
        return figures | {f"compress.{name}": row[key] for name, key in more.items() if key in row}
