"""Llama 3: its own text with thinking off, and ``<think>\\n`` at the prompt's end with thinking on.

Tools follow Llama 3.1: listed as JSON in the system text, called as ``{"name": ..., "parameters": {...}}`` (several are
joined by ``; ``, as vLLM's ``llama3_json`` parser splits them), and answered under the role ``ipython``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nanoalign.data_recipes.chat.answers import MOST_CALLS, read_calls
from nanoalign.data_recipes.chat.render import Format, dumps, signalled_mode, without_signals
from nanoalign.data_recipes.conversation import Message, ToolCall

TOOLS_BEFORE = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument '
    "name and its value}. Do not use variables.\n\n"
)
CALL_LINE = re.compile(r'\s*\{\s*"name"\s*:')
NEXT_CALL = re.compile(r'\};\s*(?=\{\s*"name")')


class Llama3(Format):
    """See the module's text."""

    name = "llama3"
    stop: tuple[str, ...] = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
    special_tokens: tuple[str, ...] = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    jinja = ("signals", "llama3")

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, thinking: bool | None = None
    ) -> str:
        """As :meth:`ChatFormat.prompt`."""
        thinking = signalled_mode(messages) if thinking is None else thinking
        system = ""
        if messages and messages[0].role == "system":
            system, messages = without_signals(messages[0].content), messages[1:]
        if tools:
            listed = "\n\n".join(dumps({"type": "function", "function": tool}) for tool in tools)
            system += ("\n\n" if system else "") + TOOLS_BEFORE + listed
        parts = ["<|begin_of_text|>"] + ([_turn("system", system)] if system else [])
        for message in messages:
            if message.role == "tool":
                parts.append(_turn("ipython", message.content))
            elif message.role == "assistant":
                parts.append(_turn("assistant", self._answer(message)))
            else:
                role = "ipython" if message.role == "tool" else message.role
                parts.append(
                    _turn(role, message.content if message.role == "tool" else without_signals(message.content))
                )
        return "".join(parts) + "<|start_header_id|>assistant<|end_header_id|>\n\n" + ("<think>\n" if thinking else "")

    def _answer(self, message: Message) -> str:
        calls = "; ".join(dumps({"name": call.name, "parameters": call.arguments}) for call in message.tool_calls)
        return "\n".join(part for part in (message.content.strip(), calls) if part)

    def _split_calls(self, answer: str) -> tuple[str, tuple[ToolCall, ...], bool]:
        return split_bare_calls(answer)


def split_bare_calls(answer: str) -> tuple[str, tuple[ToolCall, ...], bool]:
    """As :func:`data_recipes.chat.answers.split_calls`, of calls without tags: a line that is nothing but call objects
    is a call."""
    calls: list[ToolCall] = []
    kept: list[str] = []
    unread = False
    for line in answer.split("\n"):
        found = None
        if CALL_LINE.match(line):
            found = read_calls("[" + NEXT_CALL.sub("}, ", line) + "]") if len(calls) < MOST_CALLS else None
            unread |= found is None
        if found:
            calls += found
        else:
            kept.append(line)
    return "\n".join(kept).strip(), tuple(calls), unread


def _turn(role: str, text: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"
