"""Recipes that give an engine's settings beside its name (`rollouts: {engine: vllm, gpu_memory: 0.3}`), as all did
before engines had sections of their own: read as they were meant, with a note that says how to write it now."""

from collections.abc import Iterator
from typing import Any

import yaml

from nanoalign.recipe.source import Path_, Place, Problem, YamlTree, dotted
from nanoalign.rollouts.engines import ENGINES

KEYS = {key for engine in ENGINES.values() for key in engine.settings.model_fields if key != "kind"}
NEVER_IDLE = ("server", "gpus", "sleep")
"""Settings that were refused beside an engine that has none, unless they were null or 0; others had no effect there."""


def write_out(source: YamlTree) -> None:
    """``engine: vllm`` as ``engine: {kind: vllm}``, in place, so that other files and overrides may set a key of it."""
    for path, rollouts in _rollouts(source):
        if isinstance(kind := rollouts.get("engine"), str):
            rollouts["engine"] = {"kind": kind}
            source.places[*path, "engine", "kind"] = source.place((*path, "engine"))


def nest(source: YamlTree) -> tuple[list[Problem], list[Problem]]:
    """Moves such settings into the section of their engine, in place. Returns the notes, and a problem for each that a
    file says twice; what an override or an extending file says goes before what is below it."""
    notes: list[Problem] = []
    problems: list[Problem] = []
    write_out(source)
    for path, rollouts in _rollouts(source):
        engine = rollouts.setdefault("engine", {"kind": "hf"})
        beside = {key: rollouts.pop(key) for key in list(rollouts) if key in KEYS}
        if not isinstance(engine, dict):
            continue
        known, idle = ENGINES.get(str(engine.get("kind"))), []
        for key, value in beside.items():
            here, there = (*path, key), (*path, "engine", key)
            old, new = source.place(here), source.place(there)
            if known and key not in known.settings.model_fields and not (value and key in NEVER_IDLE):
                idle.append(key)
            elif key not in engine or _layer(source, old) > _layer(source, new):
                engine[key], source.places[there] = value, old
            elif _layer(source, old) == _layer(source, new):
                problems.append(Problem(old, dotted(here), f"is given in `engine` too ({new}); keep that one"))
            if not old.line:
                unused = f", which engine {engine['kind']} does not have: without effect" if key in idle else ""
                notes.append(Problem(old, dotted(here), f"the key is now {dotted(there)}{unused}"))
        if written := [key for key in beside if source.place((*path, key)).line]:
            unused = f"; without effect, leave out: {', '.join(idle)}" if idle else ""
            line = f"in place of {', '.join(written)} write `{_flow({'engine': engine})}`{unused}"
            notes.append(
                Problem(source.place((*path, written[0])), dotted(path), f"engines have a section now: {line}")
            )
    return notes, problems


def _rollouts(source: YamlTree) -> Iterator[tuple[Path_, dict[str, Any]]]:
    """The `rollouts` of every stage that has one."""
    stages = source.data.get("stages") if isinstance(source.data, dict) else None
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        if isinstance(stage, dict) and isinstance(rollouts := stage.get("rollouts"), dict):
            yield ("stages", name, "rollouts"), rollouts


def _layer(source: YamlTree, place: Place) -> int:
    """How high a place lies: overrides above all files, a file above what it extends."""
    return source.files.index(place.file) if place.line else len(source.files)


def _flow(section: dict[str, Any]) -> str:
    """As it is written between the braces of `rollouts: {...}`."""
    return yaml.safe_dump(section, default_flow_style=True, sort_keys=False, width=10_000).strip()[1:-1]
