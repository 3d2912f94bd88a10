import json
import os
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.conversation import Answer, ToolCall
from nanoalign.reward import Sample
from nanoalign.reward.tools import matches, score_first_turn, score_tools

DATA = Path(os.environ.get("NANOALIGN_DATA", Path(__file__).parents[3] / "shared" / "data"))
TWO = [
    {"name": "find", "arguments": {"q": "demo"}},
    {"name": "move", "arguments": {"id": "e1", "day": "Fri", "hours": [9, 10.0], "note": None}},
]


def calls(*pairs: tuple[str, dict]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(name, arguments) for name, arguments in pairs)


def test_calls_match_in_any_order_with_equal_values() -> None:
    find, move = ("find", {"q": "Demo"}), ("move", {"day": "fri", "id": "e1", "hours": [9.0, 10], "note": None})
    assert matches(calls(find, move), TWO)
    assert matches(calls(move, find), TWO)
    assert not matches(calls(find), TWO)
    assert not matches(calls(find, move, find), TWO)
    assert not matches(calls(find, find), TWO)
    for wrong in ({"id": "e2"}, {"day": 5}, {"hours": [9]}, {"note": ""}, {"hours": [10, 9]}, {"more": 1}):
        assert not matches(calls(find, ("move", {**move[1], **wrong})), TWO), wrong
    assert not matches(calls(("find", {}), move), TWO)


def test_the_first_request_of_several_wants_its_calls_in_order() -> None:
    def score(expected: list, made: tuple[ToolCall, ...], said: str = "") -> float:
        answer = Answer(said, tool_calls=made)
        return score_first_turn(Sample((), answer, {"kind": "bfcl_multi_turn", "expected": [expected, []]}))

    find, move = calls(("find", {"q": "demo"})), calls(("move", TWO[1]["arguments"]))
    assert score(TWO, find + move) == 1.0
    for wrong in (move + find, find, find + move + find, ()):
        assert score(TWO, wrong) == 0.0
    assert score([], (), "Which file?") == 1.0
    assert score([], ()) == score([], find, "So.") == 0.0


@pytest.mark.skipif(not (DATA / "bfcl_v4").is_dir(), reason="no mirrored BFCL here")
def test_bfcls_own_first_turns_earn_everything() -> None:
    from nanoalign.data_recipes.selection import load

    for row in load("bfcl-multi-turn", 20, "train", DATA, 0).conversations:
        made = tuple(ToolCall(call["name"], call["arguments"]) for call in row.task["expected"][0])
        answer = Answer("", tool_calls=made)
        assert score_first_turn(Sample(row.messages, answer, row.task)) == float(bool(made))


def test_true_is_not_one() -> None:
    assert not matches(calls(("f", {"x": True})), [{"name": "f", "arguments": {"x": 1}}])
    assert not matches(calls(("f", {"x": 1})), [{"name": "f", "arguments": {"x": True}}])


def test_accepted_values_and_optional_arguments() -> None:
    expected = [{"name": "f", "accepted": {"city": ["New York, NY", "New York"], "unit": ["celsius", ""]}}]
    assert matches(calls(("f", {"city": "new york"})), expected)
    assert matches(calls(("f", {"city": "New York NY", "unit": "Celsius"})), expected)
    assert not matches(calls(("f", {"city": "York"})), expected)
    assert not matches(calls(("f", {"city": "New York", "unit": "kelvin"})), expected)
    assert not matches(calls(("f", {"unit": "celsius"})), expected)


