"""Rows as people have them: every layout reads thinking tags, weights, results and nulls by the same rules."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.errors import DataError
from nanoalign.data_recipes import sources
from nanoalign.data_recipes.adapters import ADAPTERS
from nanoalign.data_recipes.calls import in_call_order
from nanoalign.data_recipes.chat import CHAT_FORMATS, chat_format
from nanoalign.data_recipes.conversation import Conversation, Message, ToolCall
from nanoalign.data_recipes.readers import BadRow, RowError
from nanoalign.data_recipes.rows import from_row, split_thinking, to_row
from nanoalign.data_recipes.selection import MixtureReport, load
from nanoalign.data_recipes.tokenize import tokenize

U = {"role": "user", "content": "2+2?"}
THOUGHT, ANSWER = "Two and two make four.", "It is 4."
SPLIT = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"


def function(name: str, *properties: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {each: {"type": "string"} for each in properties}}
    return {"name": name, "description": "", "parameters": schema}


def read(tmp_path: Path, row: Any, layout: str = "", name: str = "rows.jsonl") -> Conversation:
    """The one sample of a file with this row."""
    (tmp_path / name).write_text(json.dumps(row) + "\n")
    [conversation] = load(f"file:{tmp_path / name}{layout}").conversations
    return conversation


def fault(tmp_path: Path, row: Any, layout: str = "") -> str:
    """The error for this row, behind a line that is empty."""
    (tmp_path / "rows.jsonl").write_text("\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError) as error:
        load(f"file:{tmp_path / 'rows.jsonl'}{layout}")
    said = str(error.value)
    assert said.startswith(f"{tmp_path / 'rows.jsonl'}:2: ")
    return said


LAYOUTS: dict[str, Callable[..., dict[str, Any]]] = {
    "": lambda content, **more: {"messages": [U, {"role": "assistant", "content": content, **more}]},
    "#normal": lambda content, **more: {"messages": [U, {"role": "assistant", "content": content, **more}]},
    "#openai": lambda content, **more: {"messages": [U, {"role": "assistant", "content": content, **more}]},
    "#nemotron": lambda content, **more: {"messages": [U, {"role": "assistant", "content": content, **more}]},
    "#sharegpt": lambda content, **more: {
        "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": content, **more}]
    },
    "#alpaca": lambda content, **more: {"instruction": "2+2?", "output": content, **more},
    "#self_instruct": lambda content: {"instruction": "2+2?", "instances": [{"input": "", "output": content}]},
    "#alpaca_pair": lambda content: {"instruction": "2+2?", "chosen": content, "rejected": "5"},
    "#ultrafeedback": lambda content: {
        "chosen": [U, {"role": "assistant", "content": content}],
        "rejected": [U, {"role": "assistant", "content": "5"}],
    },
}
WITH_FIELDS = ("", "#normal", "#openai", "#nemotron")
UNSOUND = {
    "only the close": f"{THOUGHT}\n</think>\n\n{ANSWER}",
    "only the opening": f"<think>\n{THOUGHT} {ANSWER}",
    "a block in the middle": f"{ANSWER} <think>{THOUGHT}</think>",
    "two blocks": f"{SPLIT} {SPLIT}",
    "one inside": f"<think>a<think>b</think>c</think>{ANSWER}",
    "another spelling": f"<Think>{THOUGHT}</Think>{ANSWER}",
    "another format's": f"[THINK]{THOUGHT}[/THINK]{ANSWER}",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_at_the_beginning_is_the_reasoning(layout: str, tmp_path: Path) -> None:
    [_, answer] = read(tmp_path, LAYOUTS[layout](SPLIT), layout).messages
    assert answer == Message("assistant", ANSWER, THOUGHT) and answer.thinks
    [_, answer] = read(tmp_path, LAYOUTS[layout](f"<think>\n\n</think>\n\n{ANSWER}"), layout).messages
    assert answer == Message("assistant", ANSWER, "")
    [_, answer] = read(tmp_path, LAYOUTS[layout](ANSWER), layout).messages
    assert answer == Message("assistant", ANSWER)


@pytest.mark.parametrize("name", UNSOUND)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_tags_are_refused(layout: str, name: str, tmp_path: Path) -> None:
    assert "thinking tags" in fault(tmp_path, LAYOUTS[layout](UNSOUND[name]), layout)


@pytest.mark.parametrize("layout", WITH_FIELDS)
def test_an_empty_reasoning_beside_tags_changes_nothing(layout: str, tmp_path: Path) -> None:
    row = LAYOUTS[layout](SPLIT, reasoning_content="")
    assert read(tmp_path, row, layout).messages[1] == Message("assistant", ANSWER, THOUGHT)
    for content in UNSOUND.values():
        assert "thinking tags" in fault(tmp_path, LAYOUTS[layout](content, reasoning_content=""), layout)
    assert "keep one of them" in fault(tmp_path, LAYOUTS[layout](SPLIT, reasoning_content="hm"), layout)
    assert "take them out" in fault(tmp_path, LAYOUTS[layout](ANSWER, reasoning_content="a</think>b"), layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("talk", ["Close it with `</think>`.", "```xml\n<think>\n</think>\n```", "``<think>`` opens."])
def test_an_answer_may_speak_of_tags_in_code(layout: str, talk: str, tmp_path: Path) -> None:
    assert read(tmp_path, LAYOUTS[layout](talk), layout).messages[1] == Message("assistant", talk)
    thought = read(tmp_path, LAYOUTS[layout](f"<think>hm</think>{talk}"), layout).messages[1]
    assert thought == Message("assistant", talk, "hm")


def test_the_tags_of_others_are_text(tmp_path: Path) -> None:
    calls = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": "<think>"}}]}
    messages = [{"role": "system", "content": "<think>"}, {"role": "user", "content": "what is </think>?"}, calls,
                {"role": "tool", "content": "</think>"}, {"role": "assistant", "content": "4"}]  # fmt: skip
    read_back = read(tmp_path, {"messages": messages, "tools": [function("f", "a")]}).messages
    assert [message.content for message in read_back] == ["<think>", "what is </think>?", "", "</think>", "4"]


def test_a_row_that_says_off_may_not_think(tmp_path: Path) -> None:
    off = {"reasoning": "off"}
    assert read(tmp_path, LAYOUTS["#nemotron"]("4") | off, "#nemotron").messages[1] == Message("assistant", "4", "")
    assert "declares its reasoning off" in fault(tmp_path, LAYOUTS["#nemotron"](SPLIT) | off, "#nemotron")


def test_a_rejected_answer_is_read_by_the_same_rule(tmp_path: Path) -> None:
    row = {"instruction": "2+2?", "chosen": SPLIT, "rejected": "<think>hm</think>5"}
    task = read(tmp_path, row, "#alpaca_pair").task
    assert task == {"kind": "preference", "rejected": "5", "rejected_reasoning": "hm"}
    assert "the rejected answer" in fault(tmp_path, row | {"rejected": "hm</think>5"}, "#alpaca_pair")


@given(st.lists(st.sampled_from(["<think>", "</think>", "`", "\n", "a", " ", "```\n", "[THINK]"]), max_size=12))
def test_no_answer_that_is_read_holds_a_bare_tag(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        content, reasoning = split_thinking(text, None, "message 1")
    except RowError as error:
        assert error.kind == "thinking tags" and "message 1" in error.reason
        return
    assert "think>" not in content or "`" in content
    assert not reasoning or "</think>" not in reasoning
    assert split_thinking(content, reasoning, "again") == (content, reasoning)


@pytest.mark.parametrize("piece", ["`", "```\n", "<", "< ", "`a", "<think", "~~~\n`", "</think>", "\n\t"])
def test_the_rule_takes_linear_time(piece: str) -> None:
    """Bounded by size alone: a quadratic scan of these would take hours."""
    for text in (piece * 300_000, f"<think>{piece * 300_000}", f"<{' ' * 300_000}think>"):
        with suppress(RowError):
            split_thinking(text + "</think>", None, "message 1")


def conversation(weight: int | None) -> dict[str, Any]:
    answers = [{"role": "assistant", "content": text} for text in ("No.", "Yes.")]
    return {"messages": [U, answers[0] | ({} if weight is None else {"weight": weight}), U, answers[1]]}


@pytest.mark.parametrize("name", CHAT_FORMATS)
@pytest.mark.parametrize("layout", ["", "#openai", "#nemotron"])
def test_weight_0_is_out_of_the_loss(layout: str, name: str, tmp_path: Path) -> None:
    weighed, plain = (read(tmp_path, conversation(weight), layout) for weight in (0, None))
    trained = ["".join(span.text for span in spans if span.trained) for spans in chat_format(name).examples(weighed)]
    assert sum("No." in text for text in trained) == 0 and sum("Yes." in text for text in trained) == 1
    texts, all_texts = (
        ["".join(span.text for span in spans) for spans in chat_format(name).examples(each)]
        for each in (weighed, plain)
    )
    assert set(texts) <= set(all_texts) and texts[-1] == all_texts[-1]  # the same text, with another mask
    assert from_row(to_row(weighed)) == weighed != plain
    assert repr(weighed.messages) == repr(plain.messages)  # names of samples in prepared sets stay


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_weight_0_changes_no_token(name: str, superword: Any, tmp_path: Path) -> None:
    """The mask alone differs, so nothing that is trained sees another context."""
    weighed, plain = (read(tmp_path, conversation(weight)) for weight in (0, None))
    by_ids = {tuple(each.input_ids): each.loss_mask for each in tokenize(plain, chat_format(name), superword)}
    for example in tokenize(weighed, chat_format(name), superword):
        mask = by_ids[tuple(example.input_ids)]
        assert all(a <= b for a, b in zip(example.loss_mask, mask, strict=True))
        assert example.loss_mask == mask or (sum(example.loss_mask) < sum(mask) and example.loss_mask[-1] == mask[-1])


def test_weight_0_in_sharegpt_and_alpaca(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "No.", "weight": 0},
             {"from": "human", "value": "q"}, {"from": "gpt", "value": "Yes.", "weight": 1}]  # fmt: skip
    messages = read(tmp_path, {"conversations": turns}, "#sharegpt").messages
    assert [message.trained for message in messages if message.role == "assistant"] == [False, True]
    assert "nothing to train" in fault(tmp_path, LAYOUTS["#alpaca"]("4", weight=0), "#alpaca")


def calling(ids: bool, *results: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {"type": "function", "function": {"name": name, "arguments": "{}"}} | ({"id": f"id-{name}"} if ids else {})
        for name in ("a", "b")
    ]
    tools = [{"type": "function", "function": function(name)} for name in ("a", "b")]
    end = {"role": "assistant", "content": "done"}
    return {
        "messages": [U, {"role": "assistant", "content": None, "tool_calls": calls}, *results, end],
        "tools": tools,
    }


def result(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **more}


@pytest.mark.parametrize("layout", ["", "#openai"])
def test_results_are_matched_by_id(layout: str, tmp_path: Path) -> None:
    by_id = [result("from b", tool_call_id="id-b"), result("from a", tool_call_id="id-a")]
    by_name = [result("from b", name="b"), result("from a", name="a")]
    for row in (calling(True, *by_id), calling(True, *by_id[::-1]), calling(False, *by_name)):
        found = [message.content for message in read(tmp_path, row, layout).messages if message.role == "tool"]
        assert found == ["from a", "from b"]
    assert len(read(tmp_path, calling(False, result("both")), layout).messages) == 4


@pytest.mark.parametrize(
    ("ids", "results", "message"),
    [
        (True, [result("1", tool_call_id="id-a")], "0 results for message 1's call 'id-b'"),
        (True, [U], "calls a, but no result follows"),
        (True, [result("1", tool_call_id="id-a")] * 2, "2 results for message 1's call 'id-a'"),
        (True, [result("1", tool_call_id="id-a"), result("2", tool_call_id="id-c")], "message 3 answers 'id-c'"),
        (True, [result("1", tool_call_id="id-a"), result("2")], "message 3 answers None"),
        (False, [result("1", tool_call_id="id-a"), result("2", tool_call_id="id-b")], "calls: none"),
        (False, [result("1"), result("2"), result("3")], "makes 2 calls, but 3 results"),
        (False, [result("1", name="a"), result("2", name="c")], "calls b, but the results are of a, c"),
    ],
)
def test_results_that_belong_to_no_call_are_refused(
    ids: bool, results: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    said = fault(tmp_path, calling(ids, *results))
    assert "wrong result: " in said and message in said


@given(st.permutations(range(5)))
def test_any_order_of_results_gives_that_of_the_calls(order: list[int]) -> None:
    calls = [{"id": f"c{number}", "name": "f"} for number in range(5)]
    raw = [{"tool_calls": calls}, *({"tool_call_id": f"c{number}"} for number in order)]
    messages = [Message("assistant", "", tool_calls=(ToolCall("f", {}),) * 5)]
    messages += [Message("tool", str(number)) for number in order]
    assert [message.content for message in in_call_order(messages, raw)[1:]] == list("01234")


def test_a_sharegpt_call_may_be_thought_over(tmp_path: Path) -> None:
    def row(value: str) -> dict[str, Any]:
        turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": value}]
        return {"conversations": turns, "tools": json.dumps([function("f", "a")])}

    call = '{"name": "f", "arguments": {"a": "1"}}'
    expected = Message("assistant", "", THOUGHT, (ToolCall("f", {"a": "1"}),))
    for layout in ("", "#sharegpt"):
        assert read(tmp_path, row(f"<think>\n{THOUGHT}\n</think>\n{call}"), layout).messages[1] == expected
        assert "bad JSON: turn 1 (function_call): Expecting" in fault(tmp_path, row(call[:-1]), layout)
        assert "turn 1 (function_call): </think> appears" in fault(tmp_path, row(f"</think>{call}"), layout)


@pytest.mark.parametrize("arguments", ["", " \n", "{}", None, {}])
def test_empty_arguments_are_none(arguments: Any, tmp_path: Path) -> None:
    for nested in (True, False):
        call: dict[str, Any] = {"name": "f", "arguments": arguments}
        messages = [U, {"role": "assistant", "content": "", "tool_calls": [{"function": call} if nested else call]}]
        row = {"messages": messages, "tools": [function("f")]}
        assert read(tmp_path, row).messages[1].tool_calls == (ToolCall("f", {}),)


def test_arguments_that_are_no_json_name_their_call(tmp_path: Path) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": "{a: 1}"}}
    row = {"messages": [U, {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": [function("f")]}
    assert "message 1's arguments of f: Expecting" in fault(tmp_path, row)


def test_nulls_of_a_union_of_keys_go_and_those_that_are_meant_stay(tmp_path: Path) -> None:
    tool = function("f", "x")
    tool["parameters"]["properties"] |= {"expr": None, "y": {"type": "string", "enum": None, "default": None}}
    call = {"name": "f", "arguments": {"x": None, "expr": None, "z": [1, None]}}
    row = {"messages": [U, {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": [tool]}
    sample = read(tmp_path, row)
    properties = sample.tools[0]["parameters"]["properties"]
    assert properties == {"x": {"type": "string"}, "y": {"type": "string", "default": None}}
    assert sample.messages[1].tool_calls[0].arguments == {"x": None, "z": [1, None]}
    nested = {"messages": row["messages"], "tools": [{"type": "function", "function": tool}]}
    assert read(tmp_path, nested) == sample


def test_openai_parts_are_read_or_named(tmp_path: Path) -> None:
    def row(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
        answer = {"role": "assistant", "content": list(parts) or ANSWER, **more}
        return {"messages": [U, answer], "tools": [function("f", "a")]}

    text = {"type": "text", "text": ANSWER}
    thought = Message("assistant", ANSWER, THOUGHT)
    for known in (
        row(reasoning=THOUGHT),
        row(thinking=THOUGHT),
        row({"type": "thinking", "thinking": THOUGHT, "signature": "x"}, text),
        row({"type": "reasoning", "text": THOUGHT}, text),
        row(text, reasoning_content=THOUGHT, reasoning=THOUGHT, refusal=None, annotations=[]),
    ):
        for layout in ("", "#openai"):
            if layout or "reasoning_content" not in known["messages"][1]:
                assert read(tmp_path, known, layout).messages[1] == thought
    called = read(tmp_path, row({"type": "tool_use", "id": "1", "name": "f", "input": {"a": "b"}})).messages[1]
    assert called == Message("assistant", "", None, (ToolCall("f", {"a": "b"}),))
    for refused, named in (
        (row({"type": "image_url", "image_url": {"url": "x"}}, text), "part of type 'image_url'"),
        (row(text, {"type": "thinking", "thinking": THOUGHT}), "thinks after it has answered"),
        (row({"type": "redacted_thinking", "data": "x"}, text), "part of type 'redacted_thinking'"),
        (row({"type": "text", "text": ANSWER, "emphasis": "b"}), "'emphasis'"),
        (row({"type": "text", "text": ANSWER, "input": {"a": 1}}), "'input'"),
        (
            row({"type": "tool_result", "tool_use_id": "1", "content": [{"type": "thinking", "thinking": "a"}]}),
            "more than text",
        ),
        (row(audio={"id": "x"}), "'audio'"),
        (row(reasoning="a", thinking="b"), "different reasonings"),
        (row() | {"images": ["x.png"]}, "'images'"),
    ):
        assert named in fault(tmp_path, refused, "#openai")


def test_anthropics_results_become_messages(tmp_path: Path) -> None:
    messages = [
        U,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}},
                                          {"type": "tool_use", "id": "2", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "2", "content": "two"},
                                     {"type": "tool_result", "tool_use_id": "1",
                                      "content": [{"type": "text", "text": "one"}]},
                                     {"type": "text", "text": "go on"}]},
        {"role": "assistant", "content": "done"},
    ]  # fmt: skip
    tools = [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]
    found = read(tmp_path, {"system": "Be brief.", "messages": messages, "tools": tools}).messages
    assert [(message.role, message.content) for message in found] == [
        ("system", "Be brief."), ("user", "2+2?"), ("assistant", ""), ("tool", "one"), ("tool", "two"),
        ("user", "go on"), ("assistant", "done"),
    ]  # fmt: skip


def test_each_row_is_read_in_the_layout_that_it_has(tmp_path: Path) -> None:
    rows = [LAYOUTS[layout]("4") for layout in ("#normal", "#sharegpt", "#alpaca", "#alpaca_pair")]
    rows.append(calling(True, result("1", tool_call_id="id-a"), result("2", tool_call_id="id-b")))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(f"file:{tmp_path / 'rows.jsonl'}").report.samples == 5
    assert "#openai, #sharegpt" in fault(tmp_path, {"dialogue": []})


@pytest.mark.parametrize("layout", ["", "#openai", "#normal"])
def test_columns_of_json_text_are_read(layout: str, tmp_path: Path) -> None:
    row = calling(True, result("1", tool_call_id="id-b"), result("2", tool_call_id="id-a"))
    normal = to_row(read(tmp_path, row))
    columns = [{key: json.dumps((normal if layout == "#normal" else row)[key]) for key in ("messages", "tools")}]
    pq.write_table(pa.Table.from_pylist(columns), tmp_path / "rows.parquet")
    [found] = load(f"file:{tmp_path / 'rows.parquet'}{layout}").conversations
    assert found.messages == read(tmp_path, row).messages and len(found.tools) == 2
    each = [{**columns[0], "tools": [json.dumps(tool) for tool in row["tools"]]}]
    if layout == "#openai":
        pq.write_table(pa.Table.from_pylist(each), tmp_path / "rows.parquet")
        assert load(f"file:{tmp_path / 'rows.parquet'}{layout}").conversations == [found]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": "[{", "tools": "[]"}))
    [bad] = sources.read(f"file:{tmp_path / 'rows.jsonl'}{layout}")
    assert isinstance(bad, BadRow) and bad.kind in ("bad JSON", "no messages")


def test_what_is_not_read_of_a_row_is_counted(tmp_path: Path) -> None:
    tool = {"type": "function", "function": function("f") | {"returns": "text"}}
    rows = [LAYOUTS["#openai"]("4") | {"tools": [tool], "uuid": "1"}, LAYOUTS["#alpaca"]("4") | {"text": "all"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = load(f"file:{tmp_path / 'rows.jsonl'}").report
    counted = {"a tool's key 'returns'": 1, "the row's key 'uuid'": 1, "the row's key 'text'": 1}
    assert dict(report.parts) == MixtureReport([report]).as_dict()["not_read"] == counted


def test_alpaca_with_a_history(tmp_path: Path) -> None:
    row = {"instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"]]}
    assert [message.content for message in read(tmp_path, row).messages] == list("sabcd")


def test_bfcl_rows_load_as_what_they_are(tmp_path: Path) -> None:
    def row(id: str, **more: Any) -> dict[str, Any]:
        question = [[{"role": "user", "content": "Hi."}, {"role": "user", "content": "Find it."}]]
        return {"id": id, "question": question, "function": [function("f")], **more}

    for id, task in (
        ("irrelevance_7", {"calls": []}),
        ("live_irrelevance_1-0-0", {"calls": []}),
        ("live_relevance_3-3-0", {"some_call": True}),
    ):
        sample = read(tmp_path, row(id), "#bfcl")
        assert sample.task == {"kind": "tools", **task}
        assert sample.messages == (Message("user", "Hi.\n\nFind it."),)
    assert "no possible answer is joined with 'simple_1'" in fault(tmp_path, row("simple_1"), "#bfcl")


PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = [
    (layout, row)
    for layout, rows in re.findall(r"```json #(\w+)\n(.*?)```", PAGE, re.DOTALL)
    for row in rows.splitlines()
]


def test_the_page_shows_every_layout() -> None:
    assert {layout for layout, _ in EXAMPLES} == ADAPTERS.keys() - {"recognised"}


@pytest.mark.parametrize(("layout", "row"), EXAMPLES)
def test_every_example_of_the_page_is_read(layout: str, row: str, tmp_path: Path) -> None:
    sample = read(tmp_path, json.loads(row), f"#{layout}")
    if layout in ("normal", "openai", "sharegpt", "alpaca", "sharegpt_pair", "alpaca_pair"):
        assert replace(read(tmp_path, json.loads(row)), source="") == replace(sample, source="")
        answers = [message for message in sample.messages if message.role == "assistant"]
        assert layout.endswith("_pair") or any(message.reasoning for message in answers) or "weight" in row
    if layout == "openai" and "c2" in row:
        assert [m.content for m in sample.messages if m.role == "tool"] == ["31 degrees", "-2 degrees"]
