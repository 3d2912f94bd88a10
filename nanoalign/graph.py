"""The stage graph: order, fingerprints, and which stages are stale and why.

A stage's fingerprint has four parts: the recipe's settings that concern it, its inputs' fingerprints, the source
code of the rooms it runs in, and the names and sizes of the data files that it reads. Where and how it runs (device,
launch, settings marked RUNTIME_ONLY) is not included: moving a run does not invalidate it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoalign.artifacts import StageRecord, read_record
from nanoalign.common.errors import DataError
from nanoalign.common.files import content_hash, source_hash
from nanoalign.common.user_code import portable
from nanoalign.data_recipes.config import Mixture
from nanoalign.recipe.schema import Recipe
from nanoalign.recipe.user_code import code_hashes
from nanoalign.stages import STAGES, from_elsewhere, suites_of, uses

BASE = "base"
"""The name by which stages refer to the recipe's own model."""


@dataclass(frozen=True)
class Node:
    """A stage as the runner sees it."""

    name: str
    stage: Any
    inputs: Mapping[str, str]
    """Role to stage name or `base`."""
    config: Mapping[str, Any]
    """The recipe's settings that determine this stage's result, as JSON data (see ``resolved``)."""
    code: Mapping[str, str]
    """The versions of the rooms it depends on."""
    parts: Mapping[str, str]
    """Fingerprints of config, code, inputs and data."""
    reason: str | None
    """Why it has to run; None where its artifacts are current."""

    @property
    def fingerprint(self) -> str:
        return content_hash(dict(self.parts))


def order(recipe: Recipe) -> list[str]:
    """Stage names, inputs before those who take them, in the recipe's order where that leaves a choice."""
    done: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in recipe.stages and name not in done:
            for other in inputs_of(recipe, name).values():
                visit(other)
            done[name] = None

    for name in recipe.stages:
        visit(name)
    return list(done)


def inputs_of(recipe: Recipe, name: str) -> dict[str, str]:
    """Role to stage name (or `base`) of a stage's inputs."""
    return {role: source for _, role, source in uses(recipe.stages[name], recipe.suites)}


