"""BFCL's multi-turn verdicts beside ``multi_turn_checker``'s: on the reference's calls changed in many ways, and on
models' episodes. See agreement.py."""

import copy
import importlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nanoalign.data_recipes.conversation import ToolCall
from nanoalign.data_recipes.workplace.bfcl import STEPS, verdict
from nanoalign.evaluation.config import Suite
from nanoalign.evaluation.tasks import load_suite
from nanoalign.rollouts.environments.bfcl import turns_of

Turns = list[list[list[ToolCall]]]


class Reference:
    """``bfcl_eval.eval_checker.multi_turn_eval``, as its runner calls it."""

    def __init__(self) -> None:
        folder = "bfcl_eval.eval_checker.multi_turn_eval"
        self.check = importlib.import_module(f"{folder}.multi_turn_checker").multi_turn_checker
        self.utils = importlib.import_module(f"{folder}.multi_turn_utils")
        self.number = itertools.count()

    def right(self, task: Any, turns: Turns) -> bool | None:
        """None where the checker itself fails. It keeps simulators by model and task for as long as the process lives:
        each answer needs a model's name of its own."""
        if len(turns) != len(task.data["expected"]) or any(len(turn) > STEPS for turn in turns):
            return False
        said = [[[_text(call.name, call.arguments) for call in step] for step in turn] for turn in turns]
        gold = [[_text(call["name"], call["arguments"]) for call in turn] for turn in task.data["expected"]]
        entry = {
            "id": task.id, "initial_config": task.data["initial_config"], "involved_classes": task.data["classes"],
        }  # fmt: skip
        before = set(vars(self.utils))
        try:
            found = self.check(said, gold, entry, task.data["kind"], f"m{next(self.number)}")
            return bool(found["valid"])
        except (AttributeError, AssertionError, TypeError, RecursionError):
            return None
        finally:
            for name in set(vars(self.utils)) - before:
                delattr(self.utils, name)


def _text(name: str, arguments: Any) -> str:
    """As ``convert_to_function_call`` writes a call."""
    return f"{name}({','.join(f'{key}={value!r}' for key, value in arguments.items())})"


def bfcl_multi_turn(
    reference_folder: Path, rows: Sequence[dict[str, Any]], tally: Callable[[str], Any], limit: int | None
) -> None:
    """The package's own tasks, all four categories; ``rows`` are records of models' episodes."""
    folder = _as_data_root(reference_folder)
    tasks = load_suite("multi_turn", Suite(benchmark="bfcl-multi-turn"), {}, folder, 0).played
    by_id = {task.id: task for task in tasks}
    counted, reference, draw = tally("eval.bfcl_multi_turn_agreement"), Reference(), random.Random(5)
    answers = [
        ("model", "as it is", by_id[row["task"]], turns_of(row["messages"])) for row in rows if row["task"] in by_id
    ]
    answers += [
        ("made", shape, task, turns) for task in draw.sample(list(tasks), limit or len(tasks))
        for shape, turns in shapes(task, draw)
    ]  # fmt: skip
    for origin, shape, task, turns in answers:
        theirs = reference.right(task, turns)
        why = verdict(task.data, turns, folder)
        calls = [[[_text(call.name, call.arguments) for call in step] for step in turn] for turn in turns]
        counted.add(origin, not why, bool(theirs), shape=shape, task=task.id, why=why, calls=calls,
                    reference_failed=theirs is None)  # fmt: skip


def _as_data_root(reference: Path) -> Path:
    """A data root in which the reference's folder has the name that is looked for."""
    import tempfile

    root = Path(tempfile.mkdtemp())
    (root / "bfcl-eval").symlink_to(reference.resolve())
    return root


def shapes(task: Any, draw: random.Random) -> Iterator[tuple[str, Turns]]:
    """(shape, calls): the reference's calls, all at once and one by one, and what is a little off."""
    gold: Turns = [
        [[ToolCall(call["name"], copy.deepcopy(call["arguments"])) for call in turn]] if turn else []
        for turn in task.data["expected"]
    ]
    single = [[[call] for step in turn for call in step] for turn in gold]
    yield "all at once", gold
    yield "one by one", single
    yield "no call", [[] for _ in gold]
    yield "one request less", gold[:-1]
    place = draw.choice([number for number, turn in enumerate(single) if turn])
    for shape in ("dropped", "twice", "reversed", "moved to the request before", "another's calls", "value", "type",
                  "unknown function", "unknown argument", "a look around"):  # fmt: skip
        changed = copy.deepcopy(single)
        _change(shape, changed, place, draw, task)
        yield shape, changed


def _change(shape: str, turns: Turns, place: int, draw: random.Random, task: Any) -> None:
    turn = turns[place]
    step = draw.randrange(len(turn))
    [call] = turn[step]
    match shape:
        case "dropped":
            del turn[step]
        case "twice":
            turn.insert(step, [copy.deepcopy(call)])
        case "reversed":
            turn.reverse()
        case "moved to the request before":
            turns[max(0, place - 1)].append(turn.pop(step))
        case "another's calls":
            turns[place] = copy.deepcopy(turns[place - 1])
        case "value" | "type":
            turn[step] = [ToolCall(call.name, _off(shape, dict(call.arguments), draw))]
        case "unknown function":
            turn.insert(step, [ToolCall(f"{call.name}_all", call.arguments)])
        case "unknown argument":
            turn.insert(step, [ToolCall(call.name, {**call.arguments, "verbose": True})])
        case "a look around":
            names = [tool["name"] for tool in task.tools if not tool["parameters"].get("required")]
            turn.insert(step, [ToolCall(draw.choice(names or [call.name]), {})])


def _off(shape: str, arguments: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    if not arguments:
        return {"value": 1}
    key = draw.choice(sorted(arguments))
    value = arguments[key]
    if shape == "type":
        arguments[key] = draw.choice([str(value), [value], None])
    elif isinstance(value, str):
        arguments[key] = draw.choice([f"{value}x", value.upper(), value[:-1]])
    elif isinstance(value, bool):
        arguments[key] = not value
    elif isinstance(value, int | float):
        arguments[key] = draw.choice([value + 1, float(value), -value])
    else:
        arguments[key] = [*value, *value] if isinstance(value, list) else {}
    return arguments
