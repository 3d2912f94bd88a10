"""Tool calling: benchmarks, rollouts and dialogues."""

import ast
import json
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from nanoalign.data_recipes.adapters.openai_form import openai_message
from nanoalign.data_recipes.adapters.parts import ROLES, NotASample, Raw, decoded, normal_tools, turn
from nanoalign.data_recipes.readers import RowError


def bfcl(raw: Raw) -> list[dict[str, Any]]:
    """BFCL's single-turn categories, with its possible ``answer`` joined in. Expected calls list each argument's
    accepted values; "" among them means that it may be left out. The ids of the categories without possible answers say
    what is expected: no call (irrelevance), or some call, whichever it is (relevance)."""
    [messages] = raw["question"]
    tools, task = normal_tools(raw["function"]), {"kind": "tools", **_expected(raw)}
    return [{"id": raw["id"], "messages": one_speaker_at_a_time(messages), "tools": tools, "task": task}]


def _expected(raw: Raw) -> dict[str, Any]:
    if "answer" in raw:
        calls = (pair for call in raw["answer"]["ground_truth"] for pair in call.items())
        return {"calls": [{"name": name, "accepted": accepted} for name, accepted in calls]}
    category = raw["id"].rpartition("_")[0]
    if category.endswith("irrelevance"):
        return {"calls": []}
    if category.endswith("relevance"):
        return {"some_call": True}
    raise RowError("missing key", f"no possible answer is joined with {raw['id']!r}")


def one_speaker_at_a_time(messages: Iterable[Raw]) -> list[dict[str, Any]]:
    """Messages in which what a user says in two turns in a row is one turn, with a blank line between."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"] == "user":
            joined[-1] |= {"content": f"{joined[-1]['content']}\n\n{message['content']}"}
        else:
            joined.append(dict(message))
    return joined


def bfcl_multi_turn(raw: Raw) -> list[dict[str, Any]]:
    """BFCL's multi-turn base: the first request, with the functions of all classes involved. The task holds every
    request (``turns``), the classes and the world that they start from (``initial_config``), and the reference calls of
    each turn (``expected``). Playing it takes BFCL's own simulators (bfcl-eval); rewards judge the first turn alone."""
    tools = normal_tools(raw["functions"])
    parameters = {tool["name"]: list(tool["parameters"].get("properties", {})) for tool in tools}
    expected = [[_reference_call(text, parameters) for text in turn] for turn in raw["answer"]["ground_truth"]]
    task = {
        "kind": "bfcl_multi_turn",
        "turns": raw["question"],
        "initial_config": raw["initial_config"],
        "classes": raw["involved_classes"],
        "expected": expected,
    }
    return [{"id": raw["id"], "messages": one_speaker_at_a_time(raw["question"][0]), "tools": tools, "task": task}]


