"""ChatML and its families: plain ``chatml``, ``smollm2`` (with its default system text) and ``qwen3``.

Tools are written as Qwen and Hermes write them. ``qwen3`` equals Qwen3's own template: with thinking on the model
writes ``<think>`` itself, off is the empty block ``<think>\\n\\n</think>\\n\\n`` in the prompt, reasoning since the
last user message is kept (a tool loop remembers its thoughts), older reasoning is not, and signals stay in the text.
``chatml`` and ``smollm2`` know no thinking of their own; with thinking off they render what these models were trained
on, so that long conversations stay one example, and with thinking on the prompt ends with ``<think>\\n``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nanoalign.data_recipes.chat.render import Format, call_object, dumps, signalled_mode, without_signals
from nanoalign.data_recipes.conversation import Message

TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


class ChatML(Format):
    """Plain ChatML; see the module's text."""

    stop: tuple[str, ...] = ("<|im_end|>", "<|endoftext|>")
    special_tokens: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
    call_tags = (("<tool_call>", "</tool_call>"),)
    jinja = ("signals", "chatml")

    def __init__(self, name: str = "chatml", default_system: str | None = None) -> None:
        self.name = name
        self.default_system = default_system
        self.jinja_settings = {"default_system": default_system, "is_qwen3": False}

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, thinking: bool | None = None
    ) -> str:
        """As :meth:`ChatFormat.prompt`."""
        thinking = signalled_mode(messages) if thinking is None else thinking
        return self._history(messages, tools) + "<|im_start|>assistant\n" + self._opening(thinking)

    def _opening(self, thinking: bool) -> str:
        return "<think>\n" if thinking else ""

    def _clean(self, text: str) -> str:
        return without_signals(text)

    def _history(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        system: str | None = self.default_system
        if messages and messages[0].role == "system":
            system, messages = self._clean(messages[0].content), messages[1:]
        if tools:
            listed = "".join("\n" + dumps({"type": "function", "function": tool}) for tool in tools)
            system = (f"{system}\n\n" if system else "") + TOOLS_BEFORE + listed + TOOLS_AFTER
        parts = [f"<|im_start|>system\n{system}<|im_end|>\n"] if system is not None else []
        last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
        for index, message in enumerate(messages):
            if message.role == "tool":
                first = index == 0 or messages[index - 1].role != "tool"
                last = index + 1 == len(messages) or messages[index + 1].role != "tool"
                parts.append("<|im_start|>user" if first else "")
                parts.append(f"\n<tool_response>\n{message.content}\n</tool_response>")
                parts.append("<|im_end|>\n" if last else "")
            elif message.role == "assistant":
                thought = self._past_thought(message) if index > last_user else ""
                parts.append(f"<|im_start|>assistant\n{thought}{self._answer(message)}<|im_end|>\n")
            else:
                parts.append(f"<|im_start|>{message.role}\n{self._clean(message.content)}<|im_end|>\n")
        return "".join(parts)

    def _past_thought(self, message: Message) -> str:
        """What history since the last user message shows of a reasoning."""
        return ""

    def _answer(self, message: Message) -> str:
        calls = [f"<tool_call>\n{dumps(call_object(call))}\n</tool_call>" for call in message.tool_calls]
        return "\n".join(([message.content.strip()] if message.content.strip() else []) + calls)


class Qwen3(ChatML):
    """Equal to Qwen3's template (tested against it), with assistant texts stripped of white space at their ends."""

    prompt_opens_thinking = False

    def __init__(self) -> None:
        super().__init__("qwen3")
        self.jinja_settings = {"default_system": None, "is_qwen3": True}

    def _opening(self, thinking: bool) -> str:
        return "" if thinking else "<think>\n\n</think>\n\n"

    def _clean(self, text: str) -> str:
        return text

    def _past_thought(self, message: Message) -> str:
        return f"<think>\n{message.reasoning.strip()}\n</think>\n\n" if message.reasoning else ""


def smollm2() -> ChatML:
    """ChatML with the system text that SmolLM2 was trained with."""
    return ChatML("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face")
