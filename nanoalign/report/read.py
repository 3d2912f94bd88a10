"""A run's files, read once for the report."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nanoalign.artifacts import StageRecord, read_jsonl, read_record
from nanoalign.common.errors import ConfigError
from nanoalign.common.files import exclusive_lock
from nanoalign.graph import order
from nanoalign.recipe.engines import nest
from nanoalign.recipe.schema import Recipe
from nanoalign.recipe.source import Place, YamlTree

RESULTS = ("evaluation.json", "sweep.json", "search.json")
"""Files of results, each of one kind of stage."""


@dataclass(frozen=True)
class StageData:
    """One stage's record and rows."""

    record: StageRecord
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    account: Mapping[str, Any]
    """data.json of a stage that trains on documents: what became of every sample; empty elsewhere."""
    result: Mapping[str, Any]
    """One of :data:`RESULTS`; empty elsewhere."""
    state: str = "finished"
    """finished, failed, stopped, killed, or running where a process is at work on it."""


@dataclass(frozen=True)
class RunData:
    """A whole run."""

    folder: Path
    recipe: Recipe
    stages: dict[str, StageData] = field(default_factory=dict)
    """Finished stages, in the order in which they ran."""
    unfinished: dict[str, StageData] = field(default_factory=dict)
    """Stages that were begun; their figures and results are not there, or only in part."""

    @property
    def begun(self) -> dict[str, StageData]:
        return {**self.stages, **self.unfinished}

    def of_kind(self, kind: str) -> dict[str, StageData]:
        return {name: data for name, data in self.stages.items() if data.record.kind == kind}


def read_run(folder: Path) -> RunData:
    """Reads ``runs/<name>``, whatever its state. Raises ConfigError where it is not a run, or another version's."""
    recipe = _recipe(folder)
    run = RunData(folder, recipe)
    for name in order(recipe):
        record = read_record(folder / name)
        if record is None:
            continue
        place = folder / name
        data = StageData(
            record,
            read_jsonl(place / "metrics.jsonl"),
            read_jsonl(place / "samples.jsonl"),
            _json(place / "data.json"),
            next(filter(None, (_json(place / file) for file in RESULTS)), {}),
            "killed" if record.status == "running" and not _at_work(folder) else record.status,
        )
        (run.stages if record.status == "finished" else run.unfinished)[name] = data
    return run


def _recipe(folder: Path) -> Recipe:
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise ConfigError(f"{folder}: not a run's folder (runs/NAME): it contains no recipe.yaml")
    try:
        source = YamlTree(yaml.safe_load(file.read_text(encoding="utf-8")), {(): Place(str(file), 1)}, [str(file)])
        nest(source)
        return Recipe.model_validate(source.data)
    except (ValidationError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: not a recipe of this version of nanoalign: {error}") from None


def _at_work(folder: Path) -> bool:
    """Whether a runner holds this run."""
    try:
        with exclusive_lock(folder, ""):
            return False
    except ConfigError:
        return True


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
