"""The reference renders of Nano v2 from the shared data."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nanoalign.data_recipes.chat.nemotron import NemotronNanoV2, NemotronNanoV2Reference
from nanoalign.data_recipes.conversation import Message, ToolCall

ROOT = Path(os.environ.get("NANOALIGN_DATA", Path(__file__).parents[3] / "shared" / "data"))
GOLDEN = ROOT / "nemotron_nano_v2_template" / "golden_renders.jsonl"
ROWS = [json.loads(line) for line in GOLDEN.read_text().splitlines()] if GOLDEN.exists() else []
pytestmark = pytest.mark.skipif(not ROWS, reason=f"no golden renders at {GOLDEN}")


def messages_of(row: dict[str, Any]) -> list[Message]:
    def call(raw: dict[str, Any]) -> ToolCall:
        arguments = raw["function"]["arguments"]
        return ToolCall(raw["function"]["name"], json.loads(arguments) if isinstance(arguments, str) else arguments)

    return [
        Message(raw["role"], raw["content"], tool_calls=tuple(call(each) for each in raw.get("tool_calls", [])))
        for raw in row["messages"]
    ]


def tools_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [tool["function"] for tool in row["tools"] or []]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_reference_is_byte_equal(row: dict[str, Any]) -> None:
    text = NemotronNanoV2Reference().render(
        messages_of(row), tools_of(row), add_generation_prompt=row["add_generation_prompt"], **row["kwargs"]
    )
    assert text == row["text"]


@pytest.mark.parametrize("row", [row for row in ROWS if row["add_generation_prompt"]], ids=lambda row: row["name"])
def test_default_differs_only_in_the_quirks(row: dict[str, Any]) -> None:
    messages = [
        Message(m.role, m.content.split("</think>")[-1] if m.role == "assistant" else m.content, None, m.tool_calls)
        for m in messages_of(row)
    ]
    text = NemotronNanoV2().prompt(messages, tools_of(row))
    if row["name"] == "user_text_with_end_tag":
        assert text.endswith("<SPECIAL_11>User\nwhat does </think> mean?\n<SPECIAL_11>Assistant\n<think></think>")
    else:
        assert text == row["text"]