def test_scores() -> None:
    def score(task: dict, content: str = "", made: tuple[ToolCall, ...] = ()) -> float:
        return score_tools(Sample((), Answer(content, tool_calls=made), {"kind": "tools", **task}))

    assert score({"some_call": True}, made=calls(("f", {}))) == 1.0
    assert score({"some_call": True}, "No tool fits.") == 0.0

    assert score({"success": True}) == 1.0
    assert score({"success": False, "calls": []}, "Hi") == 0.0
    assert score({"success": "yes"}) == 0.0
    assert score({"calls": TWO[:1]}, made=calls(("find", {"q": "demo"}))) == 1.0
    assert score({"calls": TWO[:1]}, '<TOOLCALL>[{"name": "find"}]</TOOLCALL>') == 0.0
    assert score({"calls": []}, "No tool fits.") == 1.0
    assert score({"calls": []}) == 0.0
    assert score({"calls": []}, "Hm", calls(("find", {"q": "demo"}))) == 0.0
    with pytest.raises(DataError, match="success"):
        score({})


PREFERENCES = {"size": ["large"], "temperature": ["hot", ""], "sweet_level": [""], "milk_type": ["coconut milk"]}
DRINK = [{"name": "change_drink", "accepted": {"drink_id": ["latte"], "new_preferences": [PREFERENCES]}}]
"""Built as in BFCL's live_parallel_multiple_0-0-0."""


@pytest.mark.parametrize(
    ("preferences", "right"),
    [
        ({"size": "large", "milk_type": "coconut milk"}, True),
        ({"size": "large", "milk_type": "coconut milk", "temperature": "hot"}, True),
        (PREFERENCES, False),
        ({"size": ["large"], "milk_type": ["coconut milk"]}, False),
        ({"size": "large"}, False),
        ({"size": "large", "milk_type": "coconut milk", "temperature": "cold"}, False),
        ({"size": "large", "milk_type": "coconut milk", "colour": "white"}, False),
        ([PREFERENCES], False),
        ("large", False),
    ],
)
def test_an_object_of_accepted_values(preferences: Any, right: bool) -> None:
    assert matches(calls(("change_drink", {"drink_id": "Latte", "new_preferences": preferences})), DRINK) is right


def test_objects_in_lists_and_in_objects_list_accepted_values_too() -> None:
    expected = [{"name": "f", "accepted": {"rows": [[{"age": [18, ""], "of": [{"city": ["Rome", ""]}]}]]}}]
    for right in ({"age": 18, "of": {"city": "rome"}}, {"of": {}}, {"age": 18.0, "of": {}}):
        assert matches(calls(("f", {"rows": [right]})), expected), right
    for wrong in ({"age": [18, ""], "of": {}}, {"of": {"city": ["Rome", ""]}}, {"of": [{}]}, {"age": 18}):
        assert not matches(calls(("f", {"rows": [wrong]})), expected), wrong
    literal = [{"name": "f", "arguments": {"o": {"a": [1, 2]}}}]
    assert matches(calls(("f", {"o": {"a": [1, 2]}})), literal)
    assert not matches(calls(("f", {"o": {"a": 1}})), literal)


def test_texts_of_signs_alone_are_equal_to_themselves_only() -> None:
    operator = [{"name": "f", "arguments": {"by": "*"}}]
    assert matches(calls(("f", {"by": " *"})), operator)
    for wrong in ("/", "-", "", "^", "**"):
        assert not matches(calls(("f", {"by": wrong})), operator), wrong


class Counted(dict):
    """Arguments that count how often they are looked into."""

    looks = 0

    def items(self) -> Any:
        Counted.looks += 1
        return super().items()

    def keys(self) -> Any:
        Counted.looks += 1
        return super().keys()


def test_equal_calls_of_which_one_is_wrong_are_no_search() -> None:
    expected = [{"name": "f", "accepted": {"x": [1]}}] * 12
    made = [ToolCall("f", Counted(x=1))] * 11 + [ToolCall("f", Counted(x=2))]
    Counted.looks = 0
    assert not matches(made, expected)
    assert Counted.looks <= 2 * len(made) ** 2


