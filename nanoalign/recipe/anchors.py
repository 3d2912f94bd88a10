"""The files of a user's own code are found from the recipe that names them; a stage runs elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanoalign.common.user_code import anchored, is_user_code
from nanoalign.recipe.source import Path_, Problem, YamlTree
from nanoalign.reward.config import is_own


def anchor_rewards(source: YamlTree, folder: Path) -> list[Problem]:
    """Makes the places in the keys of every `reward` absolute, in place: those of one file before another is laid over
    it. Returns a problem for each that is named twice."""
    problems = []
    for path, section in _sections(source, "reward"):
        reward = section["reward"]
        for key in list(reward) if isinstance(reward, dict) else ():
            whole = anchored(key, folder.resolve()) if is_own(key) else key
            if whole != key and whole in reward:
                problems.append(Problem(source.place((*path, key)), source.shown((*path, key)), "is given twice"))
            reward[whole] = reward.pop(key)  # keeps the order
            if whole == key:
                continue
            source.written[whole] = key
            inside = len(path) + 1
            moved = {each: place for each, place in source.places.items() if each[:inside] == (*path, key)}
            source.places |= {(*path, whole, *each[inside:]): place for each, place in moved.items()}
    return problems


def anchor_environments(source: YamlTree) -> None:
    """Makes the places of environments and tools absolute, in place: from the file that says them, with ``--set`` from
    the working folder."""
    for path, section in _sections(source, "environment"):
        place = source.place(path)
        folder = Path(place.file).resolve().parent if place.line else Path.cwd()
        section["environment"] = _environment(section["environment"], folder)


def anchor_sources(source: YamlTree) -> None:
    """Tells every mixture with a `file:` source, in place, which folders the files lie in that name its sources. Names
    stay as they are: they seed what is drawn."""
    mixtures = source.data.get("data") if isinstance(source.data, dict) else None
    for name, mixture in mixtures.items() if isinstance(mixtures, dict) else ():
        if not isinstance(mixture, dict) or mixture.get("look_in"):
            continue
        named = [(key, each) for key in ("sources", "decontaminate") if isinstance(mixture.get(key), dict | list)
                 for each in (mixture[key] if key == "sources" else range(len(mixture[key])))]  # fmt: skip
        files = [(key, each) for key, each in named
                 if str(each if key == "sources" else mixture[key][each]).startswith("file:")]  # fmt: skip
        places = [source.place(("data", name, key, each)) for key, each in files]
        if folders := dict.fromkeys(str(Path(place.file).resolve().parent) for place in places if place.line):
            mixture["look_in"] = list(folders)


def _environment(use: Any, folder: Path) -> Any:
    if not isinstance(use, dict):
        return _absolute(use, folder)
    use = {key: _absolute(value, folder) if key == "name" else value for key, value in use.items()}
    if isinstance(use.get("tools"), list):
        use["tools"] = [
            {"folder": str(folder), **tool} if isinstance(tool, dict) else _absolute(tool, folder)
            for tool in use["tools"]
        ]  # fmt: skip
    return use


def _absolute(name: Any, folder: Path) -> Any:
    return anchored(name, folder) if isinstance(name, str) and is_user_code(name) else name


def _sections(source: YamlTree, key: str) -> Iterator[tuple[Path_, dict[str, Any]]]:
    """Every stage and suite that has the key, with the key's path."""
    data = source.data if isinstance(source.data, dict) else {}
    for top in ("stages", "suites"):
        sections = data.get(top)
        for name, section in sections.items() if isinstance(sections, dict) else ():
            if isinstance(section, dict) and key in section:
                yield (top, name, key), section
