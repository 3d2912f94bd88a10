"""BFCL's simulated worlds (file system, trading, travel, ...) and its verdict on what was called in several turns.

The classes are those of the package bfcl-eval (Apache-2.0), which is not a dependency: its pins clash with ours, and
its classes need none of them. It is taken where it is importable, else from ``DATA_ROOT/bfcl-eval``. Calls are run by
name with named arguments; no text of a model is evaluated.

The rule is ``multi_turn_checker``'s of bfcl-eval 2026.3.23: after each request the worlds' public attributes equal
those after the reference's calls, and every result of the reference's calls is among the results so far. Requests that
cannot be fulfilled yet (without reference calls) are not judged.
"""

import copy
import importlib
import inspect
import json
import sys
import types
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.catalog import root_of
from nanoalign.data_recipes.conversation import ToolCall

PACKAGE, FOLDER = "bfcl_eval", "bfcl-eval"
VERSION = "2026.3.23"
LIMITS = {"precision": 10_000, "exponent": 10_000, "decimal_places": 10_000}
"""Largest sizes of the calculator's arguments: beyond, its results have millions of digits and take hours."""

STEPS = 20
"""Answers with calls to one request; after one more the benchmark gives the task up."""
Turns = Sequence[Sequence[Sequence[ToolCall]]]
"""Request by request, the answers that held calls: each answer's calls."""


def load_classes(names: Sequence[str], data_root: Path | None) -> dict[str, type]:
    """Classes of the simulators, by name.

    Raises DataError where bfcl-eval is neither installed nor below the data root, or has no such class.
    """
    root = root_of(data_root)
    if PACKAGE not in sys.modules and find_spec(PACKAGE) is None:
        inside = root / FOLDER / PACKAGE if root else None
        if inside is None or not inside.is_dir():
            raise DataError(
                "BFCL's multi-turn tasks are played on the simulators of bfcl-eval, which is not installed, nor in "
                f"{root / FOLDER if root else 'DATA_ROOT/' + FOLDER}: "
                f"pip install --no-deps --target {root or 'DATA_ROOT'}/{FOLDER} {FOLDER}=={VERSION}"
            )
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(inside)]
        sys.modules[PACKAGE] = package
    try:
        modules = importlib.import_module(f"{PACKAGE}.constants.executable_backend_config").CLASS_FILE_PATH_MAPPING
        return {name: getattr(importlib.import_module(modules[name]), name) for name in names}
    except (ImportError, AttributeError, KeyError) as error:
        raise DataError(f"bfcl-eval's simulators cannot be loaded ({error!r}); known to work: {VERSION}") from None


class World:
    """The simulators that a task involves, each in the state that the task describes."""

    def __init__(self, task: Mapping[str, Any], data_root: Path | None) -> None:
        """``task``: ``classes``, ``initial_config`` by class, and ``long``, whether files and lists are filled up.
        Raises DataError as :func:`load_classes`."""
        self.instances = {name: make() for name, make in load_classes(task["classes"], data_root).items()}
        self.methods: dict[str, Any] = {}
        for name, instance in self.instances.items():
            if hasattr(instance, "_load_scenario"):
                scenario = copy.deepcopy(task["initial_config"].get(name, {}))
                instance._load_scenario(scenario, long_context=bool(task.get("long")))
            found = inspect.getmembers(instance, predicate=inspect.ismethod)
            self.methods |= {method: bound for method, bound in found if not method.startswith("_")}

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A call's result as the model reads it, an error's text too."""
        import decimal

        import mpmath

        try:
            if name not in self.methods:
                raise NameError(f"name '{name}' is not defined")
            for key, most in LIMITS.items():
                if isinstance(value := arguments.get(key), int | float) and abs(value) > most:
                    raise ValueError(f"{key} is too large")
            with decimal.localcontext(), mpmath.workdps(mpmath.mp.dps):  # the calculator sets these for all
                return _text(self.methods[name](**copy.deepcopy(dict(arguments))))
        except Exception as error:
            return f"Error during execution: {error}"

    def same(self, other: "World") -> bool:
        """Whether the public attributes of all simulators are equal."""
        try:
            return all(
                getattr(self.instances[name], key) == value
                for name, instance in other.instances.items()
                for key, value in vars(instance).items()
                if not key.startswith("_")
            )
        except RecursionError:  # a folder that was moved into itself
            return False


def _text(result: Any) -> str:
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except Exception:  # an object's, or too many digits
            return str(result)
    return str(result)


def verdict(task: Mapping[str, Any], turns: Turns, data_root: Path | None) -> str:
    """Why the benchmark does not count the calls as right; empty where it does. Both sides are played from the
    beginning.

    ``task``: as of :class:`World`, with ``expected``, the reference's calls of each request.
    """
    expected = task["expected"]
    if len(turns) != len(expected) or any(len(steps) > STEPS for steps in turns):
        return f"ended in request {len(turns)} of {len(expected)}"
    ours, reference, results = World(task, data_root), World(task, data_root), list[str]()
    for number, (steps, wanted) in enumerate(zip(turns, expected, strict=True), 1):
        results += [ours.call(call.name, call.arguments) for step in steps for call in step]
        needed = [reference.call(call["name"], call["arguments"]) for call in wanted]
        if not needed:
            continue
        if not any(steps):
            return f"no call in request {number}"
        if not ours.same(reference):
            return f"another state after request {number}"
        left = list(results)
        for result in needed:
            if result not in left:
                return f"a result is missing in request {number}"
            left.remove(result)
    return ""
