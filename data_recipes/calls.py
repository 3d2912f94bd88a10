"""Calls, their results and their schemas, as rows hold them: results in the order of their calls, nulls that a union of
keys left behind taken out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nanoalign.data_recipes.conversation import Message, ToolCall
from nanoalign.data_recipes.readers import RowError, parse_json

NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Schema keywords whose keys are names, not keywords."""
DATA = ("default", "const", "enum", "examples", "example")
"""Schema keywords whose values are data: nulls inside them are meant."""
MAY_BE_NULL = ("default", "const")

Raw = Mapping[str, Any]


def settled(
    messages: Sequence[Message], raw: Sequence[Raw], tools: Sequence[Raw]
) -> tuple[tuple[Message, ...], tuple[Raw, ...]]:
    """Messages and tools as they were meant: see :func:`in_call_order`, :func:`meant`, :func:`without_union_nulls`."""
    tools = tuple(without_union_nulls(tool) for tool in tools)
    return tuple(meant(message, tools) for message in in_call_order(messages, raw)), tools


def in_call_order(messages: Sequence[Message], raw: Sequence[Raw]) -> tuple[Message, ...]:
    """Messages with each call's result in the place of its call. ``raw`` are their rows, with the calls' ``id`` and the
    results' ``tool_call_id`` or ``name``.

    With ids every call of a turn has one result. Without, results are matched by the names of their tools where all
    have one, otherwise they are taken in the order of their calls, or one result answers all. Raises RowError for a
    result that belongs to no call, and for a call without a result that is not the end of the conversation.
    """
    ordered = list(messages)
    for place, message in enumerate(messages):
        if message.tool_calls:
            end = place + 1
            while end < len(messages) and messages[end].role == "tool":
                end += 1
            order = _order(message.tool_calls, raw[place], raw[place + 1 : end], place, end < len(messages))
            ordered[place + 1 : end] = [messages[place + 1 + number] for number in order]
    return tuple(ordered)


def _order(calls: Sequence[ToolCall], caller: Raw, results: Sequence[Raw], place: int, goes_on: bool) -> Sequence[int]:
    """The numbers of the results in the order of the calls."""
    where = f"message {place}"
    written = caller["tool_calls"]
    ids = [call.get("id") or None for call in (parse_json(written) if isinstance(written, str) else written)]
    given = [result.get("tool_call_id") or None for result in results]
    if any(given):
        for number, id in enumerate(given):
            if id not in ids:
                known = ", ".join(repr(each) for each in ids if each) or "none"
                raise _fault(f"message {place + 1 + number} answers {id!r}; ids of {where}'s calls: {known}")
        _check_one_each(ids, given, where)
        return [given.index(id) for id in ids]
    if not results and goes_on and any(ids):
        raise _fault(f"{where} calls {calls[0].name}, but no result follows")
    if len(results) not in (0, 1, len(calls)):
        raise _fault(f"{where} makes {len(calls)} calls, but {len(results)} results without tool_call_id follow")
    names = [result.get("name") or None for result in results]
    if len(results) == len(calls) and all(names):
        return _by_name([call.name for call in calls], names, where)
    return range(len(results))


def _check_one_each(ids: Sequence[Any], given: Sequence[Any], where: str) -> None:
    if None in ids or len(set(ids)) < len(ids):
        raise _fault(f"results name ids, but {where} has a call without an id of its own")
    for id in ids:
        if given.count(id) != 1:
            raise _fault(f"{given.count(id)} results for {where}'s call {id!r}")


def _by_name(called: Sequence[str], names: Sequence[Any], where: str) -> list[int]:
    order, free = [], list(range(len(names)))
    for name in called:
        number = next((number for number in free if names[number] == name), None)
        if number is None:
            raise _fault(f"{where} calls {name}, but the results are of {', '.join(map(str, names))}")
        free.remove(number)
        order.append(number)
    return order


def _fault(reason: str) -> RowError:
    return RowError("wrong result", reason)


def without_union_nulls(tool: Raw) -> Raw:
    """A tool without the nulls that a union of keys leaves in JSON lines: a null is neither a keyword nor a property.
    ``default: null`` and what else is data stays."""
    return _schema(tool) if "None" in repr(tool) else tool  # most have none, and repr is quick


def _schema(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_schema(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: value if key in DATA else _named(value) if key in NAMED else _schema(value)
        for key, value in schema.items()
        if value is not None or key in MAY_BE_NULL
    }


def _named(schemas: Any) -> Any:
    if not isinstance(schemas, Mapping):
        return schemas
    return {name: _schema(schema) for name, schema in schemas.items() if schema is not None}


def meant(message: Message, tools: Sequence[Raw]) -> Message:
    """A message whose calls' arguments are those that were meant: a null under a name that the tool's schema does not
    know was left by a union of keys, and goes; a null for a parameter that the tool has stays."""
    if "None" not in repr(message.tool_calls):
        return message
    schemas = {tool["name"]: tool.get("parameters") for tool in tools}
    calls = [ToolCall(call.name, _known_nulls(call.arguments, schemas.get(call.name))) for call in message.tool_calls]
    return replace(message, tool_calls=tuple(calls))


def _known_nulls(value: Any, schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, list):
        return [_known_nulls(item, schema.get("items")) for item in value]
    properties = schema.get("properties")
    if not isinstance(value, Mapping) or not isinstance(properties, Mapping):
        return value
    anything = bool(schema.get("additionalProperties")) or "patternProperties" in schema
    return {
        key: _known_nulls(item, properties.get(key))
        for key, item in value.items()
        if item is not None or key in properties or anything
    }
