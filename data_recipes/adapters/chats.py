"""Chats and instructions."""

import json
from collections.abc import Iterable
from typing import Any

from data_recipes.adapters.parts import (
    ROLES,
    NotASample,
    Raw,
    arguments_of,
    known_of,
    normal_tools,
    thought,
    turn,
    with_input,
)
from data_recipes.rows import RowError


def normal(raw: Raw) -> list[dict[str, Any]]:
    """Rows that are in the normal form already."""
    return [dict(raw)]


def document(raw: Raw) -> list[dict[str, Any]]:
    """``text``, with a ``title`` if it has one: something to be read, by the generator of long-context questions."""
    text = f"{raw['title']}\n\n{raw['text']}" if raw.get("title") else raw["text"]
    return [{**known_of(raw), "messages": [turn("user", text)]}]


def openai(raw: Raw) -> list[dict[str, Any]]:
    """``messages`` as in OpenAI's API (text or lists of parts, nested calls), ``tools`` beside them. Reasoning stands
    in ``reasoning_content``, in ``<think>`` tags, or in parts of type ``reasoning``."""
    return [
        {
            **known_of(raw),
            "messages": [openai_message(m) for m in raw["messages"]],
            "tools": normal_tools(raw.get("tools")),
        }
    ]


def openai_message(raw: Raw) -> dict[str, Any]:
    content = raw.get("content") or ""
    reasoning = raw.get("reasoning_content")
    calls = [call.get("function") or call for call in raw.get("tool_calls") or []]
    if isinstance(content, list):
        parts = [(part["type"], part.get("text", part.get("value"))) for part in content]
        content = "".join(text for kind, text in parts if kind in ("text", "input_text", "output_text"))
        reasoning = "\n\n".join(text for kind, text in parts if kind == "reasoning") or reasoning
        calls += [json.loads(text) for kind, text in parts if kind == "tool_call"]
    role = ROLES.get(raw["role"], str(raw["role"]))
    message = thought(content) if role == "assistant" and reasoning is None else turn(role, content)
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [{"name": call["name"], "arguments": arguments_of(call["arguments"])} for call in calls]
    return message


def nemotron(raw: Raw) -> list[dict[str, Any]]:
    """Nemotron-Post-Training-Dataset v1 and v2: ``messages``, ``reasoning`` (on or off), ``category``, ``license``."""
    [row] = openai(raw)
    if raw.get("reasoning") == "off":
        for message in row["messages"]:
            if message["role"] == "assistant":
                message["reasoning_content"] = ""
    if row["messages"] and row["messages"][0]["role"] == "system" and not row["messages"][0]["content"].strip():
        row["messages"] = row["messages"][1:]
    return [{**row, "domain": raw.get("category") or ""}]


def sharegpt(raw: Raw) -> list[dict[str, Any]]:
    """``conversations`` of ``from`` and ``value``, also with calls and observations (LLaMA-Factory, Glaive)."""
    messages = [turn("system", raw["system"])] if raw.get("system") else []
    return [
        {
            **known_of(raw),
            "messages": messages + sharegpt_turns(raw["conversations"]),
            "tools": normal_tools(raw.get("tools")),
        }
    ]


def sharegpt_turns(turns: Iterable[Raw]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for each in turns:
        role = ROLES.get(each["from"], str(each["from"]))
        if role == "call":
            calls = json.loads(each["value"])
            messages.append(turn("assistant", "", tool_calls=calls if isinstance(calls, list) else [calls]))
        elif role == "assistant":
            messages.append(thought(each["value"]))
        elif role == "system" and messages:
            raise RowError("wrong order", "a system message stands inside the conversation")
        else:
            messages.append(turn(role, each["value"]))
    return messages


def alpaca(raw: Raw) -> list[dict[str, Any]]:
    """``instruction``, ``input`` (may be empty) and ``output``."""
    return [{**known_of(raw), "messages": [turn("user", with_input(raw)), turn("assistant", raw["output"])]}]


def self_instruct(raw: Raw) -> list[dict[str, Any]]:
    """``instruction`` with ``instances`` of input and output, one conversation each."""
    return [
        {
            "id": str(raw.get("id", "")),
            "messages": [
                turn("user", with_input({"instruction": raw["instruction"], **instance})),
                turn("assistant", instance["output"]),
            ],
        }
        for instance in raw["instances"]
    ]


def mt_bench(raw: Raw) -> list[dict[str, Any]]:
    """The first turn of an MT-Bench question; the second waits in the task."""
    task = {"kind": "mt_bench", "category": raw["category"], "turns": raw["turns"], "reference": raw.get("reference")}
    return [{"id": str(raw["question_id"]), "messages": [turn("user", raw["turns"][0])], "task": task}]


def oasst_tree(raw: Raw) -> list[dict[str, Any]]:
    """The best-ranked path through an Open Assistant tree, to its last answer."""
    messages, node = [], raw["prompt"]
    while node:
        messages.append(turn(ROLES[node["role"]], node["text"]))
        node = min(node["replies"], key=lambda reply: reply.get("rank") or 0, default=None)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise NotASample("nobody answered")
    return [{"id": raw["message_tree_id"], "language": raw["prompt"]["lang"], "messages": messages[: answers[-1] + 1]}]


def mt_bench_reference(raw: Raw) -> list[dict[str, Any]]:
    """GPT-4's reference answers to an MT-Bench question, joined with the question."""
    [choice] = raw["choices"]
    pairs = zip(raw["question"]["turns"], choice["turns"], strict=True)
    messages = [message for said, answer in pairs for message in (turn("user", said), turn("assistant", answer))]
    return [{"id": str(raw["question_id"]), "messages": messages}]
