"""What a run left behind, read once for the report."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nanoalign.artifacts import StageRecord, read_record, read_rows
from nanoalign.graph import order
from nanoalign.recipe.schema import Recipe


@dataclass(frozen=True)
class StageData:
    """One stage's record and rows."""

    record: StageRecord
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    account: Mapping[str, Any]
    """data.json of an SFT stage: every sample's fate; empty elsewhere."""
    result: Mapping[str, Any]
    """evaluation.json or sweep.json; empty elsewhere."""


@dataclass(frozen=True)
class RunData:
    """A whole run."""

    folder: Path
    recipe: Recipe
    stages: dict[str, StageData] = field(default_factory=dict)
    """Finished stages, in the order in which they ran."""

    def of_kind(self, kind: str) -> dict[str, StageData]:
        return {name: data for name, data in self.stages.items() if data.record.kind == kind}


def read_run(folder: Path) -> RunData:
    """Reads ``runs/<name>``; stages without a finished record are left out."""
    recipe = Recipe.model_validate(yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")))
    stages = {}
    for name in order(recipe):
        record = read_record(folder / name)
        if record is not None and record.status == "finished":
            place = folder / name
            stages[name] = StageData(
                record,
                read_rows(place / "metrics.jsonl"),
                read_rows(place / "samples.jsonl"),
                _json(place / "data.json"),
                _json(place / "evaluation.json") or _json(place / "sweep.json"),
            )
    return RunData(folder, recipe, stages)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
