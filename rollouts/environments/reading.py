"""What a user's environment returned, read or refused with an error that says where it came from."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nanoalign.common.errors import UserCodeError
from nanoalign.data_recipes.conversation import Message


def listed_tools(episode: Any, environment: Any, place: str) -> list[Any]:
    """The episode's tools, else the environment's. Raises UserCodeError where they are no list."""
    tools = getattr(episode, "tools", None)
    tools = getattr(environment, "tools", None) if tools is None else tools
    if tools is None:
        return []
    if callable(tools) or isinstance(tools, Mapping | str) or not isinstance(tools, Iterable):
        raise UserCodeError(f"{place}: `tools` is a {kind_of(tools)}, expected a list")
    return list(tools)


def messages_of(value: Any, what: str) -> tuple[Message, ...]:
    """A text is a user's message; else messages, as ours or as mappings with role and content. Raises UserCodeError,
    beginning with ``what``, for anything else."""
    if isinstance(value, str):
        return (Message("user", value),)
    if isinstance(value, Message | Mapping):
        value = [value]
    if not isinstance(value, Sequence):
        raise UserCodeError(f"{what}: a {kind_of(value)}, expected a text or messages")
    found = []
    for each in value:
        if isinstance(each, Message):
            found.append(each)
        elif isinstance(each, Mapping) and each.get("role") in ("system", "user", "assistant", "tool"):
            if not isinstance(each.get("content"), str):
                raise UserCodeError(
                    f"{what}: a message's `content` is a {kind_of(each.get('content'))}, expected a text"
                )
            found.append(Message(each["role"], each["content"]))
        else:
            raise UserCodeError(f"{what}: {each!r:.80} is no message; expected role (system, user, tool) and content")
    return tuple(found)


def number_of(value: Any, what: str) -> float:
    """A reward. Raises UserCodeError for anything but a number between 0 and 1."""
    try:
        number = float(value) if not isinstance(value, str | bytes) else None
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise UserCodeError(f"{what} a {kind_of(value)}, expected a number between 0 and 1")
    if math.isnan(number) or not 0 <= number <= 1:
        raise UserCodeError(f"{what} {number}, expected a number between 0 and 1")
    return number


def kind_of(value: Any) -> str:
    """A value's type, for a message."""
    return "None" if value is None else type(value).__name__
