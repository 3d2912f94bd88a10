"""pydantic's errors in the recipe's own words: dotted path, what was expected, the nearest valid key."""

import types
from collections.abc import Iterable
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nanoalign.common.printable import nearest
from nanoalign.recipe.foreign import hint as foreign_hint
from nanoalign.recipe.source import Path_

PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9_-]*$": "a name of letters, digits, - and _, starting with a letter or digit",
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "a name of letters, digits, -, _ and ., starting with a letter or digit",
    r"^https?://": "an address that starts with http:// or https://",
    r"(?s)\{conversation\}.*\{answer\}": "a text that contains {conversation} and, after it, {answer}",
}
"""What the sections' patterns require, in words."""


def keys(model: type[BaseModel]) -> list[str]:
    """A section's keys as written in YAML."""
    return [field.alias or name for name, field in model.model_fields.items()]


def locate(model: Any, location: tuple[int | str, ...]) -> tuple[Path_, type[BaseModel] | None, list[Any]]:
    """The path in the data of a pydantic error's location (unions add a tag, bad keys a ``[key]``), the section that
    its last step belongs to, None where that is no section, and all members of the union that is wanted there, or that
    the section is of where it has no such key."""
    path: tuple[int | str, ...] = ()
    owner: type[BaseModel] | None = None
    rest, union = list(location), []
    while rest and rest[0] != "[key]":
        members = _members(model)
        if len(members) > 1:
            tag = rest.pop(0)
            model, union = next((m for m in members if _tag(m) == tag), members[0]), members
            continue
        model = members[0]
        union = union if model in union else []
        step = rest.pop(0)
        path = (*path, step)
        owner = model if _is_section(model) else None
        model = _inner(model, step)
    end = _members(model)
    return path, owner, end if len(end) > 1 else union if end == [Any] else []


def relevant(error: Any, data: Any) -> bool:
    """Of `number or mapping` pydantic reports both branches; only the one that was meant is worth showing."""
    value = data
    for step in error["loc"]:
        inside_list = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if inside_list or (isinstance(value, dict) and step in value):
            value = value[step]
        elif step in ("SourceUse", "OwnReward"):
            return isinstance(value, dict)
        elif step in ("constrained-int", "float"):
            return not isinstance(value, dict)
    return True


def describe(error: Any, owner: type[BaseModel] | None, union: Iterable[Any] = ()) -> str:
    """The message for one pydantic error in a section that is one of ``union``."""
    kind, given, last = error["type"], error["input"], str(error["loc"][-1])
    if kind == "extra_forbidden":
        if owner is None:
            return "unknown key"
        hint = foreign_hint(last, owner)
        if not hint and (others := [_tag(each) for each in union if _is_section(each) and last in keys(each)]):
            return f"{_tag(owner)} has no such key; {' and '.join(others)} {'has' if len(others) == 1 else 'have'} it"
        return f"unknown key{hint or nearest(last, keys(owner))}"
    if kind == "missing":
        return "required but missing"
    if kind == "union_tag_invalid":
        known = [word.strip("' ") for word in error["ctx"]["expected_tags"].split(",")]
        return f"kind: unknown `{error['ctx']['tag']}`{nearest(error['ctx']['tag'], known)}"
    if kind == "literal_error":
        known = [word.strip("' ") for word in error["ctx"]["expected"].replace(" or ", ",").split(",")]
        hint = nearest(given, known) if isinstance(given, str) else ""
        return f"expected {error['ctx']['expected']}, got {_show(given)}{hint if 'did you' in hint else ''}"
    if kind in ("union_tag_not_found", "model_type", "model_attributes_type", "dict_type"):
        kinds = ", ".join(_tag(each) for each in union if _is_section(each) and "kind" in each.model_fields)
        if isinstance(given, dict):
            having = [_tag(each) for each in union if _is_section(each) and {*given} <= {*keys(each)}] if given else []
            hint = f"; of them `{'` and `'.join(having)}` can have what is here" if having else ""
            return f"`kind` is required but missing, one of: {kinds}{hint}"
        return f"expected a mapping{f' with `kind`, one of: {kinds};' if kinds else ','} got {_show(given)}"
    if kind == "string_pattern_mismatch":
        pattern = error["ctx"]["pattern"]
        return f"expected {PATTERNS.get(pattern, f'a text that matches {pattern}')}, got {_show(given)}"
    if kind == "too_short":
        least = error["ctx"]["min_length"]
        return f"expected at least {least} item{'s' * (least > 1)}, got {_show(given)}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    message = error["msg"].replace("Input should be a valid", "expected a").replace("Input should be", "expected")
    message = message.replace("a integer", "a whole number").replace("a tuple", "a list").replace("a list", "a list")
    return f"{message}, got {_show(given)}"


def _show(value: Any) -> str:
    text = (
        {None: "null", True: "true", False: "false"}.get(value)
        if value is None or value is True or value is False
        else None
    )
    text = text or repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _members(model: Any) -> list[Any]:
    """A type without Annotated and None; several where it is a union that pydantic tags."""
    if isinstance(model, FieldInfo):
        model = model.annotation
    if get_origin(model) is Annotated:
        return _members(get_args(model)[0])
    if get_origin(model) in (Union, types.UnionType):
        return [inner for member in get_args(model) if member is not type(None) for inner in _members(member)]
    return [model]


def _is_section(model: Any) -> bool:
    return isinstance(model, type) and issubclass(model, BaseModel)


def _tag(member: Any) -> str:
    if _is_section(member):
        kind = member.model_fields.get("kind")
        return get_args(kind.annotation)[0] if kind else member.__name__
    return str(member)


def _inner(model: Any, step: int | str) -> Any:
    if _is_section(model):
        return next((f for name, f in model.model_fields.items() if (f.alias or name) == step), Any)
    arguments = get_args(model)
    if get_origin(model) is dict:
        return arguments[1]
    if get_origin(model) is tuple and isinstance(step, int):
        return arguments[min(step, len(arguments) - 1)]
    return arguments[0] if arguments else Any
