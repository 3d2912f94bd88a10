"""What all chat formats share: mode signals, training examples by prefix rendering, and parsing.

How modes and reasoning are written, in every format:

- An assistant message with reasoning is requested with thinking on; one whose reasoning is "" or None with thinking
  off. In training that mode comes from the message, not from the text, for the mode shows in the prompt's end alone:
  formats that remove the signals ``/think`` and ``/no_think`` from the text render the same whether a signal or the
  caller's ``thinking=False`` set the mode. Obedience is thus learned from the prompt's end.
- A reasoning that ended by itself is written ``reasoning\\n</think>\\n\\nanswer``; all of that is trained.
- A cut reasoning (``Message.reasoning_cut``) is closed after its last character, as the budget rule closes it while
  generating: ``reasoning</think>\\n\\nanswer``. Where the rule waited for a newline, that newline is the reasoning's
  last character. The close was forced, not chosen, so it is not trained; what comes after it is.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.chat.answers import (
    EMPTY,
    NO_CHARACTER,
    SPECIAL_TOKEN,
    THINKING_TAGS,
    TOOL_CALL,
    marks,
    split_calls,
)  # fmt: skip
from nanoalign.data_recipes.chat.base import ChatFormat, Span
from nanoalign.data_recipes.conversation import Answer, Conversation, Message, ToolCall

SIGNAL = re.compile(r"(?<![\w/<])/(no_)?think(?![\w/>])")
"""/think or /no_think as a word of its own: neither a part of a path or an address, nor the tag </think>."""


def signalled_mode(messages: Sequence[Message]) -> bool:
    """Whether thinking is on: the last user or system message with a signal decides, on without any. Within one
    message /think beats /no_think, as in the Nano v2 reference."""
    for message in reversed(messages):
        if message.role in ("user", "system"):
            signals = [match.group() for match in SIGNAL.finditer(message.content)]
            if signals:
                return "/think" in signals
    return True


def without_signals(text: str) -> str:
    """``text`` without its mode signals and without white space at its ends."""
    return SIGNAL.sub("", text).strip()


def dumps(value: Any) -> str:
    """JSON as transformers' templates write it (``tojson``: no ASCII or HTML escapes, ``, `` and ``: `` between)."""
    return json.dumps(value, ensure_ascii=False)


def call_object(call: ToolCall) -> dict[str, Any]:
    """A call as the JSON object that most formats write."""
    return {"name": call.name, "arguments": call.arguments}


def special_token_in(conversation: Conversation, chat: ChatFormat) -> str | None:
    """Where a sample contains one of the format's special tokens or stop texts, in words, or None. Such a text would
    end its turn, or begin another."""
    for number, message in enumerate(conversation.messages):
        text = f"{message.content}\n{message.reasoning}" if message.reasoning else message.content
        if message.tool_calls:
            text += dumps([call_object(call) for call in message.tool_calls])
        for token in marks(chat):
            if token in text:
                return f"message {number} ({message.role}) holds the special token {token}"
    listed = dumps(conversation.tools) if conversation.tools else ""
    found = next((token for token in marks(chat) if token in listed), None)
    return f"a tool holds the special token {found}" if found else None


