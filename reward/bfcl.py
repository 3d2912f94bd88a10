"""BFCL's own verdict on the calls of one turn (Python categories), as its AST checker gives it.

To measure with: its verdict equals the benchmark's, quirks included; ``tools`` (reward/tools.py) is the one to train
on. The rule, from the benchmark's description and the behaviour of its checker (bfcl-eval 2026.3.23): a call names an
expected function, and has all required parameters and no other than documented ones with possible answers. Each value
is of the documented type (an int passes for a float, no other type for another) or of the possible answers' own, and
is one of these, texts compared without case, spaces and ``,./-_*^``. A parameter may be left out where "" is among its
possible answers.

``{"kind": "bfcl", "category": ..., "functions": [...], "possible": [{name: {parameter: [values]}}, ...]}``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nanoalign.data_recipes.conversation import ToolCall
from nanoalign.reward.base import Sample

TYPES: dict[str, type] = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
    "any": str,
}  # fmt: skip
"""BFCL's names of types."""


def score_bfcl(sample: Sample) -> float:
    """1.0 where BFCL counts the answer as right, else 0.0."""
    calls, category = sample.answer.tool_calls, sample.task["category"]
    if category.endswith("irrelevance"):
        return float(not calls)
    if category.endswith("relevance"):
        return float(bool(calls))
    return float(right(sample.task["functions"], calls, sample.task["possible"]))


def right(
    functions: Sequence[Mapping[str, Any]], calls: Sequence[ToolCall], possible: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether the calls are the possible ones, in any order: each possible call takes the first call that fits it."""
    if len(calls) != len(possible):
        return False
    left = list(calls)
    for wanted in possible:
        [(name, accepted)] = wanted.items()
        function = next((each for each in functions if each["name"] == name), functions[0])
        found = next((place for place, call in enumerate(left) if _fits(call, function, accepted)), None)
        if found is None:
            return False
        del left[found]
    return True


def _fits(call: ToolCall, function: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]]) -> bool:
    parameters, given = function["parameters"]["properties"], call.arguments
    if call.name != function["name"] or any(name not in given for name in function["parameters"].get("required", ())):
        return False
    if any(name not in given and "" not in values for name, values in accepted.items()):
        return False
    return all(
        name in parameters and name in accepted and _is_accepted(value, parameters[name], accepted[name])
        for name, value in given.items()
    )


def _is_accepted(given: Any, parameter: Mapping[str, Any], accepted: Sequence[Any]) -> bool:
    wanted, value = TYPES.get(parameter["type"]), given
    nested = None
    if parameter["type"] in ("array", "tuple"):
        nested = TYPES.get(parameter.get("items", {}).get("type", ""))
    if parameter["type"] == "float" and type(value) is int and abs(value) < 2**1000:
        value = float(value)
    typed = type(value) is wanted and (nested is None or _holds(given, nested, accepted))
    if not typed and (type(value) is wanted or type(value) is not _type_of(accepted)):
        return False
    if not typed or _type_of(accepted) not in (None, wanted):  # a variable's name in place of a value, say
        return value in accepted
    if wanted is dict:
        return any(_is_object(value, option) for option in accepted)
    if wanted is list and nested is dict:
        return any(_are_objects(value, options) for options in accepted)
    if wanted is str:
        return _plain(value) in [_plain(option) for option in accepted if isinstance(option, str)]
    if wanted is list:
        return _plain_each(value) in [_plain_each(option) for option in accepted if isinstance(option, list | str)]
    return value in accepted


def _type_of(accepted: Sequence[Any]) -> type | None:
    return next((type(value) for value in accepted if value != ""), None)


def _holds(values: Sequence[Any], nested: type, accepted: Sequence[Any]) -> bool:
    """Each value is of the nested type, or of that of one option's first value. An option that is no list says
    nothing about types."""
    return any(
        not isinstance(option, list) or all(type(value) in (nested, _type_of(option)) for value in values)
        for option in accepted
    )


def _is_object(given: Any, option: Any) -> bool:
    """Key by key; values that are objects or lists are compared as they are."""
    if not isinstance(given, dict) or not isinstance(option, Mapping):
        return False
    return all(
        key in option and _plain_text(value) in [_plain_text(each) for each in option[key]]
        for key, value in given.items()
    ) and all(key in given or "" in values for key, values in option.items())


def _are_objects(given: Sequence[Any], options: Any) -> bool:
    return len(given) == len(options) and all(map(_is_object, given, options))


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def _plain_text(value: Any) -> Any:
    return _plain(value) if isinstance(value, str) else value


def _plain_each(values: Sequence[Any]) -> list[Any]:
    return [_plain_text(value) for value in values]
