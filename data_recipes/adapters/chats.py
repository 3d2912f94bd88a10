"""Chats and instructions."""

from collections.abc import Iterable
from typing import Any

from nanoalign.data_recipes.adapters.openai_form import openai_messages
from nanoalign.data_recipes.adapters.parts import (
    ROLES,
    NotASample,
    Raw,
    decoded,
    known_of,
    left_out,
    listed,
    normal_tools,
    turn,
    with_input,
)
from nanoalign.data_recipes.readers import RowError
from nanoalign.data_recipes.rows import check_keys, split_thinking

MEDIA = ("image", "images", "audio", "audios", "video", "videos")


def document(raw: Raw) -> list[dict[str, Any]]:
    """``text``, with a ``title`` if it has one: something to be read, by the generator of long-context questions."""
    text = f"{raw['title']}\n\n{raw['text']}" if raw.get("title") else raw["text"]
    return [{**known_of(raw), "messages": [turn("user", text)]}]


def openai(raw: Raw) -> list[dict[str, Any]]:
    """``messages`` as in OpenAI's API, ``tools`` (or ``functions``) beside them; see openai_form.py. ``system`` beside
    them is Anthropic's way of writing the system message."""
    tools = raw.get("tools") or raw.get("functions")
    unread = left_out(raw, ("messages", "tools", "functions", "system"), tools)
    return [{**_openai(raw), "tools": normal_tools(tools), **unread}]


def _openai(raw: Raw) -> dict[str, Any]:
    no_media(raw)
    messages = openai_messages(listed(raw, "messages"))
    if raw.get("system"):
        messages.insert(0, turn("system", raw["system"]))
    return {**known_of(raw), "messages": messages}


def no_media(raw: Raw) -> None:
    """Raises RowError where there are pictures or sounds beside the text: they would be dropped."""
    for key in MEDIA:
        if raw.get(key):
            raise RowError("unknown key", f"the row has {key!r}; only text is trained here")


def nemotron(raw: Raw) -> list[dict[str, Any]]:
    """Nemotron-Post-Training-Dataset v1 and v2: ``messages``, ``reasoning`` (on or off), ``category``, ``license``."""
    row = {**_openai(raw), "tools": normal_tools(raw.get("tools"))}
    for number, message in enumerate(row["messages"]):
        if message["role"] == "assistant" and raw.get("reasoning") == "off":
            where = f"message {number}"
            content, reasoning = split_thinking(message["content"], message.get("reasoning_content"), where)
            if reasoning:
                raise RowError("thinking tags", f"{where} thinks, but the row declares its reasoning off")
            message |= {"content": content, "reasoning_content": ""}
    if row["messages"] and row["messages"][0]["role"] == "system" and not row["messages"][0]["content"].strip():
        row["messages"] = row["messages"][1:]
    return [{**row, "domain": raw.get("category") or ""}]


def sharegpt(raw: Raw) -> list[dict[str, Any]]:
    """``conversations`` of ``from`` and ``value``, also with calls and observations (LLaMA-Factory, Glaive)."""
    no_media(raw)
    messages = [turn("system", raw["system"])] if raw.get("system") else []
    return [
        {
            **known_of(raw),
            "messages": messages + sharegpt_turns(listed(raw, "conversations")),
            "tools": normal_tools(raw.get("tools")),
            **left_out(raw, ("conversations", "tools", "system"), raw.get("tools")),
        }
    ]


def sharegpt_turns(turns: Iterable[Raw]) -> list[dict[str, Any]]:
    """Messages from ``from`` and ``value``. A turn that calls is JSON, with its thinking before it if it has any."""
    messages: list[dict[str, Any]] = []
    for number, each in enumerate(turns):
        where = f"turn {number} ({each.get('from')})"
        check_keys(each, ("from", "value", "weight"), where)
        role, more = ROLES.get(each["from"], str(each["from"])), weighed(each)
        if role == "call":
            text, reasoning = split_thinking(each["value"], None, where)
            calls = decoded(text, where)
            calls = calls if isinstance(calls, list) else [calls]
            more |= {} if reasoning is None else {"reasoning_content": reasoning}
            messages.append(turn("assistant", "", tool_calls=calls, **more))
        elif role == "system" and messages:
            raise RowError("wrong order", "a system message is inside the conversation")
        else:
            messages.append(turn(role, each["value"], **more))
    return messages


def weighed(raw: Raw) -> dict[str, Any]:
    """The ``weight`` of a turn in the loss, where it is written."""
    return {} if raw.get("weight") is None else {"weight": raw["weight"]}


def alpaca(raw: Raw) -> list[dict[str, Any]]:
    """``instruction``, ``input`` (may be empty) and ``output``; LLaMA-Factory's ``system`` and ``history`` (earlier
    pairs of what was said and answered) where they are."""
    no_media(raw)
    messages = [turn("system", raw["system"])] if raw.get("system") else []
    for said, answer in decoded(raw.get("history"), "'history'") or []:
        messages += [turn("user", said), turn("assistant", answer)]
    messages += [turn("user", with_input(raw)), turn("assistant", raw["output"], **weighed(raw))]
    unread = left_out(raw, ("instruction", "input", "output", "system", "history", "weight"), None)
    return [{**known_of(raw), "messages": messages, **unread}]


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
