"""What adapters are made of: messages, thoughts, tools and schemas in the normal form."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Raw = Mapping[str, Any]
Adapter = Callable[[Raw], Iterable[dict[str, Any]]]

ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
    "system": "system",
}
"""Roles by the names that data sets give them; a call is an assistant message that only calls."""
TYPES = {
    "dict": "object", "float": "number", "tuple": "array", "list": "array", "str": "string", "date": "string",
    "datetime": "string", "int": "integer", "bool": "boolean", "any": None,
}  # fmt: skip
"""JSON Schema's names of types that data sets call otherwise; None: any type, so no name."""


class NotASample(Exception):
    """A sound row that gives no sample (a tie between two answers, say): left out and counted, never a fault."""


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    """A message of the normal form."""
    return {"role": role, "content": content, **more}


def thought(text: str) -> dict[str, Any]:
    """An assistant message from text that may begin with ``<think>...</think>``."""
    match = re.match(r"\s*<think>(.*?)</think>(.*)\Z", text, re.DOTALL)
    if not match:
        return turn("assistant", text)
    return turn("assistant", match[2].strip(), reasoning_content=match[1].strip())


def normal_tools(raw: Any) -> list[dict[str, Any]]:
    """Tools in the flat normal form, from OpenAI's nesting, JSON text, or schemas with Python's type names."""
    tools = json.loads(raw) if isinstance(raw, str) and raw.strip() else raw or []
    flat = []
    for tool in tools if isinstance(tools, list) else [tools]:
        inner = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
        flat.append(
            {
                "name": inner["name"],
                "description": inner.get("description") or "",
                "parameters": json_schema(inner.get("parameters") or {"type": "object", "properties": {}}),
            }
        )
    return flat


def json_schema(schema: Any) -> Any:
    """A schema with JSON Schema's type names in place of Python's, and without the stray key ``optional``."""
    if isinstance(schema, list):
        return [json_schema(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    result = {key: _named(value) if key == "properties" else json_schema(value) for key, value in schema.items()}
    if isinstance(schema.get("optional"), bool):
        del result["optional"]
    if isinstance(schema.get("type"), str):
        name = TYPES.get(schema["type"].lower(), schema["type"])
        result = {key: name if key == "type" else value for key, value in result.items() if key != "type" or name}
    return result


def _named(properties: Any) -> Any:
    return {k: json_schema(v) for k, v in properties.items()} if isinstance(properties, Mapping) else properties


def arguments_of(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def known_of(raw: Raw) -> dict[str, Any]:
    return {key: raw[key] for key in ("id", "licence", "license", "language", "task", "domain") if raw.get(key)}


def with_input(raw: Raw) -> str:
    return f"{raw['instruction']}\n\n{raw['input']}" if raw.get("input") else raw["instruction"]
