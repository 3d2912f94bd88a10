"""The strict way from a row to a conversation and back.

Thinking tags in an assistant's text, one rule for every layout:

- A text that begins with ``<think>...</think>`` is split: what stands between is the reasoning. The close is the first
  ``</think>``, as it is to every parser of completions.
- Tags in Markdown code of the answer (in backticks, in a fenced block) speak about tags, and stay.
- Everything else is refused: a tag alone, a second block, a block beside a reasoning in its own field, and a text that
  begins with another format's thinking mark. Trained as it stands, it would teach answers that think without being
  asked to. A user's, a tool's or a system's text is never looked at.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, cast

from nanoalign.data_recipes.calls import settled
from nanoalign.data_recipes.conversation import Conversation, Message, Role, ToolCall
from nanoalign.data_recipes.readers import RowError, parse_json

OPEN, CLOSE = "<think>", "</think>"
_BARE = re.compile(r"<\s?/?\s?think\s?/?\s?>", re.IGNORECASE)
_CODE = re.compile(r"^[ \t]*(`{3,8}|~{3,8}).*?^[ \t]*\1|(`{1,3})[^`\n]+\2", re.DOTALL | re.MULTILINE)
_FOREIGN = re.compile(
    r"\s*(<thinking>|<thought>|<seed:think>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|channel\|>)",
    re.IGNORECASE,
)

MESSAGE_KEYS = {"role", "content", "reasoning_content", "tool_calls", "reasoning_cut", "weight", "name", "tool_call_id"}
CALL_KEYS = {"name", "arguments", "id", "type", "index"}
MAY_FOLLOW: dict[str, tuple[str, ...]] = {
    "system": ("start",),
    "user": ("start", "system", "assistant", "tool"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def from_row(row: Any, origin: str = "", **defaults: str) -> Conversation:
    """The conversation in a row of the normal form (see data_recipes/conversation.py). ``defaults`` give domain,
    source, licence and language where the row has none. ``messages``, ``tools``, ``task`` and a call's ``arguments``
    may be JSON text, as they are in Parquet files. Thinking tags are read by the rule above, results
    and nulls by those of data_recipes/calls.py. Raises RowError with the reason."""
    if not isinstance(row, Mapping):
        raise RowError("wrong type", f"the row is {_kind(row)}, not an object")
    raw_messages = _decoded_list(row.get("messages"))
    if not isinstance(raw_messages, list):
        raise RowError("no messages", f"'messages' is {_kind(raw_messages)}, not a list")
    if not raw_messages:
        raise RowError("no messages", "'messages' is empty")
    tools = _tools(_decoded(row.get("tools") or [], "tools") or [])
    read = [_message(raw, number) for number, raw in enumerate(raw_messages)]
    check_order(read)
    check_calls(read, tools)
    messages, tools = settled(read, raw_messages, tools)
    task = _task(_decoded(row.get("task") if row.get("task") != "" else None, "task"))
    _check_training(messages, task)
    known = {key: _text(row.get(key) or defaults.get(key, ""), key) for key in ("domain", "source", "id")}
    known["licence"] = _text(row.get("licence") or row.get("license") or defaults.get("licence", ""), "licence")
    language = _text(row.get("language") or defaults.get("language", "en"), "language")
    return Conversation(messages, tools, language=language, task=task, origin=origin, **known)


def to_row(conversation: Conversation) -> dict[str, Any]:
    """The normal-form row of a conversation; ``from_row`` gives it back. Empty parts are left out."""
    messages = []
    for message in conversation.messages:
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            row["reasoning_content"] = message.reasoning
        if message.tool_calls:
            row["tool_calls"] = [{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls]
        if message.reasoning_cut:
            row["reasoning_cut"] = True
        if not message.trained:
            row["weight"] = 0
        messages.append(row)
    values = {
        "id": conversation.id,
        "tools": [dict(tool) for tool in conversation.tools],
        "domain": conversation.domain,
        "source": conversation.source,
        "licence": conversation.licence,
        "task": dict(conversation.task) if conversation.task is not None else None,
    }
    return {
        "messages": messages,
        "language": conversation.language,
        **{key: value for key, value in values.items() if value},
    }


def name_of(conversation: Conversation) -> tuple[int, int]:
    """64 bits that name what a sample says and what is known of it, and how many bytes that is as JSON."""
    text = json.dumps(to_row(conversation)).encode()
    return digest(text), len(text)


def digest(text: bytes) -> int:
    """A 64-bit hash of a text."""
    return int.from_bytes(blake2b(text, digest_size=8).digest())


def check_order(messages: Sequence[Message]) -> None:
    """Raises RowError where a role may not follow the one before it (user first, tool results only after calls)."""
    before = "start"
    for number, message in enumerate(messages):
        if before not in MAY_FOLLOW[message.role]:
            where = "first" if before == "start" else f"after {before}"
            raise RowError("wrong order", f"message {number} is {message.role}, {where}")
        if message.role == "tool" and before == "assistant" and not messages[number - 1].tool_calls:
            raise RowError("wrong order", f"message {number} is a tool's result, but nothing was called")
        before = message.role
    if before == "system":
        raise RowError("no messages", "there is only a system message")


def check_calls(messages: Iterable[Message], tools: Sequence[Mapping[str, Any]]) -> None:
    """Raises RowError where a called tool is not among ``tools``."""
    names = {tool["name"] for tool in tools}
    for number, message in enumerate(messages):
        for call in message.tool_calls:
            if call.name not in names:
                listed = ", ".join(sorted(names)[:8]) or "no tools at all"
                raise RowError("unknown tool", f"message {number} calls {call.name!r}; the row offers {listed}")


def _message(raw: Any, number: int) -> Message:
    where = f"message {number}"
    if not isinstance(raw, Mapping):
        raise RowError("wrong type", f"{where} is {_kind(raw)}, not an object")
    check_keys(raw, MESSAGE_KEYS, where)
    role = raw.get("role")
    if role is None:
        raise RowError("missing role", f"{where} has no role")
    if role not in MAY_FOLLOW:
        raise RowError("unknown role", f"{where} has role {role!r}; known: {', '.join(MAY_FOLLOW)}")
    content = raw.get("content")
    content = "" if content is None and raw.get("tool_calls") else _text(content, f"{where}'s content")
    reasoning = raw.get("reasoning_content")
    reasoning = None if reasoning is None else _text(reasoning, f"{where}'s reasoning_content")
    if role == "assistant":
        content, reasoning = split_thinking(content, reasoning, where)
    calls = _calls(raw, where)
    cut = raw.get("reasoning_cut") or False
    if cut not in (True, False):
        raise RowError("wrong type", f"{where}'s reasoning_cut is {_kind(cut)}, not true or false")
    if role != "assistant" and (reasoning or calls or cut):
        raise RowError("wrong order", f"{where} is {role}, but has reasoning or tool calls")
    if role == "assistant" and not content.strip() and not calls:
        raise RowError("empty answer", f"{where} has neither text nor calls")
    if role == "user" and not content.strip():
        raise RowError("empty question", f"{where} is empty")
    if role != "tool" and raw.get("name") not in (None, "", role):
        raise RowError("unknown key", f"{where} ({role}) has the name {raw['name']!r}, which no chat format writes")
    return Message(cast(Role, role), content, reasoning, calls, cut, _trained(raw.get("weight"), role, where))


def check_keys(raw: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raises RowError for keys that are not known; null is what a union of keys leaves, so it is not a key."""
    unknown = sorted(str(key) for key, value in raw.items() if key not in known and value is not None)
    if unknown:
        raise RowError("unknown key", f"{where} has {', '.join(map(repr, unknown))}; known: {sorted(known)}")


