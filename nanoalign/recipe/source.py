"""YAML as plain data that remembers where each key is.

Scalars follow YAML 1.2's core schema: ``on`` and ``no`` are words, ``1e-5`` is a number.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Path_ = tuple[str | int, ...]
"""Keys and list positions from the top of a recipe down to a value."""


@dataclass(frozen=True, order=True)
class Place:
    """Where a value was written: a file's line, or an override (line 0)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with a recipe."""

    place: Place
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.path + ': ' if self.path else ''}{self.message}"


@dataclass
class YamlTree:
    """Plain data (dicts, lists, scalars) with the place of every key and item."""

    data: Any
    places: dict[Path_, Place] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    """Those that it was read from, each after what it extends."""
    written: dict[str, str] = field(default_factory=dict)
    """Keys that were completed (the path of a reward's file), with what the user wrote."""

    def shown(self, path: Path_) -> str:
        """A path as the user wrote it."""
        return dotted(tuple(self.written.get(step, step) if isinstance(step, str) else step for step in path))

    def place(self, path: Path_) -> Place:
        """Where ``path`` was written, or the nearest thing above it that was."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places[path]


_PART = re.compile(r'\.(?=(?:[^"]*"[^"]*")*[^"]*$)')
"""Dots that are not between double quotes."""


class _Loader(yaml.SafeLoader):
    """SafeLoader without YAML 1.1's scalars."""


_Loader.yaml_implicit_resolvers = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def parse_yaml(text: str, file: str) -> tuple[YamlTree, list[Problem]]:
    """Plain data of a YAML text. ``file`` names it in places. Duplicate keys, aliases that contain themselves, tags and
    infinite numbers are problems; a syntax error is one and gives None as data."""
    top = Place(file, 1)
    try:
        documents = list(yaml.compose_all(text, _Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"not valid YAML: {', '.join(part for part in (error.context, error.problem) if part)}"
        return YamlTree(None, {(): top}), [Problem(Place(file, mark.line + 1 if mark else 1), "", message)]
    except (yaml.YAMLError, ValueError) as error:
        return YamlTree(None, {(): top}), [Problem(top, "", f"not valid YAML: {error}")]
    if len(documents) > 1:
        place = Place(file, documents[1].start_mark.line + 1)
        return YamlTree(None, {(): top}), [Problem(place, "", "a second document (---); one file holds one")]
    source, problems = YamlTree(None, {(): top}, [file]), []  # type: ignore[var-annotated]
    if documents and documents[0] is not None:
        source.data = _plain(documents[0], (), file, source.places, problems, ())
    return source, problems


def read_yaml(path: Path) -> tuple[YamlTree, list[Problem]]:
    """As :func:`parse_yaml`, of a file."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        return YamlTree(None, {(): Place(str(path), 1)}), [
            Problem(Place(str(path), 1), "", f"cannot be read: {reason}")
        ]


def merge_trees(below: YamlTree, above: YamlTree) -> YamlTree:
    """``above`` laid over ``below``: mappings merge key by key, anything else is replaced. A mapping of another
    ``kind`` replaces; null takes an inherited mixture, suite or stage away."""
    return YamlTree(
        _merged(below.data, above.data, ()),
        {**below.places, **above.places},
        [*below.files, *above.files],
        {**below.written, **above.written},
    )


def _merged(below: Any, above: Any, path: Path_) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict) and above.get("kind") in (None, below.get("kind"))):
        return above
    data = dict(below)
    for key, value in above.items():
        if value is None and len(path) == 1 and path[0] in ("data", "suites", "stages") and key in data:
            del data[key]
        else:
            data[key] = _merged(data.get(key), value, (*path, key))
    return data


def set_value(source: YamlTree, override: str) -> Problem | None:
    """Applies ``a.b.c=value`` (the value is YAML) in place; returns what is wrong with it, if anything. A key that has
    dots stands in double quotes: ``stages.polite.reward."mine.py:brevity"=0.5``."""
    place = Place(f"--set {override}", 0)
    path, separator, text = override.partition("=")
    whole = {written: key for key, written in source.written.items()}
    keys = [key.strip() for key in _PART.split(path)]
    keys = [whole.get(key[1:-1], key[1:-1]) if key[:1] == key[-1:] == '"' and key[1:] else key for key in keys]
    if not separator or not all(keys):
        return Problem(place, "", "expected KEY.KEY=VALUE, as in stages.refine.train.learning_rate=1e-5")
    value, problems = parse_yaml(text, place.file)
    if problems:
        return Problem(place, path, problems[0].message)
    container: Any = source.data
    here: Path_ = ()
    for key in keys[:-1]:
        if isinstance(container, dict) and container.get(key) is None:
            container[key] = {}
            source.places[(*here, key)] = place
        step = _step(container, key)
        if step is None:
            return Problem(place, path, f"{dotted(here)} has no `{key}`")
        here, container = (*here, step), container[step]
    step = _step(container, keys[-1])
    if step is None:
        return Problem(place, path, f"{dotted(here)} has no `{keys[-1]}`")
    container[step] = value.data
    source.places.update({(*here, step, *inner): place for inner in value.places})
    return None


def _step(container: Any, key: str) -> str | int | None:
    if isinstance(container, dict):
        return key
    return int(key) if isinstance(container, list) and key.isdigit() and int(key) < len(container) else None


def dotted(path: Path_) -> str:
    """A path as users write it."""
    return ".".join(map(str, path))


def _plain(node: yaml.Node, path: Path_, file: str, places: dict[Path_, Place], problems: list[Problem],
           above: tuple[yaml.Node, ...]) -> Any:  # fmt: skip
    place = Place(file, node.start_mark.line + 1)

    def wrong(message: str, at: Place = place, key: Path_ = ()) -> None:
        problems.append(Problem(at, dotted((*path, *key)), message))

    if node in above:
        return wrong("an alias that contains itself")
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            places[(*path, index)] = Place(file, item.start_mark.line + 1)
            items.append(_plain(item, (*path, index), file, places, problems, above))
        return items
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            at = Place(file, key.start_mark.line + 1)
            if not isinstance(key, yaml.ScalarNode):
                wrong("a key must be a word", at)
            elif key.value in mapping:
                first = places[(*path, key.value)].line
                wrong(f"duplicate key `{key.value}` (first on line {first})", at, (key.value,))
            else:
                places[(*path, key.value)] = at
                mapping[key.value] = _plain(value, (*path, key.value), file, places, problems, above)
        return mapping
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "bool":
        return node.value.lower() == "true"
    if kind == "int":
        return int(node.value)
    if kind == "float":
        number = float(node.value)
        return number if math.isfinite(number) else wrong(f"{node.value} is too large a number")
    if kind == "str":
        return node.value
    return wrong(f"the tag {node.tag} is not allowed")
