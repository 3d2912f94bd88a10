"""A recipe's own rewards: their files are found from the recipe that names them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanoalign.recipe.source import Path_, Problem, YamlTree
from nanoalign.reward.config import is_own
from nanoalign.reward.own.source import is_file


def from_folder(source: YamlTree, folder: Path) -> list[Problem]:
    """Makes the paths in the keys of every `reward` absolute, in place: those of one file before another is laid over
    it. Returns a problem for each that is named twice."""
    problems = []
    for path, reward in _rewards(source):
        for key in list(reward):
            where, _, name = key.rpartition(":")
            if not (is_own(key) and is_file(where)) or Path(where).expanduser().is_absolute():
                _move(reward, key, key)  # keeps the order
                continue
            whole = f"{(folder / Path(where).expanduser()).resolve()}:{name}"
            if whole in reward:
                problems.append(Problem(source.place((*path, key)), source.shown((*path, key)), "is given twice"))
            _move(reward, key, whole)
            source.written[whole] = key
            inside = len(path) + 1
            moved = {each: place for each, place in source.places.items() if each[:inside] == (*path, key)}
            source.places |= {(*path, whole, *each[inside:]): place for each, place in moved.items()}
    return problems


def _move(reward: dict[str, Any], key: str, to: str) -> None:
    reward[to] = reward.pop(key)


def _rewards(source: YamlTree) -> Iterator[tuple[Path_, dict[str, Any]]]:
    """The `reward` of every stage and suite that has one."""
    data = source.data if isinstance(source.data, dict) else {}
    for top in ("stages", "suites"):
        sections = data.get(top)
        for name, section in sections.items() if isinstance(sections, dict) else ():
            if isinstance(section, dict) and isinstance(reward := section.get("reward"), dict):
                yield (top, name, "reward"), reward