def split_thinking(content: str, reasoning: str | None, where: str) -> tuple[str, str | None]:
    """The answer and the reasoning of an assistant's ``content`` with the ``reasoning`` of its own field (None or "":
    none there). Raises RowError, which begins with ``where``, as the module's text says."""
    if content.lstrip().startswith(OPEN):
        if reasoning:
            raise _tag_fault(
                where, "its reasoning stands in a field of its own and in <think> tags too; keep one of them"
            )
        thought, close, answer = content.lstrip().removeprefix(OPEN).partition(CLOSE)
        if not close:
            raise _tag_fault(where, "<think> is never closed; close it, or leave out an answer that was cut")
        content, reasoning = answer.strip(), thought.strip()
    if reasoning and (CLOSE in reasoning or _outside_code(reasoning)):
        raise _tag_fault(where, "its reasoning holds thinking tags itself; take them out")
    if tag := _outside_code(content):
        raise _tag_fault(where, _advice(tag))
    if foreign := _FOREIGN.match(content):
        raise _tag_fault(
            where, f"it begins with {foreign[1]}, another format's mark; write <think>...</think> or a field"
        )
    return content, reasoning


def _outside_code(text: str) -> str | None:
    """The first thinking tag of a text that is not in Markdown code."""
    found = _BARE.search(text) and _BARE.search(_CODE.sub("", text))  # few texts hold any, and code is slow to find
    return found[0] if found else None