def _reference_call(text: str, parameters: dict[str, list[str]]) -> dict[str, Any]:
    """``sort('a.txt')`` as a name and named arguments."""
    call = ast.parse(text.strip(), mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in parameters:
        raise RowError("bad tool call", f"{text[:80]!r} is not a call of a known function")
    arguments = dict(zip(parameters[call.func.id], map(ast.literal_eval, call.args)))
    arguments |= {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    return {"name": call.func.id, "arguments": arguments}


def workbench(raw: Raw) -> list[dict[str, Any]]:
    """A WorkBench task; its reference calls are in the task and its tools in data_recipes/workplace."""
    return [
        {
            "messages": [turn("user", raw["query"])],
            "task": {"kind": "workbench", "answer": ast.literal_eval(raw["answer"])},
        }
    ]


def nemo_gym_prompt(raw: Raw) -> list[dict[str, Any]]:
    """A NeMo Gym workplace task: the request and its tools, the reference calls in the task."""
    request = raw["responses_create_params"]
    task = {"kind": "nemo_gym", "ground_truth": raw["ground_truth"], "category": raw["category"]}
    messages = _responses(request["input"])
    return [{"id": str(raw["id"]), "messages": messages, "tools": normal_tools(request["tools"]), "task": task}]


def nemo_gym_rollout(raw: Raw) -> list[dict[str, Any]]:
    """A rollout of NeMo Gym in the layout of the Responses API, up to its last answer."""
    start = raw["input"]
    items = [{"role": "user", "content": start}] if isinstance(start, str) else list(start)
    messages = _responses([*items, *raw["output"]])
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise NotASample("the rollout has no answer")
    if any(a["role"] == b["role"] == "assistant" for a, b in pairwise(messages)):
        raise NotASample("the rollout answers twice in a row")
    tools = normal_tools(raw["tools"])
    called = {call["name"] for message in messages for call in message.get("tool_calls", [])}
    if not called <= {tool["name"] for tool in tools}:
        raise NotASample("the rollout calls a tool that it was not given")
    return [{"messages": messages, "tools": tools}]


def _responses(items: Iterable[Raw]) -> list[dict[str, Any]]:
    """Messages from items of the Responses API: reasoning, text and calls in a row are one assistant message."""
    messages: list[dict[str, Any]] = []
    thoughts: list[str] = []

    def assistant() -> dict[str, Any]:
        if thoughts or not messages or messages[-1]["role"] != "assistant":
            messages.append(turn("assistant", ""))
            if thoughts:
                messages[-1]["reasoning_content"] = "\n\n".join(thoughts).strip()
                thoughts.clear()
        return messages[-1]

    for item in items:
        kind = item.get("type") or "message"
        if kind == "reasoning":
            thoughts += [part["text"] for part in item.get("summary") or item.get("content") or []]
        elif kind == "function_call":
            call = {"name": item["name"], "arguments": item["arguments"], "id": item.get("call_id")}
            assistant().setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            messages.append(turn("tool", item["output"], tool_call_id=item.get("call_id")))
        elif item["role"] == "assistant":
            assistant()["content"] += _message(item)["content"].strip()
        elif item["role"] == "user" and messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += "\n\n" + _message(item)["content"]
        else:
            messages.append(_message(item))
    return messages


def _message(item: Raw) -> dict[str, Any]:
    return openai_message({"role": item["role"], "content": item.get("content")})


def glaive(raw: Raw) -> list[dict[str, Any]]:
    """Glaive function calling v2 as released: a ``system`` text with JSON tools, and ``chat`` with marks for turns."""
    listed = raw["system"].partition("Use them if required -")[2]
    tools, position = [], 0
    while (start := listed.find("{", position)) >= 0:
        tool, position = json.JSONDecoder().raw_decode(listed, start)
        tools.append(tool)
    messages: list[dict[str, Any]] = []
    pieces = re.split(r"(USER|ASSISTANT|FUNCTION RESPONSE):", raw["chat"].replace("<|endoftext|>", ""))[1:]
    for mark, text in zip(pieces[::2], pieces[1::2], strict=True):
        said, _, call = text.partition("<functioncall>")
        role = {"USER": "user", "ASSISTANT": "assistant"}.get(mark, "tool")
        message = turn(role, said.strip())
        if call:
            # Glaive writes the arguments as JSON text in single quotes inside the call's JSON.
            inner = re.sub(r"'(\{.*\})'", lambda found: found[1], call.strip(), flags=re.DOTALL)
            message["tool_calls"] = [decoded(inner, "a functioncall")]
        messages.append(message)
    return [{"messages": messages, "tools": normal_tools(tools)}]


def toolace(raw: Raw) -> list[dict[str, Any]]:
    """ToolACE: tools as a JSON list inside the system text, calls as ``[name(a=1), other(b="x")]``."""
    start = raw["system"].index("[{")
    tools, end = json.JSONDecoder().raw_decode(raw["system"], start)
    calls = re.compile(r"\A\s*\[.+\)\]\s*\Z", re.DOTALL)
    messages = [turn("system", (raw["system"][:start] + raw["system"][end:]).strip())]
    for each in raw["conversations"]:
        role, text = ROLES.get(each["from"], each["from"]), each["value"]
        if role == "assistant" and calls.match(text):
            messages.append(turn("assistant", "", tool_calls=[_python_call(part) for part in _split_calls(text)]))
        else:
            messages.append(turn(role, text))
    return [{"messages": messages, "tools": normal_tools(tools)}]


def _split_calls(text: str) -> list[str]:
    """``[a.b c(x=1), d()]`` as ``["a.b c(x=1)", "d()"]``; brackets and quotes nest."""
    parts, depth, quote, start = [], 0, "", 0
    body = text.strip()[1:-1]
    for position, char in enumerate(body):
        if quote:
            quote = "" if char == quote and body[position - 1] != "\\" else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(body[start:position])
            start = position + 1
    return [part.strip() for part in (*parts, body[start:])]


def _python_call(text: str) -> dict[str, Any]:
    name, _, inside = text.partition("(")
    try:
        call = ast.parse(f"f({inside}", mode="eval").body
        assert isinstance(call, ast.Call)
        return {"name": name.strip(), "arguments": {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}}
    except (SyntaxError, ValueError, AssertionError):
        raise RowError("bad tool call", f"{text[:80]!r} is not a call with literal arguments") from None
