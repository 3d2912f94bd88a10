"""Any chat template of a Hugging Face tokenizer, as ``hf:FOLDER_OR_HUB_ID``, with masks by prefix rendering.

The prompt is the template's with ``add_generation_prompt``; a completion is what the template adds to that prompt for
the next assistant message. A template that rewrites the final message, so that nothing is simply appended, is refused
by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nanoalign.common.errors import CheckpointError, DataError
from nanoalign.data_recipes.chat.base import Span
from nanoalign.data_recipes.chat.render import Format, call_object, signalled_mode
from nanoalign.data_recipes.conversation import Message


class HFTemplate(Format):
    """A tokenizer's own template. Thinking is passed as ``enable_thinking``, reasoning as ``reasoning_content``, tools
    in OpenAI's layout. Signals stay in the text, for the template to handle. A cut reasoning is refused, since only the
    template knows how it closes thinking."""

    call_tags = (("<tool_call>", "</tool_call>"), ("<TOOLCALL>", "</TOOLCALL>"))

    def __init__(self, name: str, tokenizer: Any) -> None:
        """Raises CheckpointError where the tokenizer has no chat template or no end-of-turn token."""
        if not tokenizer.chat_template:
            raise CheckpointError(f"{name}: the tokenizer has no chat template")
        if not tokenizer.eos_token:
            raise CheckpointError(f"{name}: the tokenizer has no eos token to end a turn")
        self.name = name
        self.tokenizer = tokenizer
        self.special_tokens = tuple(tokenizer.all_special_tokens)
        self.stop = tuple(dict.fromkeys((self._turn_end(), tokenizer.eos_token)))
        opened = self.prompt([Message("user", "u")], thinking=True).rstrip()
        self.prompt_opens_thinking = opened.endswith(self.think_open)

    @classmethod
    def load(cls, name: str) -> "HFTemplate":
        """The template of ``hf:FOLDER_OR_HUB_ID``."""
        from transformers import AutoTokenizer

        return cls(name, AutoTokenizer.from_pretrained(name.removeprefix("hf:")))

    def _turn_end(self) -> str:
        """The special token that the template writes after an answer, the eos token if it writes none."""
        user = Message("user", "u")
        whole = self._render([user, Message("assistant", "nanoalign")], (), thinking=False, generate=False)
        after = whole[whole.rindex("nanoalign") + len("nanoalign") :]
        return min((t for t in self.special_tokens if t in after), key=after.index, default=self.tokenizer.eos_token)

    def template(self) -> str:
        """The tokenizer's own."""
        own: str = self.tokenizer.chat_template
        return own

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, thinking: bool | None = None
    ) -> str:
        """As :meth:`ChatFormat.prompt`."""
        thinking = signalled_mode(messages) if thinking is None else thinking
        return self._render(messages, tools, thinking=thinking, generate=True)

    def completion(self, message: Message) -> list[Span]:
        """What the template writes for ``message`` after a lone user message."""
        return self._turn([Message("user", "u")], (), message)

    def _turn(self, history: Sequence[Message], tools: Sequence[Mapping[str, Any]], message: Message) -> list[Span]:
        if message.reasoning_cut:
            raise DataError(f"{self.name}: a template cannot render a cut reasoning; use one of our own formats")
        thinking = bool(message.reasoning)
        prompt = self.prompt(history, tools, thinking=thinking)
        whole = self._render([*history, message], tools, thinking=thinking, generate=False)
        if not whole.startswith(prompt):
            raise DataError(
                f"{self.name}: the template writes an answer that its own generation prompt does not lead to "
                f"(thinking {'on' if thinking else 'off'}): {prompt[-40:]!r} is not in the render"
            )
        turn, stop, _ = whole[len(prompt) :].rpartition(self.stop[0])
        return [Span(turn + stop if stop else whole[len(prompt) :] + self.stop[0], True)]

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, thinking: bool, generate: bool
    ) -> str:
        return self.tokenizer.apply_chat_template(
            [_as_dict(message) for message in messages],
            tools=[{"type": "function", "function": dict(tool)} for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=generate,
            enable_thinking=thinking,
        )


def _as_dict(message: Message) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        row["reasoning_content"] = message.reasoning
    if message.tool_calls:
        row["tool_calls"] = [{"type": "function", "function": call_object(call)} for call in message.tool_calls]
    return row
