"""Any chat template of a Hugging Face tokenizer, as ``hf:FOLDER_OR_HUB_ID``, with masks by prefix rendering.

The prompt is the template's with ``add_generation_prompt``; a completion is what the template adds to that prompt for
the next assistant message. A template that rewrites the final message, so that nothing is simply appended, is refused
by name, and so is one that raises. What a template does with thinking is found out by rendering (see ``_probe``):

- Templates that read ``reasoning_content`` (Qwen3's and its like) write it between tags of their own.
- Templates that do not (Llama 3's, SmolLM3's): there the model writes its thinking as text, and so do we. Earlier
  thinking is in no prompt then.
- Templates that cut the thinking out of the final message too (DeepSeek-R1's) get it between the prompt and the answer.

What a template cannot do is named in data_recipes/chat/gaps.py.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanoalign.common.errors import CheckpointError, DataError
from nanoalign.data_recipes.chat.answers import read_function_calls, split_calls
from nanoalign.data_recipes.chat.base import Span
from nanoalign.data_recipes.chat.llama3 import split_bare_calls
from nanoalign.data_recipes.chat.render import Format, call_object, signalled_mode
from nanoalign.data_recipes.chat.tokenizer_files import TemplateFiles, one_template
from nanoalign.data_recipes.conversation import Message, ToolCall

USER = Message("user", "nanoalign asks")
TAG_BEFORE = re.compile(r"(<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\])\s*$")
TAG_AFTER = re.compile(r"\s*(<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\])")


class HFTemplate(Format):
    """A tokenizer's own template. Thinking is passed as ``enable_thinking``, reasoning as ``reasoning_content``, tools
    in OpenAI's layout. Signals stay in the text, for the template to handle."""

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
        self.reads_reasoning = self._probe()
        self.stop = self._stops()
        opened = self.prompt([USER], thinking=True).rstrip()
        self.prompt_opens_thinking = opened.endswith(self.think_open)

    @classmethod
    def load(cls, name: str) -> "HFTemplate":
        """The template of ``hf:FOLDER_OR_HUB_ID``; a folder's, or one in the hub's cache, without torch."""
        spec = name.removeprefix("hf:")
        folder = local_files(spec)
        if folder is not None:
            return cls(name, TemplateFiles(folder))
        from transformers import AutoTokenizer

        return cls(name, AutoTokenizer.from_pretrained(spec))

    def _probe(self) -> bool:
        """Whether the template writes ``reasoning_content``; takes over the tags around it where they are its own."""
        said = Message("assistant", "nanoalign answers", "nanoalign thinks")
        text = self._render([USER, said], (), thinking=True, generate=False)
        before, found, after = text.partition("nanoalign thinks")
        opening, closing = TAG_BEFORE.search(before), TAG_AFTER.match(after)
        self.between = (opening[1] if opening else "", closing[1] if closing else "")
        if found and all(re.search("think|thought|reason", tag, re.IGNORECASE) for tag in self.between):
            self.think_open, self.think_close = self.between
        return bool(found)

    def _stops(self) -> tuple[str, ...]:
        """The special tokens that the template writes after an answer and after a call, and the eos token."""
        texts = [self._render([USER, Message("assistant", "nanoalign")], (), thinking=False, generate=False)]
        try:
            call = Message("assistant", "", tool_calls=(ToolCall("nanoalign", {}),))
            texts.append(self._render([USER, call], ({"name": "nanoalign"},), thinking=False, generate=False))
        except DataError:
            pass  # it knows no calls
        ends = []
        for text in texts:
            after = text[text.rfind("nanoalign") + len("nanoalign") :]
            ends.append(min((t for t in self.special_tokens if t in after), key=after.index, default=None))
        return tuple(dict.fromkeys(end for end in (ends[0] or self.tokenizer.eos_token, *ends, self.tokenizer.eos_token)
                                   if end))  # fmt: skip

    def template(self) -> str:
        """The tokenizer's own."""
        return one_template(self.tokenizer.chat_template)

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
        thinking = bool(message.reasoning)
        prompt = self.prompt(history, tools, thinking=thinking)
        written = self._written(history, tools, message, prompt)
        turn, stop, _ = written.rpartition(self._end_of(written))
        turn = turn + stop if stop else written + self.stop[0]
        return self._cut(turn, message) if message.reasoning_cut else [Span(turn, True)]

    def _written(
        self, history: Sequence[Message], tools: Sequence[Mapping[str, Any]], message: Message, prompt: str
    ) -> str:
        """What the template adds to the prompt for a message."""
        thinking, thought = bool(message.reasoning), f"{(message.reasoning or '').strip()}\n{self.think_close}\n\n"
        opened = prompt.rstrip().endswith(self.think_open)
        if thinking and not self.reads_reasoning:
            text = f"{self.think_open}\n{thought}{message.content.strip()}"
            inline = Message("assistant", text, tool_calls=message.tool_calls)
            whole = self._render([*history, inline], tools, thinking=True, generate=False)
            if whole.startswith(prompt) and thought in whole[len(prompt) :]:
                return whole[len(prompt) :]
            header = prompt[: prompt.rindex(self.think_open)] if opened else prompt
            plain = Message("assistant", message.content, tool_calls=message.tool_calls)
            whole = self._render([*history, plain], tools, thinking=True, generate=False)
            if opened and whole.startswith(header):  # it cuts thinking out of every message
                return thought + whole[len(header) :].lstrip("\n")
        else:
            whole = self._render([*history, message], tools, thinking=thinking, generate=False)
        if not whole.startswith(prompt):
            raise DataError(
                f"{self.name}: the template writes an answer that its own generation prompt does not lead to "
                f"(thinking {'on' if thinking else 'off'}): {prompt[-40:]!r} is not in the render"
            )
        return whole[len(prompt) :]

    def _end_of(self, turn: str) -> str:
        """The stop text that ends the turn: the last one in it."""
        return max((stop for stop in self.stop if stop in turn), key=turn.rindex, default=self.stop[0])

    def _cut(self, turn: str, message: Message) -> list[Span]:
        """The turn with its thinking closed where it was cut, as the budget rule does it; the close is not trained."""
        reasoning = (message.reasoning or "").strip()
        before, _, after = turn.partition(reasoning)
        _, close, rest = after.partition(self.think_close)
        if not close:
            raise DataError(
                f"{self.name}: the template writes no {self.think_close} after a reasoning: none can be cut"
            )
        begun = before + (message.reasoning or "").lstrip()
        return [*([Span(begun, True)] if begun else []), Span(close, False), Span(rest, True)]

    def _split_calls(self, answer: str) -> tuple[str, tuple[ToolCall, ...], bool]:
        """Calls between tags, else Llama's, which carry none."""
        found = split_calls(answer, self.call_tags, read_function_calls)
        return found if found[1] or found[2] else split_bare_calls(answer)

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, thinking: bool, generate: bool
    ) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(
                [_as_dict(message) for message in messages],
                tools=[{"type": "function", "function": dict(tool)} for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=generate,
                enable_thinking=thinking,
            )
        except (TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise DataError(f"{self.name}: the template refuses the conversation: {error}") from error
        return text


def local_files(spec: str) -> Path | None:
    """The folder of a tokenizer that is on this machine: a folder, or the hub's cache."""
    folder = Path(spec).expanduser()
    if (folder / "tokenizer_config.json").is_file():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(spec, "tokenizer_config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _as_dict(message: Message) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        row["reasoning_content"] = message.reasoning
    if message.tool_calls:
        row["tool_calls"] = [{"type": "function", "function": call_object(call)} for call in message.tool_calls]
    return row
