"""The one normal form of data: a conversation, its tools, and what is known of it.

As a JSON row::

    {"id": "...", "messages": [{"role": "system" | "user" | "assistant" | "tool", "content": "...",
                                "reasoning_content": "...", "tool_calls": [{"name": "...", "arguments": {...}}],
                                "weight": 0 | 1}],
     "tools": [{"name": "...", "description": "...", "parameters": {...JSON schema...}}],
     "domain": "math", "source": "...", "licence": "...", "language": "en", "task": {"kind": "math", "answer": "42"}}
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

WORD = re.compile(r"\w+")
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """One call; ``arguments`` is the decoded JSON object."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn. ``reasoning`` is what was thought before ``content``: None where nothing is known of it (a user's
    message, data without reasoning), "" where the model is known to have answered without thinking."""

    role: Role
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning_cut: bool = False
    """The reasoning was truncated: it is rendered up to its last character, and closed right there. Truncated to
    nothing, it is opened and closed at once, as under a thinking budget of 0."""
    trained: bool = field(default=True, repr=False)
    """The model is to learn to write this turn; False (``weight: 0`` in rows) shows it as context alone. Not a part of
    what is said, so not of the repr that names a sample in prepared sets."""

    @property
    def thinks(self) -> bool:
        """The message is the answer to a prompt that asks for thinking."""
        return bool(self.reasoning) or self.reasoning_cut


@dataclass(frozen=True)
class Answer:
    """What a model wrote in one turn, as a chat format reads it (data_recipes/chat/answers.py).

    It is no :class:`Message`: messages are a user's data, and refused where they are wrong; an answer is scored or
    shown, whatever it holds. It becomes a turn of a conversation through ``answers.as_message`` alone.
    """

    content: str
    """What a user sees. A tool call that cannot be read stays in it."""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    faults: tuple[str, ...] = ()
    """What is wrong with it, in words out of ``answers.FAULTS``."""


@dataclass(frozen=True)
class Conversation:
    """A sample. ``task`` tells a verifier what a right answer is (see reward/); None where nothing can be checked."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    domain: str = ""
    source: str = ""
    licence: str = ""
    language: str = "en"
    id: str = ""
    task: Mapping[str, Any] | None = None
    origin: str = field(default="", compare=False)
    """``file:line`` where the row was read, for error messages."""


def text_of(conversation: Conversation) -> str:
    """All that is said in a conversation: contents and reasoning, one a line."""
    return "\n".join(part for message in conversation.messages for part in (message.reasoning, message.content) if part)


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return WORD.findall(text.lower())
