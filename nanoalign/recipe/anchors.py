"""What a recipe leaves to be found: the files of a user's own code are beside it (a stage runs elsewhere), and a public
benchmark that a stage names is a suite by itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanoalign.common.user_code import anchored, is_user_code
from nanoalign.evaluation.benchmarks import is_benchmark
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


SUITE_KEYS = ("suites", "more_suites", "budget_suite", "reasoning_suite", "chat_suite")
"""Keys of stages that name suites."""


def name_benchmarks(source: YamlTree) -> None:
    """Adds a suite for each public benchmark that a stage names, in place, unless there is one of that name."""
    data = source.data if isinstance(source.data, dict) else {}
    stages, suites = data.get("stages"), data.get("suites")
    if not isinstance(stages, dict) or not isinstance(suites, dict | None):
        return
    named = [stage.get(key) for stage in stages.values() if isinstance(stage, dict) for key in SUITE_KEYS]
    names = [name for each in named for name in (each if isinstance(each, list) else [each])]
    for name in dict.fromkeys(each for each in names if isinstance(each, str) and is_benchmark(each)):
        if name not in (suites or {}):
            data["suites"] = suites = {**(suites or {}), name: {"benchmark": name}}


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
