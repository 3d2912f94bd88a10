"""A hundred malformed inputs: each is named by file and line with its reason, and costs no sound row its place."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.readers import BadRow
from nanoalign.data_recipes.selection import load
from nanoalign.data_recipes.sources import read

U = {"role": "user", "content": "2+2?"}
A = {"role": "assistant", "content": "4"}
S = {"role": "system", "content": "Be brief."}
T = {"role": "tool", "content": "4"}
TOOL = {"name": "add", "description": "Adds", "parameters": {"type": "object", "properties": {}}}
GOOD = {"messages": [U, A]}


def calling(call: Any) -> dict[str, Any]:
    return {"messages": [U, {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": [TOOL]}


def with_tools(tools: Any) -> dict[str, Any]:
    return {"messages": [U, A], "tools": tools}


def saying(**changes: Any) -> dict[str, Any]:
    return {"messages": [U, {**A, **changes}]}


def said(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


ROWS: dict[str, tuple[Any, str]] = {
    # the row itself
    "a number": (5, "wrong type"),
    "a text": ("hello", "wrong type"),
    "a list": ([U, A], "wrong type"),
    "null": (None, "wrong type"),
    "true": (True, "wrong type"),
    "empty object": ({}, "no messages"),
    "no messages": ({"prompt": "2+2?"}, "no messages"),
    "messages null": ({"messages": None}, "no messages"),
    "messages empty": ({"messages": []}, "no messages"),
    "messages text": ({"messages": "2+2?"}, "no messages"),
    "messages object": ({"messages": {"role": "user"}}, "no messages"),
    "messages misspelt": ({"mesages": [U, A]}, "no messages"),
    "messages nested": ({"messages": [[U, A]]}, "wrong type"),
    "message null": (said(U, None), "wrong type"),
    "message text": (said(U, "4"), "wrong type"),
    "message number": (said(4, A), "wrong type"),
    # roles
    "missing role": (said({"content": "2+2?"}, A), "missing role"),
    "role null": (said({"role": None, "content": "2+2?"}, A), "missing role"),
    "role human": (said({"role": "human", "content": "2+2?"}, A), "unknown role"),
    "role User": (said({"role": "User", "content": "2+2?"}, A), "unknown role"),
    "role number": (said({"role": 1, "content": "2+2?"}, A), "unknown role"),
    "role empty": (said({"role": "", "content": "2+2?"}, A), "unknown role"),
    "role list": (said({"role": ["user"], "content": "2+2?"}, A), "wrong type"),
    "key misspelt": (saying(resoning_content="hm"), "unknown key"),
    "key of another layout": (said({"from": "human", "value": "2+2?"}), "unknown key"),
    # contents
    "content missing": (said(U, {"role": "assistant"}), "wrong type"),
    "content null": (saying(content=None), "wrong type"),
    "content number": (saying(content=4), "wrong type"),
    "content list of texts": (saying(content=["4"]), "wrong type"),
    "content with a picture": (saying(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "unknown part"),
    "both tags, reasoning beside": (saying(content="<think>a</think>4", reasoning_content="b"), "thinking tags"),
    "only the closing tag": (saying(content="Two and two.\n</think>\n\n4"), "thinking tags"),
    "only the opening tag": (saying(content="<think>Two and two. 4"), "thinking tags"),
    "two blocks": (saying(content="<think>a</think>4<think>b</think>"), "thinking tags"),
    "a closing tag, no reasoning": (saying(content="a</think>4", reasoning_content=""), "thinking tags"),
    "tags in the reasoning": (saying(reasoning_content="<think>a</think>"), "thinking tags"),
    "another format's tags": (saying(content="[THINK]a[/THINK]4"), "thinking tags"),
    "weight of a half": (saying(weight=0.5), "wrong type"),
    "nothing to train": (saying(weight=0), "nothing to train"),
    "weight of a user": (said({**U, "weight": 1}, A), "wrong type"),
    "name of a user": (said({**U, "name": "Ann"}, A), "unknown key"),
    "content object": (saying(content={"text": "4"}), "wrong type"),
    "user content null": (said({"role": "user", "content": None}, A), "wrong type"),
    "user says nothing": (said({"role": "user", "content": " \n"}, A), "empty question"),
    "answer empty": (saying(content=""), "empty answer"),
    "answer blank": (saying(content=" \n\t"), "empty answer"),
    "answer only reasoning": (saying(content="", reasoning_content="hm"), "empty answer"),
    "answer with empty calls": (saying(content="", tool_calls=[]), "empty answer"),
    "half a surrogate": (saying(content="\ud83d"), "not UTF-8"),
    "half a surrogate in reasoning": (saying(reasoning_content="\udc00"), "not UTF-8"),
    "reasoning number": (saying(reasoning_content=3), "wrong type"),
    "reasoning list": (saying(reasoning_content=["a"]), "wrong type"),
    "reasoning of a user": (said({**U, "reasoning_content": "hm"}, A), "wrong order"),
    "cut is text": (saying(reasoning_content="hm", reasoning_cut="yes"), "wrong type"),
    "cut of a user": (said({**U, "reasoning_cut": True}, A), "wrong order"),
    # order
    "assistant first": (said(A, U), "wrong order"),
    "tool first": (said(T, A), "wrong order"),
    "two users": (said(U, U, A), "wrong order"),
    "two assistants": (said(U, A, A), "wrong order"),
    "two systems": (said(S, S, U, A), "wrong order"),
    "late system": (said(U, S, A), "wrong order"),
    "system last": (said(U, A, S), "wrong order"),
    "only system": (said(S), "no messages"),
    "assistant after system": (said(S, A), "wrong order"),
    "tool after user": (said(U, T, A), "wrong order"),
    "tool after no call": (said(U, A, T), "wrong order"),
    # calls
    "call null": (calling(None), "bad tool call"),
    "call text": (calling("add()"), "bad tool call"),
    "call list": (calling([]), "bad tool call"),
    "call without name": (calling({"arguments": {}}), "bad tool call"),
    "call name number": (calling({"name": 3, "arguments": {}}), "bad tool call"),
    "call name empty": (calling({"name": "", "arguments": {}}), "bad tool call"),
    "call with another key": (calling({"name": "add", "kwargs": {}}), "unknown key"),
    "unknown tool": (calling({"name": "sub", "arguments": {}}), "unknown tool"),
    "tool of another case": (calling({"name": "Add", "arguments": {}}), "unknown tool"),
    "calls but no tools": ({**calling({"name": "add", "arguments": {}}), "tools": []}, "unknown tool"),
    "calls but tools missing": ({"messages": calling({"name": "add"})["messages"]}, "unknown tool"),
    "arguments not JSON": (calling({"name": "add", "arguments": "{a: 1}"}), "arguments not JSON"),
    "arguments cut": (calling({"name": "add", "arguments": '{"a": 1'}), "arguments not JSON"),
    "arguments NaN": (calling({"name": "add", "arguments": '{"a": NaN}'}), "arguments not JSON"),
    "arguments list": (calling({"name": "add", "arguments": [1]}), "bad tool call"),
    "arguments list in text": (calling({"name": "add", "arguments": "[1]"}), "bad tool call"),
    "arguments number": (calling({"name": "add", "arguments": 1}), "bad tool call"),
    "calls object": (saying(tool_calls={"name": "add"}), "wrong type"),
    "calls number": (saying(tool_calls=1), "wrong type"),
    "calls text": (saying(tool_calls="add()"), "bad JSON"),
    "calls of a user": ({"messages": [{**U, "tool_calls": [{"name": "add"}]}, A], "tools": [TOOL]}, "wrong order"),
    # tools
    "tools text": (with_tools("add"), "bad JSON"),
    "tools object": (with_tools({"name": "add"}), "wrong type"),
    "tools number": (with_tools(1), "wrong type"),
    "tool null": (with_tools([None]), "bad tool"),
    "tool text": (with_tools(["add"]), "bad tool"),
    "tool without name": (with_tools([{"description": "Adds"}]), "bad tool"),
    "tool name number": (with_tools([{"name": 1}]), "bad tool"),
    "tool nested without a name": (with_tools([{"type": "function", "function": {}}]), "bad tool"),
    "parameters list": (with_tools([{"name": "add", "parameters": []}]), "bad tool"),
    # the rest
    "task text": ({**GOOD, "task": "math"}, "bad JSON"),
    "task list": ({**GOOD, "task": []}, "wrong type"),
    "task without kind": ({**GOOD, "task": {"answer": "4"}}, "wrong type"),
    "task kind number": ({**GOOD, "task": {"kind": 1}}, "wrong type"),
    "domain number": ({**GOOD, "domain": 1}, "wrong type"),
    "licence list": ({**GOOD, "licence": ["MIT"]}, "wrong type"),
    "language number": ({**GOOD, "language": 7}, "wrong type"),
    "id list": ({**GOOD, "id": ["a"]}, "wrong type"),
}

LINES: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"hello", "bad JSON"),
    "cut": (b'{"messages": [{"role": "us', "bad JSON"),
    "single quotes": (b"{'messages': []}", "bad JSON"),
    "trailing comma": (b'{"messages": [],}', "bad JSON"),
    "two objects": (json.dumps(GOOD).encode() * 2, "bad JSON"),
    "NaN": (b'{"messages": NaN}', "bad JSON"),
    "Infinity": (b'{"messages": [], "x": -Infinity}', "bad JSON"),
    "raw control character": (b'{"messages": "a\x01b"}', "bad JSON"),
    "Latin-1": ('{"messages": "é"}'.encode("latin-1"), "not UTF-8"),
    "UTF-16": (json.dumps(GOOD).encode("utf-16-le").replace(b"\n", b""), "bad JSON"),
    "a byte order mark inside": (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "bad JSON"),
    "zero bytes": (b"\0\0\0\0", "bad JSON"),
    "half of a character": ('"é'.encode()[:-1], "not UTF-8"),
    "nested too deep": (b"[" * 200_000, "bad JSON"),
    "an integer of 10,000 digits": (b'{"messages": ' + b"9" * 10_000 + b"}", "bad JSON"),
    "a huge field of a wrong type": (b'{"messages": "' + b"x" * 5_000_000 + b'"}', "no messages"),
}


def check_middle(path: Path, kind: str, line: int = 2, sound: int = 2) -> None:
    items = list(read(f"file:{path}"))
    [bad] = [item for item in items if isinstance(item, BadRow)]
    assert (bad.kind, bad.origin) == (kind, f"{path}:{line}"), bad
    assert len(bad.reason) > 5
    assert len(items) == sound + 1
    with pytest.raises(DataError, match=kind) as error:
        load(f"file:{path}", split="train")
    assert str(error.value).startswith(f"{path}:{line}")
    if sound:
        report = load(f"file:{path}", on_bad_row="skip").report
        assert (report.rows, report.samples, dict(report.bad)) == (sound + 1, sound, {kind: 1})


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_between_sound_ones(name: str, tmp_path: Path) -> None:
    row, kind = ROWS[name]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in (GOOD, row, GOOD)) + "\n")
    check_middle(path, kind)


@pytest.mark.parametrize("name", LINES)
def test_a_bad_line_between_sound_ones(name: str, tmp_path: Path) -> None:
    line, kind = LINES[name]
    good = json.dumps(GOOD).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([good, line, good]) + b"\n")
    check_middle(path, kind)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def csv_bytes(*rows: list[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode()


GOODS = json.dumps(GOOD).encode() + b"\n"
FILES: dict[str, tuple[str, Callable[[], bytes], str, int, int]] = {
    # name: file name, bytes, kind of fault, line, sound rows before it
    "no bytes": ("rows.jsonl", lambda: b"", "empty file", 1, 0),
    "no bytes in Parquet": ("rows.parquet", lambda: b"", "empty file", 1, 0),
    "no bytes in gz": ("rows.jsonl.gz", lambda: b"", "empty file", 1, 0),
    "gz cut in the middle": ("rows.jsonl.gz", lambda: gzip.compress(GOODS * 2, 0)[:-20], "damaged file", 2, 1),
    "not gz": ("rows.jsonl.gz", lambda: GOODS, "damaged file", 1, 0),
    "gz with a wrong checksum": (
        "rows.jsonl.gz", lambda: gzip.compress(GOODS)[:-8] + b"\1\2\3\4" + gzip.compress(GOODS)[-4:],
        "damaged file", 2, 1,
    ),
    "truncated Parquet": ("rows.parquet", lambda: parquet([GOOD])[:-30], "damaged file", 1, 0),
    "not Parquet": ("rows.parquet", lambda: GOODS * 10, "damaged file", 1, 0),
    "Parquet of another layout": ("rows.parquet", lambda: parquet([{"text": "a"}]), "no messages", 1, 0),
    "Parquet with a null row": ("rows.parquet", lambda: parquet([GOOD, {"messages": None}]), "no messages", 2, 1),
    "a list that does not end": ("rows.json", lambda: b"[\n" + GOODS + b",\n" + GOODS[:30], "bad JSON", 4, 1),
    "a list without its end": ("rows.json", lambda: b"[\n" + GOODS, "bad JSON", 3, 1),
    "a list with a bad row": ("rows.json", lambda: b"[\n" + GOODS + b",\n7\n]", "wrong type", 4, 1),
    "a list not in UTF-8": ("rows.json", lambda: b'[\n"\xe9"]', "not UTF-8", 2, 0),
    "CSV with too many fields": ("rows.csv", lambda: csv_bytes(["a"], ["1", "2"]), "bad CSV", 2, 0),
    "CSV with too few fields": ("rows.csv", lambda: csv_bytes(["a", "b"], ["1"]), "bad CSV", 2, 0),
    "CSV not in UTF-8": ("rows.csv", lambda: b"a\n\xe9\n", "not UTF-8", 2, 0),
    "CSV with an open quote": ("rows.csv", lambda: b'a,b\n1,"2', "bad CSV", 2, 0),
    "CSV of another layout": ("rows.csv", lambda: csv_bytes(["a"], ["1"]), "no messages", 2, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file(name: str, tmp_path: Path) -> None:
    file_name, make, kind, line, sound = FILES[name]
    path = tmp_path / file_name
    path.write_bytes(make())
    check_middle(path, kind, line, sound)


def test_there_are_a_hundred() -> None:
    assert len(ROWS) + len(LINES) + len(FILES) >= 100


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(["oops", json.dumps(GOOD), "{}", *["[]"] * 40]))
    with pytest.raises(DataError) as error:
        load(f"file:{path}")
    text = str(error.value)
    assert f"{path}:1: bad JSON" in text and f"{path}:3: no messages" in text
    assert "42 bad rows" in text and "40 wrong type" in text and "and 17 more" in text


@pytest.mark.parametrize("name", ["missing.jsonl", "rows.txt", "rows.gz"])
def test_files_that_cannot_be_rows_are_refused(name: str, tmp_path: Path) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        load(f"file:{tmp_path / name}")


def test_a_document_of_millions_of_words_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(saying(content="word " * 5_000_000)).encode(), 1))
    [conversation] = load(f"file:{path}").conversations
    assert len(conversation.messages[-1].content) == 25_000_000
