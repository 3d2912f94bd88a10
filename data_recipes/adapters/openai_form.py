"""Messages as OpenAI's API has them, and as those that speak it write theirs (vLLM, Anthropic's parts, Ollama).

What is known is read: text, reasoning, calls, results, refusals. What is not is refused by name, because a part or a
key that is silently left out may be half of a sample.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from nanoalign.data_recipes.adapters.parts import ROLES, Raw, decoded, turn
from nanoalign.data_recipes.readers import RowError

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""The names of a message's reasoning."""
KEPT = ("reasoning_cut", "weight", "name", "tool_call_id")
KNOWN = {"role", "content", "tool_calls", "function_call", "refusal", *THOUGHTS, *KEPT}
ASIDE = {"type", "cache_control", "signature", "is_error", "annotations", "logprobs"}
"""Keys of parts that no chat format has a place for, and that add nothing to the text."""
TEXTS = ("text", "input_text", "output_text", "refusal")
THINKING = ("reasoning", "thinking")
PARTS = {
    **dict.fromkeys(TEXTS, ("text", "value", "refusal")),
    **dict.fromkeys(THINKING, ("thinking", "reasoning", "text", "value")),
    "tool_call": ("value", "text"),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id", "content"),
}
"""What is read of each type of part."""


def openai_messages(raw: Iterable[Raw]) -> list[dict[str, Any]]:
    """Messages of the normal form. Parts of type ``tool_result`` become messages of their own, before the text that
    follows them. Raises RowError that names the message."""
    return [message for number, each in enumerate(raw) for message in _messages(each, f"message {number}")]


def openai_message(raw: Raw, where: str = "a message") -> dict[str, Any]:
    """One message, as :func:`openai_messages`; its call's arguments may be JSON text, as they are in ``raw``."""
    _check(raw, KNOWN, where)
    role = ROLES.get(raw["role"], str(raw["role"]))
    calls = [_call(call, where) for call in decoded(raw.get("tool_calls"), f"{where}'s tool_calls") or []]
    calls += [_call(raw["function_call"], where)] if raw.get("function_call") else []
    content = raw.get("content") or ""
    thoughts: list[str] = []
    if isinstance(content, list):
        content, thoughts, more = _read(content, where)
        calls += more
    message = turn(role, content or raw.get("refusal") or "")
    if content and raw.get("refusal"):
        raise RowError("unknown key", f"{where} has a refusal in addition to its content")
    reasoning = _reasoning(raw, "\n\n".join(thoughts), where)
    message |= {} if reasoning is None else {"reasoning_content": reasoning}
    message |= {"tool_calls": calls} if calls else {}
    return message | {key: raw[key] for key in KEPT if raw.get(key) is not None}


def _messages(raw: Raw, where: str) -> Iterable[dict[str, Any]]:
    content = raw.get("content")
    if not isinstance(content, list):
        return [openai_message(raw, where)]
    results = [part for part in content if isinstance(part, Mapping) and part.get("type") == "tool_result"]
    if content[: len(results)] != results:
        raise RowError("wrong order", f"{where} has a tool_result after another part")
    messages = [_result(part, where) for part in results]
    rest = content[len(results) :]
    return [*messages, *([openai_message({**raw, "content": rest}, where)] if rest or not messages else [])]


def _result(part: Raw, where: str) -> dict[str, Any]:
    """Anthropic's result of a call, as the message of a tool."""
    _check_part(part, where)
    content = part.get("content") or ""
    if isinstance(content, list):
        content, *others = _read(content, where)
        if any(others):
            raise RowError("unknown part", f"{where} has a tool_result that holds more than text")
    return turn("tool", content, tool_call_id=part.get("tool_use_id"))


def _read(parts: Iterable[Any], where: str) -> tuple[str, list[str], list[dict[str, Any]]]:
    """Text, thoughts and calls of a list of parts."""
    text: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for part in parts:
        kind = _check_part(part, where)
        if kind in THINKING and (text or calls):
            raise RowError("wrong order", f"{where} thinks after it has answered; only a reasoning before is trained")
        if kind == "tool_use":
            calls.append({"id": part.get("id"), "name": part.get("name"), "arguments": part.get("input")})
        elif kind == "tool_call":
            calls.append(_call(decoded(_said(part, where), f"{where}'s tool_call"), where))
        elif kind == "tool_result":
            raise RowError("wrong order", f"{where} has a tool_result inside another part")
        else:
            (thoughts if kind in THINKING else text).append(_said(part, where))
    return "".join(text), thoughts, calls


def _check_part(part: Any, where: str) -> str:
    """The type of a part. Raises RowError for one that is not known, or that holds what is not."""
    if not isinstance(part, Mapping):
        raise RowError("wrong type", f"{where} has a part that is not an object")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in PARTS:
        raise RowError("unknown part", f"{where} has a part of type {kind!r}; known: {', '.join(PARTS)}")
    _check(part, {*PARTS[kind], *ASIDE}, f"{where}'s part of type {kind}")
    return kind


def _said(part: Raw, where: str) -> str:
    found = [part[key] for key in PARTS[part["type"]] if part.get(key) is not None]
    if len(found) != 1 or not isinstance(found[0], str):
        raise RowError("unknown part", f"{where}'s part of type {part['type']} has no text, or more than one")
    return found[0]


def _call(raw: Any, where: str) -> dict[str, Any]:
    """A call of the normal form, with its id; ``arguments`` as they are."""
    if not isinstance(raw, Mapping):
        raise RowError("bad tool call", f"{where} has a call that is not an object")
    inner = raw.get("function") or raw
    if not isinstance(inner, Mapping) or raw.get("type") not in (None, "function"):
        raise RowError("bad tool call", f"{where} has a call of type {raw.get('type')!r}")
    outer = {key: value for key, value in raw.items() if key not in ("function", "type", "index") and value is not None}
    return {**outer, **{key: value for key, value in inner.items() if key != "function"}}


def _reasoning(raw: Raw, parts: str, where: str) -> Any:
    """The one reasoning of a message, under whatever name; "" where every name has it empty."""
    named = {key: raw[key] for key in THOUGHTS if raw.get(key) is not None}
    given = {key: text for key, text in {**named, "parts": parts}.items() if text}
    if len({str(text) for text in given.values()}) > 1:
        raise RowError("wrong type", f"{where} has different reasonings in {', '.join(given)}")
    return next(iter(given.values()), "" if named else None)


def _check(raw: Raw, known: set[str], where: str) -> None:
    """Raises RowError for a key that is not known, unless it holds nothing."""
    unknown = sorted(str(key) for key, value in raw.items() if key not in known and value not in (None, "", [], {}))
    if unknown:
        raise RowError("unknown key", f"{where} has {', '.join(map(repr, unknown))}; known: {sorted(known)}")