def needed_by(recipe: Recipe, names: Iterable[str]) -> set[str]:
    """These stages and all they depend on."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name in recipe.stages and name not in found:
            found.add(name)
            queue += inputs_of(recipe, name).values()
    return found


def after(recipe: Recipe, names: Iterable[str]) -> set[str]:
    """These stages and all that depend on them."""
    wanted = set(names)
    return {name for name in recipe.stages if needed_by(recipe, [name]) & wanted}


def nodes(recipe: Recipe, folder: Path, data_root: Path | None = None, *, ignore_code: bool = False) -> list[Node]:
    """Every stage in order, with whether its artifacts under ``folder`` (runs/<name>) are current.

    ``ignore_code`` treats artifacts made by other versions of the code as current.
    """
    prints = {BASE: base_fingerprint(recipe.model)}
    result: list[Node] = []
    stale: set[str] = set()
    for name in order(recipe):
        record, inputs = read_record(folder / name), inputs_of(recipe, name)
        config, code = resolved(recipe, name), code_of(recipe, name)
        if ignore_code and record is not None:
            code = record.code
        given = {role: prints[source] for role, source in inputs.items()}
        given |= {role: base_fingerprint(model) for role, model in from_elsewhere(recipe.stages[name])}
        parts = {"config": content_hash(config), "inputs": content_hash(given), "code": content_hash(code)}
        parts["data"] = content_hash(data_files([recipe.data[mixture] for mixture in config["data"]], data_root))
        before = [source for source in dict.fromkeys(inputs.values()) if source in stale]
        reason = _reason(record, makes_model(recipe.stages[name]), config, code, parts, before, folder / name)
        if reason is not None:
            stale.add(name)
            if record is not None and record.status == "finished":  # it starts over, with today's code
                code = code_of(recipe, name)
                parts["code"] = content_hash(code)
        node = Node(name, recipe.stages[name], inputs, config, code, parts, reason)
        prints[name] = node.fingerprint
        result.append(node)
    return result


def resolved(recipe: Recipe, name: str) -> dict[str, Any]:
    """All recipe settings that determine a stage's result: its section and the mixtures and suites it names, without
    how it runs (``common.config.RUNTIME_ONLY``)."""
    stage = recipe.stages[name]
    suites = [recipe.suites[suite] for suite in dict.fromkeys(suite for _, suite in suites_of(stage))]
    mixtures = [section.data for section in (stage, *suites) if getattr(section, "data", None) is not None]
    mixtures += [held_out for held_out in (getattr(stage, "held_out", None),) if isinstance(held_out, str)]
    return {
        "stage": portable(stage.identity()),
        "data": {mixture: recipe.data[mixture].identity() for mixture in dict.fromkeys(mixtures)},
        "suites": {
            name: portable(recipe.suites[name].identity())
            for name in dict.fromkeys(suite for _, suite in suites_of(stage))
        },
        "chat": recipe.chat,
        "seed": seed_of(recipe, name),
    }


def data_files(mixtures: Iterable[Mixture], data_root: Path | None) -> list[tuple[str, int]]:
    """Names and sizes of the files behind these mixtures (times and places change when a run moves)."""
    from nanoalign.data_recipes.sources import describe_source

    found: set[tuple[str, int]] = set()
    for mixture in mixtures:
        for source, use in mixture.uses.items():
            try:
                where = describe_source(source, data_root, use.split, mixture.look_in)["where"]
                paths = [Path(each) for each in where.split(", ")]
            except DataError:  # the stage reports what is missing
                continue
            found |= {(path.name, path.stat().st_size) for path in paths if path.is_file()}
    return sorted(found)


def seed_of(recipe: Recipe, name: str) -> int:
    """The seed that the recipe gives a stage."""
    return recipe.seeds.get(name, recipe.seed)


def stage_seed(recipe: Recipe, name: str) -> int:
    """A separate seed for the stage, the same whatever else the recipe contains."""
    return int(hashlib.sha256(f"{seed_of(recipe, name)}/{name}".encode()).hexdigest(), 16) % 2**31


def makes_model(stage: Any) -> bool:
    """Whether a stage leaves a model behind."""
    return bool(STAGES[stage.kind].makes)


def source_hashes(kind: str) -> dict[str, str]:
    """The versions of the rooms that a stage of this kind depends on."""
    return {room: source_hash(room) for room in STAGES[kind].rooms}


def code_of(recipe: Recipe, name: str) -> dict[str, str]:
    """The versions of the rooms that a stage runs in, and of the user's own code that it uses."""
    sections = [recipe.stages[name], *(recipe.suites[suite] for _, suite in suites_of(recipe.stages[name]))]
    return source_hashes(recipe.stages[name].kind) | code_hashes(sections)


def base_fingerprint(model: str) -> str:
    """Names a model from outside of the recipe: by its files' names, sizes and times where it is a folder, by its spec
    otherwise."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return content_hash(model)
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()]
    return content_hash(files)


def _reason(
    record: StageRecord | None,
    model: bool,
    config: Mapping[str, Any],
    code: Mapping[str, str],
    parts: Mapping[str, str],
    stale_inputs: list[str],
    folder: Path,
) -> str | None:
    """Why a stage has to run; None where it does not."""
    if record is not None and record.parts["config"] != parts["config"]:
        return f"changed: {'; '.join(differences(record.config, config))}"
    if stale_inputs:
        return f"after {', '.join(stale_inputs)}"
    if record is None:
        return "not run yet"
    if record.parts["inputs"] != parts["inputs"]:
        return "its inputs changed"
    if record.parts["data"] != parts["data"]:
        return "its data files changed"
    if record.parts["code"] != parts["code"]:
        return f"the code changed: {', '.join(room for room in code if record.code.get(room) != code[room])}"
    if record.status != "finished":
        return f"{'killed' if record.status == 'running' else record.status} before it was finished; resumes"
    if model and not (folder / "model").is_dir():
        return "its model folder is gone"
    return None


def differences(old: Any, new: Any, path: str = "", most: int = 3) -> list[str]:
    """What differs between two pieces of plain data, as ``a.b 1 -> 2``; at most ``most`` and a count of the rest."""
    found: list[str] = []

    def walk(old: Any, new: Any, path: str) -> None:
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            for key in [*old, *(key for key in new if key not in old)]:
                walk(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        elif old != new:
            found.append(f"{path} {_short(old)} -> {_short(new)}")

    walk(old, new, path)
    return found if len(found) <= most else [*found[:most], f"{len(found) - most} more"]


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{...}"
    text = "null" if value is None else str(value)
    return text if len(text) <= 30 else text[:27] + "..."
