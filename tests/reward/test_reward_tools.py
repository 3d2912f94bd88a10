import json
import os
from pathlib import Path

import pytest

from common.errors import DataError
from data_recipes.conversation import Answer, ToolCall
from reward import Sample
from reward.tools import matches, score_first_turn, score_tools

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
    from data_recipes.sources import load

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


BFCL = DATA / "bfcl_v4" / "possible_answer"


@pytest.mark.skipif(not BFCL.is_dir(), reason=f"no BFCL answers under {DATA}")
@pytest.mark.parametrize("name", ["simple_python", "multiple", "parallel"])
def test_bfcl_answers_match_themselves_and_not_each_other(name: str) -> None:
    rows = [json.loads(line)["ground_truth"] for line in (BFCL / f"BFCL_v4_{name}.json").open(encoding="utf-8")]
    expected = [[{"name": next(iter(call)), "accepted": next(iter(call.values()))} for call in row] for row in rows]
    made = [tuple(ToolCall(call["name"], _first(call["accepted"])) for call in row) for row in expected]
    assert all(matches(answer, row) for answer, row in zip(made, expected, strict=True))
    assert sum(matches(answer, row) for answer, row in zip(made[1:], expected, strict=False)) < 3


def _first(accepted: dict) -> dict:
    """The first accepted value of each argument, inner dicts too, without what may be left out."""
    chosen = {key: next((value for value in values if value != ""), "") for key, values in accepted.items()}
    return {
        key: _first(value) if isinstance(value, dict) else value
        for key, value in chosen.items()
        if accepted[key] != [""]
    }