@given(st.data())
def test_calls_match_where_some_order_of_them_fits(data: st.DataObject) -> None:
    """Against the definition: a permutation under which each call fits."""
    accepted = data.draw(st.lists(st.sets(st.integers(0, 3), min_size=1), max_size=5))
    values = data.draw(st.lists(st.integers(0, 3), max_size=5))
    expected = [{"name": "f", "accepted": {"x": sorted(options)}} for options in accepted]
    fits = len(values) == len(accepted) and any(
        all(value in options for value, options in zip(order, accepted, strict=True)) for order in permutations(values)
    )
    assert matches(calls(*(("f", {"x": value}) for value in values)), expected) is fits


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), json_values))
def test_no_arguments_raise(arguments: dict[str, Any]) -> None:
    for expected in (DRINK, TWO[:1], [{"name": "f", "arguments": {"a": {"b": [1]}}}]):
        assert matches(calls((expected[0]["name"], arguments)), expected) in (True, False)
    assert matches(calls(("f", arguments)), [{"name": "f", "arguments": arguments}]) or "nan" in str(arguments)


def test_no_depth_or_size_raises() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, {"size": deep}, 10**5000, {"size": "l" * 10**6}, float("nan"), "\ud800"):
        assert not matches(calls(("change_drink", {"drink_id": "latte", "new_preferences": value})), DRINK)


BFCL = DATA / "bfcl_v4" / "possible_answer"


@pytest.mark.skipif(not BFCL.is_dir(), reason=f"no BFCL answers under {DATA}")
@pytest.mark.parametrize("name", ["simple_python", "multiple", "parallel", "live_simple"])
def test_bfcl_answers_match_themselves_and_nothing_else(name: str) -> None:
    rows = [json.loads(line)["ground_truth"] for line in (BFCL / f"BFCL_v4_{name}.json").open(encoding="utf-8")]
    expected = [[{"name": next(iter(call)), "accepted": next(iter(call.values()))} for call in row] for row in rows]
    made = [[ToolCall(call["name"], _chosen(call["accepted"])) for call in row] for row in expected]
    assert all(matches(answer, row) for answer, row in zip(made, expected, strict=True))
    least = [[ToolCall(call["name"], _chosen(call["accepted"], least=True)) for call in row] for row in expected]
    assert all(matches(answer, row) for answer, row in zip(least, expected, strict=True))
    assert sum(matches(answer, row) for answer, row in zip(made[1:], expected, strict=False)) <= len(rows) // 40
    for answer, row in zip(made, expected, strict=True):
        for place, call in enumerate(answer):
            for wrong in _perturbed(call.arguments):
                others = [*answer[:place], ToolCall(call.name, wrong), *answer[place + 1 :]]
                assert not matches(others, row), (row, wrong)


def _chosen(accepted: dict[str, Any], least: bool = False) -> dict[str, Any]:
    """The first accepted value of each argument, inner objects too, or none (``least``) where it may be left out."""
    filled = {key: [value for value in values or [[]] if value != ""] for key, values in accepted.items()}
    return {key: _plain_value(values[0], least) for key, values in filled.items()
            if values and not (least and "" in accepted[key])}  # fmt: skip


def _plain_value(value: Any, least: bool) -> Any:
    if isinstance(value, dict):
        return _chosen(value, least)
    return [_plain_value(each, least) for each in value] if isinstance(value, list) else value


def _perturbed(value: Any) -> Iterator[Any]:
    """The value with one thing changed that no possible answer allows."""
    if isinstance(value, dict):
        yield {**value, "no such key": 1}
        for key in value:
            yield from ({**value, key: wrong} for wrong in _perturbed(value[key]))
    elif isinstance(value, list):
        yield [*value, "zzzz"]
        for place, each in enumerate(value):
            yield from ([*value[:place], wrong, *value[place + 1 :]] for wrong in _perturbed(each))
    else:
        yield [value]
        yield {"value": value}
        yield f"{value} zzzz"
        if isinstance(value, int | float):
            yield value + 917.25
