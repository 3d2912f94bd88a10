"""A chat format: renders conversations to text with a loss mask, and parses completions back.

The loss mask comes from here, as spans, never from searching strings in text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nanoalign.data_recipes.conversation import Answer, Conversation, Message


@dataclass(frozen=True)
class Span:
    """A piece of rendered text. ``trained`` says whether the model is to learn to write it. The spans concatenated are
    the full text; tokens count as trained when their first character is in a trained span."""

    text: str
    trained: bool


class ChatFormat(Protocol):
    """One way of writing conversations down. Implementations are stateless."""

    name: str
    think_open: str
    """What opens thinking, e.g. ``<think>``; the prompt may end with it."""
    think_close: str
    """What closes thinking, e.g. ``</think>``."""
    stop: tuple[str, ...]
    """Texts (special tokens) that end the assistant's turn; the first is the one that training writes."""
    special_tokens: tuple[str, ...]
    """Tokens a tokenizer of this format must hold as single tokens."""

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        thinking: bool | None = None,
    ) -> str:
        """The text after which the assistant writes. ``thinking`` forces the mode; None obeys the last /think or
        /no_think in the messages (default: thinking)."""
        ...

    def completion(self, message: Message) -> list[Span]:
        """What the assistant writes after ``prompt(..., thinking=message.thinks)`` for ``message``, up to and including
        the first stop text. All of it is trained, except the forced close of a cut reasoning."""
        ...

    def examples(self, conversation: Conversation) -> list[list[Span]]:
        """Training renders: one where a longer conversation only extends a shorter one, else one for each assistant
        turn whose history is rewritten. What is trained equals what inference renders for every prefix."""
        ...

    def parse(self, completion: str, *, thinking: bool) -> Answer:
        """What a model wrote (stop text removed). ``thinking`` says whether the prompt requested it. Never raises: a
        tool call that cannot be read stays in ``content``, and what is wrong is named in ``faults``."""
        ...

    def template(self) -> str:
        """The Jinja template to save beside a model that was trained in this format. It takes ``messages`` (with
        ``reasoning_content`` and ``tool_calls``), ``tools`` and ``enable_thinking``: left out, the last /think or
        /no_think in the messages decides. It renders what ``prompt`` and ``completion`` give (tested)."""
        ...
