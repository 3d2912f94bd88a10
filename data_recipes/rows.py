"""The strict way from a row to a conversation and back."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from common.errors import DataError
from data_recipes.conversation import Conversation, Message, Role, ToolCall
from data_recipes.files import parse_json

MESSAGE_KEYS = {"role", "content", "reasoning_content", "tool_calls", "reasoning_cut", "name", "tool_call_id"}
MAY_FOLLOW: dict[str, tuple[str, ...]] = {
    "system": ("start",),
    "user": ("start", "system", "assistant", "tool"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


class RowError(DataError):
    """A row is not a sample. ``kind`` is a short class of faults, for counting."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason


def from_row(row: Any, origin: str = "", **defaults: str) -> Conversation:
    """The conversation in a row of the normal form (see data_recipes/conversation.py). ``defaults`` give domain,
    source, licence and language where the row has none. ``tools``, ``task`` and a call's ``arguments`` may be JSON
    text, as they are in Parquet files. Raises RowError with the reason."""
    if not isinstance(row, Mapping):
        raise RowError("wrong type", f"the row is {_kind(row)}, not an object")
    raw_messages = row.get("messages")
    if not isinstance(raw_messages, list):
        raise RowError("no messages", f"'messages' is {_kind(raw_messages)}, not a list")
    if not raw_messages:
        raise RowError("no messages", "'messages' is empty")
    tools = _tools(_decoded(row.get("tools"), "tools") or [])
    messages = tuple(_message(raw, number) for number, raw in enumerate(raw_messages))
    check_order(messages)
    check_calls(messages, tools)
    task = _decoded(row.get("task"), "task")
    if task is not None and not (isinstance(task, dict) and isinstance(task.get("kind"), str)):
        raise RowError("wrong type", f"'task' is {_kind(task)}, not an object with a 'kind'")
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
    if not raw.keys() <= MESSAGE_KEYS:
        unknown = sorted(map(str, raw.keys() - MESSAGE_KEYS))
        raise RowError("unknown key", f"{where} has {', '.join(map(repr, unknown))}; known: {sorted(MESSAGE_KEYS)}")
    role = raw.get("role")
    if role is None:
        raise RowError("missing role", f"{where} has no role")
    if role not in MAY_FOLLOW:
        raise RowError("unknown role", f"{where} has role {role!r}; known: {', '.join(MAY_FOLLOW)}")
    content = raw.get("content")
    content = "" if content is None and raw.get("tool_calls") else _text(content, f"{where}'s content")
    reasoning = raw.get("reasoning_content")
    reasoning = None if reasoning is None else _text(reasoning, f"{where}'s reasoning_content")
    raw_calls = _decoded(raw.get("tool_calls"), f"{where}'s tool_calls") or []
    if not isinstance(raw_calls, list):
        raise RowError("wrong type", f"{where}'s tool_calls is {_kind(raw_calls)}, not a list")
    calls = tuple(_call(call, where) for call in raw_calls)
    cut = raw.get("reasoning_cut") or False
    if cut not in (True, False):
        raise RowError("wrong type", f"{where}'s reasoning_cut is {_kind(cut)}, not true or false")
    if role != "assistant" and (reasoning or calls or cut):
        raise RowError("wrong order", f"{where} is {role}, but has reasoning or tool calls")
    if role == "assistant" and not content.strip() and not calls:
        raise RowError("empty answer", f"{where} says nothing and calls nothing")
    if role == "user" and not content.strip():
        raise RowError("empty question", f"{where} says nothing")
    return Message(cast(Role, role), content, reasoning, calls, cut)


def _call(raw: Any, where: str) -> ToolCall:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str) or not raw["name"]:
        raise RowError("bad tool call", f"{where} has a call without a name")
    arguments = _decoded(raw.get("arguments", {}), f"{where}'s arguments of {raw['name']}")
    if not isinstance(arguments, dict):
        raise RowError("bad tool call", f"{where}'s arguments of {raw['name']} are {_kind(arguments)}, not an object")
    return ToolCall(raw["name"], arguments)


def _tools(raw: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(raw, list):
        raise RowError("wrong type", f"'tools' is {_kind(raw)}, not a list")
    for number, tool in enumerate(raw):
        if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str) or not tool["name"]:
            raise RowError("bad tool", f"tool {number} has no name")
        if not isinstance(tool.get("parameters", {}), Mapping):
            raise RowError("bad tool", f"the parameters of tool {tool['name']} are not a JSON schema")
    return tuple(raw)


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
