"""What adapters are made of: messages, thoughts, tools and schemas in the normal form."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nanoalign.data_recipes.readers import RowError, parse_json

Raw = Mapping[str, Any]
Adapter = Callable[[Raw], Iterable[dict[str, Any]]]

ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Roles by the names that data sets give them; a call is an assistant message that only calls."""
TYPES = {
    "dict": "object", "float": "number", "tuple": "array", "list": "array", "str": "string", "date": "string",
    "datetime": "string", "int": "integer", "bool": "boolean", "any": None,
}  # fmt: skip
"""JSON Schema's names of types that data sets call otherwise; None: any type, so no name."""


class NotASample(Exception):
    """A valid row that gives no sample (a tie between two answers, say): left out and counted, never an error."""


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    """A message of the normal form."""
    return {"role": role, "content": content, **more}


def decoded(value: Any, what: str) -> Any:
    """A value, or the value in JSON text (as columns of Parquet and CSV files hold it). Raises RowError."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except (ValueError, RecursionError) as error:
        raise RowError("bad JSON", f"{what}: {error}") from None


def listed(raw: Raw, key: str) -> list[Any]:
    """A row's list of turns, or the list in its JSON text. Raises RowError where it is none."""
    value = decoded(raw[key], repr(key))
    if not isinstance(value, list):
        raise RowError("wrong type", f"{key!r} is not a list")
    for number, each in enumerate(value):
        if not isinstance(each, Mapping):
            raise RowError("wrong type", f"{key} {number} is not an object")
    return value


TOOL_KEYS = {"type", "function", "name", "description", "parameters", "input_schema", "strict", "cache_control"}
LEFT_OUT = "parts left out"
"""The key of an adapter's row under which it lists what it did not take from the raw row, for counting."""


def left_out(raw: Raw, read: Iterable[str], raw_tools: Any) -> dict[str, list[str]]:
    """What is in a row but in none of the keys ``read`` (nor in :func:`known_of`), nor in those of a tool: its reasons,
    for counting, as an entry of the adapter's row."""
    known = {*read, *KNOWN, "source"}
    reasons = {f"the row's key {key!r}" for key, value in raw.items() if key not in known and value not in EMPTY}
    tools = decoded(raw_tools, "'tools'") if isinstance(raw_tools, str) and raw_tools.strip() else raw_tools or []
    for tool in (decoded(tool, "a tool") for tool in (tools if isinstance(tools, list) else [tools])):
        for each in (tool, tool.get("function")) if isinstance(tool, Mapping) else ():
            if isinstance(each, Mapping):
                unread = (key for key, value in each.items() if key not in TOOL_KEYS and value not in EMPTY)
                reasons.update(f"a tool's key {key!r}" for key in unread)
    return {LEFT_OUT: sorted(reasons)} if reasons else {}


EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Empty values."""


def normal_tools(raw: Any) -> list[dict[str, Any]]:
    """Tools in the flat normal form, from OpenAI's nesting, Anthropic's ``input_schema``, JSON text (of the list or of
    each tool), or schemas with Python's type names."""
    tools = decoded(raw, "'tools'") if isinstance(raw, str) and raw.strip() else raw or []
    flat = []
    for number, each in enumerate(tools if isinstance(tools, list) else [tools]):
        tool = decoded(each, f"tool {number}")
        inner = tool.get("function") if isinstance(tool, Mapping) else None
        inner = inner if isinstance(inner, Mapping) else tool
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise RowError("bad tool", f"tool {number} has no name")
        schema = decoded(inner.get("parameters") or inner.get("input_schema"), f"the parameters of {inner['name']}")
        flat.append(
            {
                "name": inner["name"],
                "description": inner.get("description") or "",
                "parameters": as_json_schema(schema or {"type": "object", "properties": {}}),
            }
        )
    return flat


def as_json_schema(schema: Any) -> Any:
    """A schema with JSON Schema's type names in place of Python's, and without the stray key ``optional``."""
    if isinstance(schema, list):
        return [as_json_schema(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    result = {key: _named(value) if key == "properties" else as_json_schema(value) for key, value in schema.items()}
    if isinstance(schema.get("optional"), bool):
        del result["optional"]
    if isinstance(schema.get("type"), str):
        name = TYPES.get(schema["type"].lower(), schema["type"])
        result = {key: name if key == "type" else value for key, value in result.items() if key != "type" or name}
    return result


def _named(properties: Any) -> Any:
    return {k: as_json_schema(v) for k, v in properties.items()} if isinstance(properties, Mapping) else properties


KNOWN = ("id", "licence", "license", "language", "task", "domain")


def known_of(raw: Raw) -> dict[str, Any]:
    """What a row declares under the normal form's own keys."""
    return {key: raw[key] for key in KNOWN if raw.get(key)}


def with_input(raw: Raw) -> str:
    return f"{raw['instruction']}\n\n{raw['input']}" if raw.get("input") else raw["instruction"]