def _advice(tag: str) -> str:
    if "/" in tag:
        where = f"{tag} appears where no thinking is open; begin the text with <think> if what precedes it is reasoning"
    else:
        where = f"{tag} appears after the beginning; only one block, at the very beginning, is read as reasoning"
    return f"{where} (or write reasoning_content), and put a tag that the answer mentions in backticks"


def _tag_fault(where: str, reason: str) -> RowError:
    return RowError("thinking tags", f"{where}: {reason}")


def _trained(weight: Any, role: str, where: str) -> bool:
    """OpenAI's ``weight`` of an assistant's turn in the loss."""
    if weight is None or (weight == 1 and role == "assistant"):
        return True
    if weight == 0:
        return role != "assistant"  # others' turns are never trained
    due = "0 or 1" if role == "assistant" else f"0: a {role}'s turn is never trained"
    raise RowError("wrong type", f"{where}'s weight is {weight!r}, not {due}")


def _calls(raw: Mapping[str, Any], where: str) -> tuple[ToolCall, ...]:
    calls = _decoded(raw.get("tool_calls"), f"{where}'s tool_calls") or []
    if not isinstance(calls, list):
        raise RowError("wrong type", f"{where}'s tool_calls is {_kind(calls)}, not a list")
    return tuple(_call(call, where) for call in calls)


def _call(raw: Any, where: str) -> ToolCall:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str) or not raw["name"]:
        raise RowError("bad tool call", f"{where} has a call without a name")
    check_keys(raw, CALL_KEYS, f"{where}'s call of {raw['name']}")
    arguments = raw.get("arguments")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}  # none, as OpenAI's API and Arrow write them
    arguments = _decoded(arguments, f"{where}'s arguments of {raw['name']}")
    if not isinstance(arguments, dict):
        raise RowError("bad tool call", f"{where}'s arguments of {raw['name']} are {_kind(arguments)}, not an object")
    return ToolCall(raw["name"], arguments)


def _task(task: Any) -> Mapping[str, Any] | None:
    """The task; a rejected answer's reasoning is split off by the same rule as the chosen one's."""
    if task is None:
        return None
    if not (isinstance(task, dict) and isinstance(task.get("kind"), str)):
        raise RowError("wrong type", f"'task' is {_kind(task)}, not an object with a 'kind'")
    if isinstance(task.get("rejected"), str):
        answer, reasoning = split_thinking(task["rejected"], task.get("rejected_reasoning"), "the rejected answer")
        return {**task, "rejected": answer, **({"rejected_reasoning": reasoning} if reasoning else {})}
    return task


def _check_training(messages: Sequence[Message], task: Mapping[str, Any] | None) -> None:
    answers = [message for message in messages if message.role == "assistant"]
    judged = answers[-1:] if task and "rejected" in task else answers
    if judged and not any(message.trained for message in judged):
        raise RowError("nothing to train", "every answer has weight 0")


def _tools(raw: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(raw, list):
        raise RowError("wrong type", f"'tools' is {_kind(raw)}, not a list")
    for number, tool in enumerate(raw):
        if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str) or not tool["name"]:
            raise RowError("bad tool", f"tool {number} has no name")
        if not isinstance(tool["parameters"] if tool.get("parameters") is not None else {}, Mapping):
            raise RowError("bad tool", f"the parameters of tool {tool['name']} are not a JSON schema")
    return tuple(raw)


def _decoded_list(value: Any) -> Any:
    """A list or its JSON text; a text that is not JSON is returned unchanged."""
    if isinstance(value, str):
        try:
            return parse_json(value)
        except (ValueError, RecursionError):
            return value
    return value


def _decoded(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except (ValueError, RecursionError) as error:
        raise RowError("arguments not JSON" if "arguments" in what else "bad JSON", f"{what}: {error}") from None


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RowError("wrong type", f"{what} is {_kind(value)}, not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError("not UTF-8", f"{what} holds half of a surrogate pair") from None
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "missing" if value is None else names.get(type(value), type(value).__name__)
