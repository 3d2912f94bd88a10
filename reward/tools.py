"""Tool calls: by the end state that they led to, or by matching the expected calls as BFCL does.

``{"kind": "tools", "success": true}`` is filled in after an episode. ``{"kind": "tools", "calls": [{"name": ...,
"arguments": {...}}, ...]}`` names the expected calls; ``accepted`` in place of ``arguments`` lists the accepted values
of each argument, where "" means that it may be left out (BFCL's possible answers); an object among them lists accepted
values of its keys in the same way. No expected call means that none may be made, and that there must be some text.
``{"kind": "tools", "some_call": true}``: any call is right, as in BFCL's relevance rows.

``{"kind": "bfcl_multi_turn", "expected": [[...], ...]}``: the first request's reference calls, all in one answer and in
their order (they change a world, so order counts). That is stricter than BFCL, which plays all turns in its simulators
and compares the worlds: another way there scores 0 here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.conversation import ToolCall
from nanoalign.reward.base import Sample
from nanoalign.reward.matching import perfect_matching


def score_tools(sample: Sample) -> float:
    """1.0 for success or for matching calls in any order, else 0.0. Raises DataError for a task with neither."""
    if "success" in sample.task:
        return float(sample.task["success"] is True)
    if sample.task.get("some_call"):
        return float(bool(sample.answer.tool_calls))
    if "calls" not in sample.task:
        raise DataError(f"a tools task has 'success', 'calls' or 'some_call', not {sorted(sample.task)}")
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
    """Whether the calls can be paired one to one with the expected ones, found by augmenting paths: the work is
    polynomial in the number of expected calls, whatever was called."""
    if len(calls) != len(expected):
        return False
    fitting = [[place for place, wanted in enumerate(expected) if _fits(call, wanted)] for call in calls]
    return perfect_matching(fitting)


def _fits(call: ToolCall, expected: Mapping[str, Any]) -> bool:
    if call.name != expected["name"]:
        return False
    if "accepted" in expected:
        return _is_accepted_object(call.arguments, expected["accepted"])
    return _same(call.arguments, expected["arguments"])


def _is_accepted_object(given: Mapping[str, Any], accepted: Mapping[str, Any]) -> bool:
    """Whether each key has one of its accepted values; a key may be left out where "" is among them."""
    return all(key in given or "" in _options(values) for key, values in accepted.items()) and all(
        key in accepted and any(_is_accepted(value, option) for option in _options(accepted[key]))
        for key, value in given.items()
    )


def _options(values: Any) -> Sequence[Any]:
    """The accepted values in a list of them. One that accepts nothing, so that no call could be right (two rows of
    BFCL's live_simple), means the empty list that its writers meant."""
    return (values or [[]]) if isinstance(values, list | tuple) else [values]


def _is_accepted(value: Any, option: Any) -> bool:
    """An accepted value that is an object, at any depth, lists accepted values key by key, as the arguments do."""
    if isinstance(option, Mapping):
        return isinstance(value, Mapping) and _is_accepted_object(value, option)
    return _same(value, option, _is_accepted)


def _same(value: Any, option: Any, inner: Callable[[Any, Any], bool] | None = None) -> bool:
    """Equality of values, where 2 is 2.0 but True is not 1, and texts differ neither by case nor by . , / - _ * ^ and
    spaces, as in BFCL, but where they have nothing else ("*" is not "/"). ``inner`` compares the elements of lists, if
    not this. It goes no deeper than ``option``, which is the task's: no nesting of an answer's exhausts the stack."""
    inner = inner or _same
    if isinstance(value, bool) or isinstance(option, bool):
        return value is option
    if isinstance(value, str) and isinstance(option, str):
        return _plain(value) == (plain := _plain(option)) and (plain != "" or value.strip() == option.strip())
    if isinstance(value, list | tuple) and isinstance(option, list | tuple):
        return len(value) == len(option) and all(inner(a, b) for a, b in zip(value, option))
    if isinstance(value, Mapping) and isinstance(option, Mapping):
        return value.keys() == option.keys() and all(inner(value[key], option[key]) for key in value)
    if isinstance(value, int | float) and isinstance(option, int | float):
        return value == option
    return value is None and option is None


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')
