"""Tools as typed Python functions: what a model is told of them, and a call that never raises.

The schema and the check of a call's arguments both come from pydantic's reading of the annotations, so that what the
model is told is what is accepted. The texts come from the docstring (Google style). transformers' ``get_json_schema``
is not used: it refuses arguments without a text, calls every class it does not know ``{"type": "object"}``, drops
defaults, and checks nothing.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, NotRequired, Required, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic.errors import PydanticUserError
from typing_extensions import TypedDict

from nanoalign.common.errors import UserCodeError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
LONGEST_ERROR = 500
"""Characters of an error text for the model."""


@dataclass(frozen=True)
class FunctionTool:
    """A function that a model may call."""

    function: Callable[..., Any]
    schema: Mapping[str, Any]
    """``{"name", "description", "parameters"}``."""
    arguments: "TypeAdapter[dict[str, Any]]"

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function takes them. Raises ValueError with a text for the model."""
        try:
            return self.arguments.validate_json(json.dumps(arguments), strict=True)
        except ValidationError as error:
            raise ValueError("; ".join(map(_fault, error.errors(include_url=False)))) from None
        except Exception as error:  # nesting, numbers or characters that JSON cannot hold
            raise ValueError(f"the arguments cannot be read: {error}") from None


def function_tool(function: Callable[..., Any]) -> FunctionTool:
    """The tool that a function or bound method is.

    Raises:
        UserCodeError: a parameter without an annotation, of a type that JSON does not have, or that cannot be given by
            name; a function without a usable name.
    """
    schema, adapter = _read(getattr(function, "__func__", function), inspect.ismethod(function))
    return FunctionTool(function, schema, adapter)


def as_text(value: Any) -> str:
    """A tool's result as the model reads it: texts as they are, nothing as ``ok``, anything else as JSON."""
    if value is None:
        return "ok"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode()


def error_text(message: str) -> str:
    """What a model is told when a call goes wrong."""
    return f"error: {message}"[:LONGEST_ERROR].encode("utf-8", "replace").decode()


@lru_cache(maxsize=1024)
def _read(function: Callable[..., Any], bound: bool) -> tuple[dict[str, Any], "TypeAdapter[dict[str, Any]]"]:
    """Schema and checker, once for each function. ``bound``: its first parameter is the object's."""
    name = getattr(function, "__name__", "")
    place = _place(function)
    if not NAME.fullmatch(name):
        raise UserCodeError(f"{place}: a tool needs a name of letters, digits and _; got {name or function!r}")
    parameters = list(inspect.signature(function).parameters.values())[int(bound) :]
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:
        raise UserCodeError(f"{place}: tool `{name}`: its annotations cannot be read: {error}") from None
    texts = _docstring(function)
    fields: dict[str, Any] = {}
    for parameter in parameters:
        what = f"{place}: tool `{name}`: parameter `{parameter.name}`"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise UserCodeError(f"{what} cannot be given by name; a model names every argument")
        if parameter.name not in hints:
            raise UserCodeError(f"{what} has no type: write `{parameter.name}: str`, say")
        _require_json_type(hints[parameter.name], what)
        text = texts[1].get(parameter.name)
        hint = Annotated[hints[parameter.name], Field(description=text)] if text else hints[parameter.name]
        needed = parameter.default is parameter.empty
        fields[parameter.name] = Required[hint] if needed else NotRequired[hint]
    adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(_typed_dict(name, fields))
    schema = _without_titles(adapter.json_schema())
    schema.pop("additionalProperties", None)
    for parameter in parameters:
        if parameter.default not in (parameter.empty, None) and _is_json(parameter.default):
            schema["properties"][parameter.name]["default"] = parameter.default
    described = {"name": name, "description": texts[0], "parameters": schema}
    return {key: value for key, value in described.items() if value}, adapter


def _typed_dict(name: str, fields: dict[str, Any]) -> Any:
    return with_config(ConfigDict(extra="forbid"))(TypedDict(name, fields))  # type: ignore[operator]


def _require_json_type(hint: Any, what: str) -> None:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
        adapter.json_schema()
    except (PydanticUserError, NameError, TypeError, ValueError) as error:
        shown = getattr(hint, "__name__", str(hint))
        first = str(error).split("\n")[0]
        raise UserCodeError(f"{what} is a `{shown}`, which JSON does not have: {first}") from None


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """What the docstring says of the function, and of each argument under ``Args:``."""
    lines = inspect.cleandoc(function.__doc__ or "").split("\n")
    heads = [place for place, line in enumerate(lines) if re.fullmatch(r"(Args|Arguments|Parameters):\s*", line)]
    ends = [place for place, line in enumerate(lines) if re.fullmatch(r"[A-Z][a-z]+:\s*", line)]
    about = " ".join(" ".join(lines[: min(ends, default=len(lines))]).split())
    texts: dict[str, list[str]] = {}
    name, indent = "", 0
    for line in lines[heads[0] + 1 :] if heads else []:
        if line.strip() and not line[0].isspace():
            break
        depth = len(line) - len(line.lstrip())
        found = re.match(r"\s+\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)", line)
        if found and (not texts or depth <= indent):
            name, indent = found[1], depth
            texts[name] = [found[2]]
        elif name:
            texts[name].append(line)
    return about, {key: " ".join(" ".join(value).split()) for key, value in texts.items()}


def _without_titles(schema: Any) -> Any:
    """Without the titles that pydantic makes of names: they cost tokens and say nothing. A parameter may be called
    ``title``: that is a mapping, not a text."""
    if isinstance(schema, dict):
        return {
            key: _without_titles(value) for key, value in schema.items()
            if not (key == "title" and isinstance(value, str))
        }  # fmt: skip
    return [_without_titles(item) for item in schema] if isinstance(schema, list) else schema


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _fault(error: Any) -> str:
    where = ".".join(str(step) for step in error["loc"])
    if error["type"] == "missing":
        return f"`{where}` is missing"
    if error["type"] == "extra_forbidden":
        return f"there is no argument `{where}`"
    return f"`{where}`: {error['msg'][0].lower()}{error['msg'][1:]}"


def _place(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else getattr(function, "__module__", "") or "a tool"