class Format:
    """Base of the formats written here: a subclass gives ``prompt`` and ``_answer`` and the texts below."""

    name: str
    think_open = "<think>"
    think_close = "</think>"
    stop: tuple[str, ...]
    special_tokens: tuple[str, ...]
    prompt_opens_thinking = True
    """Whether the prompt ends inside an opened thinking; else the model writes ``think_open`` itself."""
    call_tags: tuple[tuple[str, str], ...] = ()
    """What opens and closes the JSON of tool calls in a completion."""
    jinja: tuple[str, ...]
    """The files beside this one, without their suffix, whose texts make the template of saved models."""
    jinja_settings: Mapping[str, Any] = {}
    """What is set before them."""

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, thinking: bool | None = None
    ) -> str:
        """The text after which the assistant writes; see :class:`data_recipes.chat.base.ChatFormat`."""
        raise NotImplementedError

    def template(self) -> str:
        """The Jinja template of saved models; see :class:`data_recipes.chat.base.ChatFormat`."""
        literals = {key: "none" if value is None else json.dumps(value) for key, value in self.jinja_settings.items()}
        texts = [f"{{%- set {name} = {value} -%}}\n" for name, value in literals.items()]
        texts += [Path(__file__).with_name(f"{file}.jinja").read_text(encoding="utf-8") for file in self.jinja]
        return "".join(texts)

    def _answer(self, message: Message) -> str:
        """Content and tool calls as written after the thinking, without the turn's end."""
        raise NotImplementedError

    def _end(self) -> str:
        """What the assistant writes after its answer."""
        return self.stop[0]

    def completion(self, message: Message) -> list[Span]:
        """What the assistant writes; see :class:`data_recipes.chat.base.ChatFormat`."""
        answer = self._answer(message) + self._end()
        if not message.thinks:
            return [Span(answer, True)]
        reasoning = message.reasoning or ""
        opening = "" if self.prompt_opens_thinking else self.think_open
        opening += "\n" if opening and reasoning else ""
        if not message.reasoning_cut:
            thought = f"{opening}{reasoning.strip()}\n{self.think_close}\n\n"
            return [Span(thought + answer, True)]
        begun = opening + reasoning.lstrip()
        close = [Span(self.think_close, False), Span("\n\n" + answer, True)]
        return [Span(begun, True), *close] if begun else close

    def examples(self, conversation: Conversation) -> list[list[Span]]:
        """Training renders, built from ``prompt`` and ``completion`` alone, so that what is trained is what inference
        renders. A turn extends the example before it if its prompt does; else it gets an example of its own. A turn
        that is not ``trained`` is context alone, and an example of nothing else is left out. Raises DataError for a
        conversation without an assistant message to train on, or with special tokens in its text."""
        self._check(conversation)
        examples: list[list[Span]] = []
        text = ""
        for index, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            history = conversation.messages[:index]
            context = self.prompt(history, conversation.tools, thinking=message.thinks)
            turn = self._turn(history, conversation.tools, message)
            if not message.trained:
                turn = [Span(span.text, False) for span in turn]
            if examples and context.startswith(text):
                examples[-1] += [Span(context[len(text) :], False), *turn]
            else:
                examples.append([Span(context, False), *turn])
            text = context + "".join(span.text for span in turn)
        return [spans for spans in examples if any(span.trained for span in spans)]

    def _turn(self, history: Sequence[Message], tools: Sequence[Mapping[str, Any]], message: Message) -> list[Span]:
        """The completion that writes ``message`` after ``history``; here history does not matter."""
        return self.completion(message)

    def _check(self, conversation: Conversation) -> None:
        where = conversation.origin or conversation.id or conversation.source or "a conversation"
        if not any(message.role == "assistant" and message.trained for message in conversation.messages):
            raise DataError(f"{where}: no assistant message to train on")
        if fault := special_token_in(conversation, self):
            raise DataError(f"{where}: {fault}")

    def parse(self, completion: str, *, thinking: bool) -> Answer:
        """What a model wrote; see :class:`data_recipes.chat.base.ChatFormat`."""
        for stop in self.stop:
            completion = completion.removesuffix(stop)
        in_prompt = thinking and self.prompt_opens_thinking
        opened = completion.lstrip().startswith(self.think_open)
        reasoning, answer = "", completion
        if opened or in_prompt:
            body = completion.lstrip().removeprefix(self.think_open)
            reasoning, _, answer = body.partition(self.think_close)
        content, calls, unread = self._split_calls(answer)
        tags = (completion.count(self.think_open), completion.count(self.think_close))
        found = {
            EMPTY: not content and not calls,
            SPECIAL_TOKEN: any(mark in completion for mark in marks(self) if mark not in self._tags()),
            THINKING_TAGS: tags != (int(thinking and not in_prompt), int(thinking)),
            TOOL_CALL: unread,
            NO_CHARACTER: "\ufffd" in completion,
        }
        return Answer(content, reasoning.strip(), calls, tuple(fault for fault, there in found.items() if there))

    def _tags(self) -> set[str]:
        """Texts that belong in a completion, though some tokenizers call them special."""
        return {self.think_open, self.think_close, *(tag for pair in self.call_tags for tag in pair)}

    def _split_calls(self, answer: str) -> tuple[str, tuple[ToolCall, ...], bool]:
        """The text beside the calls, the calls, and whether there are calls that cannot be read (they stay text)."""
        return split_calls(answer, self.call_tags)
