"""Reading what a model wrote: tool calls, what is wrong with a completion, and the way back into a conversation.

Nothing here raises, and everything is linear in the text's length: a completion is scored, whatever it holds.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.conversation import Answer, Message, ToolCall

EMPTY = "wrote no answer"
SPECIAL_TOKEN = "held a special token"
THINKING_TAGS = "did not close its thinking exactly once"
TOOL_CALL = "made a tool call that cannot be read"
NO_CHARACTER = "held bytes that are no character"
FAULTS = (EMPTY, SPECIAL_TOKEN, THINKING_TAGS, TOOL_CALL, NO_CHARACTER)
"""What can be wrong with a completion. All are counted. A special token also makes it malformed: rewards give it their
floor (reward/compose.py), an episode ends there, because what follows such a token is not part of an answer."""

Reader = Callable[[str], tuple[ToolCall, ...] | None]

LONGEST_CALL = 100_000
"""Characters of one call's JSON."""
MOST_CALLS = 128
"""Calls in one answer."""
DEEPEST = 64
"""Levels of nesting in a call's arguments: Python's JSON reader and writer give up at about a thousand."""


def marks(chat: ChatFormat) -> tuple[str, ...]:
    """The texts that encode a special token of the format."""
    return tuple(dict.fromkeys((*chat.special_tokens, *chat.stop)))  # they overlap


def as_message(answer: Answer, chat: ChatFormat) -> Message:
    """The answer as a turn of the conversation that continues after it."""
    return in_plain_text(Message("assistant", answer.content, answer.reasoning, answer.tool_calls), chat)


def as_answer(message: Message) -> Answer:
    """An assistant's message as something to be scored."""
    return Answer(message.content, message.reasoning or "", message.tool_calls)


def in_plain_text(message: Message, chat: ChatFormat) -> Message:
    """The message with a space in each of the format's special tokens, so that they are read as text: what a model or
    a tool wrote must not begin a turn."""

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            for mark in marks(chat):
                value = value.replace(mark, f"{mark[0]} {mark[1:]}")
            return value
        if isinstance(value, Mapping):
            return {plain(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    calls = tuple(ToolCall(plain(call.name), plain(call.arguments)) for call in message.tool_calls)
    return replace(message, content=plain(message.content), reasoning=plain(message.reasoning), tool_calls=calls)


def split_calls(
    answer: str, tags: Sequence[tuple[str, str]], read: Reader | None = None
) -> tuple[str, tuple[ToolCall, ...], bool]:
    """The text beside the calls; the calls between ``tags``, in order; whether there are calls that cannot be read.
    Where there are, they stay text, all other calls are read. ``read`` reads one; :func:`read_calls` unless given."""
    places = sorted(place for opening, closing in tags for place in _between(answer, opening, closing))
    calls: list[ToolCall] = []
    kept: list[str] = []
    end = 0
    for start, stop, text in places:
        if start < end:
            continue
        found = (read or read_calls)(text) if len(calls) < MOST_CALLS else None
        kept.append(answer[end : start if found else stop])
        calls += found or ()
        end = stop
    content = "".join([*kept, answer[end:]]).strip()
    return content, tuple(calls), any(opening in content for opening, _ in tags)


def read_function_calls(text: str) -> tuple[ToolCall, ...] | None:
    """As :func:`read_calls`, also of ``<function=NAME><parameter=KEY>VALUE</parameter></function>`` (Qwen3.5's and
    Nemotron 3's). A value that is JSON other than text is that, as their templates write it; the text "2" is thus read
    as the number."""
    body = text.strip()
    if not body.startswith("<function="):
        return read_calls(text)
    name, _, rest = body.removeprefix("<function=").partition(">")
    inside, closed, after = rest.rpartition("</function>")
    if not name or not closed or after or len(text) > LONGEST_CALL:
        return None
    arguments: dict[str, Any] = {}
    end = 0
    for start, stop, parameter in _between(inside, "<parameter=", "</parameter>"):
        key, marked, value = parameter.partition(">")
        if not marked or key in arguments or inside[end:start].strip():
            return None
        value = value.removeprefix("\n").removesuffix("\n")
        read = _json(value)
        arguments[key] = value if isinstance(read, str) or (read is None and value != "null") else read
        end = stop
    return None if inside[end:].strip() else (ToolCall(name, arguments),)


def _between(text: str, opening: str, closing: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, what is between) for each pair of tags, from left to right."""
    start = text.find(opening)
    while start >= 0:
        inside = start + len(opening)
        stop = text.find(closing, inside)
        if stop < 0:
            return
        yield start, stop + len(closing), text[inside:stop]
        start = text.find(opening, stop + len(closing))


def read_calls(text: str) -> tuple[ToolCall, ...] | None:
    """The calls in ``text``, a JSON object or list of objects with name and arguments (or parameters; also as JSON in a
    string). None where it is anything else, or holds what could not be written down again or read in one way only:
    numbers that no float holds, NaN, half a surrogate pair, a key twice, too many calls, levels or characters."""
    value = _json(text)
    items = value if isinstance(value, list) else [value]
    if len(items) > MOST_CALLS:
        return None
    calls = []
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            return None
        arguments = item.get("arguments", item.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _json(arguments)
        if not isinstance(arguments, dict):
            return None
        calls.append(ToolCall(item["name"], arguments))
    return tuple(calls) or None


def _json(text: str) -> Any:
    """The value, or None where the text is not JSON that every parser reads alike."""
    if len(text) > LONGEST_CALL:
        return None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_finite, parse_int=_int)
        text = json.dumps(value, ensure_ascii=False)
        text.encode()  # half a surrogate pair cannot be written
    except (ValueError, RecursionError, OverflowError):
        return None
    return value if _depth(value) <= DEEPEST else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a duplicate key")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("no float holds it")
    return value


def _int(text: str) -> int:
    value = int(text)  # ValueError above some thousand digits
    float(value)  # OverflowError above 308
    return value


def _depth(value: Any) -> int:
    """Levels of lists and objects, without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth
