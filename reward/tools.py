"""Tool calls: by the end state that they led to, or by matching the expected calls as BFCL does.

``{"kind": "tools", "success": true}`` is filled in after an episode. ``{"kind": "tools", "calls": [{"name": ...,
"arguments": {...}}, ...]}`` names the expected calls; ``accepted`` in place of ``arguments`` lists the accepted values
of each argument, where "" means that it may be left out (BFCL's possible answers). No expected call means that none may
be made, and that something must be said.

``{"kind": "bfcl_multi_turn", "expected": [[...], ...]}``: the first request's reference calls, all in one answer and in
their order (they change a world, so order counts). That is stricter than BFCL, which plays all turns in its simulators
and compares the worlds: another way there scores 0 here.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import DataError
from data_recipes.conversation import ToolCall
from reward.base import Sample


def score_tools(sample: Sample) -> float:
    """1.0 for success or for matching calls in any order, else 0.0. Raises DataError for a task with neither."""
    if "success" in sample.task:
        return float(sample.task["success"] is True)
    if "calls" not in sample.task:
        raise DataError(f"a tools task has 'success' or 'calls', not {sorted(sample.task)}")
    expected = sample.task["calls"]
    if not expected:
        return float(not sample.answer.tool_calls and bool(sample.answer.content.strip()))
    return float(matches(sample.answer.tool_calls, expected))


def score_first_turn(sample: Sample) -> float:
    """1.0 where the answer makes the first request's reference calls, in order, and no other; else 0.0."""
    calls, expected = sample.answer.tool_calls, sample.task["expected"][0]
    if not expected:
        return float(not calls and bool(sample.answer.content.strip()))
    return float(len(calls) == len(expected) and all(map(_fits, calls, expected)))


def matches(calls: Sequence[ToolCall], expected: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the calls can be paired one to one with the expected ones."""
    if len(calls) != len(expected):
        return False
    if not expected:
        return True
    return any(
        _fits(call, expected[0]) and matches([*calls[:place], *calls[place + 1 :]], expected[1:])
        for place, call in enumerate(calls)
    )


def _fits(call: ToolCall, expected: Mapping[str, Any]) -> bool:
    if call.name != expected["name"]:
        return False
    if "accepted" in expected:
        accepted: Mapping[str, Sequence[Any]] = expected["accepted"]
    else:
        accepted = {key: [value] for key, value in expected["arguments"].items()}
    given = call.arguments
    missing_ok = all(key in given or ("accepted" in expected and "" in values) for key, values in accepted.items())
    return missing_ok and all(
        key in accepted and any(_same(value, option) for option in accepted[key]) for key, value in given.items()
    )


def _same(value: Any, option: Any) -> bool:
    """Equality of values, where 2 is 2.0 but True is not 1, and texts differ neither by case nor by . , / - _ * ^ and
    spaces, as in BFCL. A dict option may list accepted values, as BFCL's do."""
    if isinstance(value, bool) or isinstance(option, bool):
        return value is option
    if isinstance(value, str) and isinstance(option, str):
        return _plain(value) == _plain(option)
    if isinstance(value, list | tuple) and isinstance(option, list | tuple):
        return len(value) == len(option) and all(_same(a, b) for a, b in zip(value, option))
    if isinstance(value, Mapping) and isinstance(option, Mapping):
        return value.keys() == option.keys() and all(
            _same(value[key], option[key])
            or (isinstance(option[key], list) and any(_same(value[key], choice) for choice in option[key]))
            for key in value
        )
    if isinstance(value, int | float) and isinstance(option, int | float):
        return value == option
    return value is None and option is None


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')
