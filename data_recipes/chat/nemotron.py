"""The Nemotron Nano v2 format, fit for training, and the reference template's renders with their quirks.

``nemotron-nano-v2`` renders what the reference renders, except where the reference would harm training:

1. A final assistant message keeps its tool calls (the reference drops them, and drops the turn if its text is empty).
2. Only ``/think`` and ``/no_think`` as words of their own are signals. To the reference a user's literal ``</think>``
   switches thinking on and becomes ``<>``, and so does ``/thinking``.
3. An answer in the history keeps all its text. The reference keeps what is between the first ``</think>`` and the
   second, and so loses the rest of an answer that mentions ``</think>``.
4. A system message anywhere but first is an error. The reference leaves its text out, yet obeys its signals.
5. The trained text ends with the stop token; the line feed after it belongs to the next turn, which inference writes.

Both: the system block is always there; history shows answers only, never reasoning nor ``<think></think>``; results of
consecutive tool calls are one user turn. As history is rewritten in this way, every assistant turn of a conversation is
a training example of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.chat.render import Format, call_object, dumps, signalled_mode, without_signals
from nanoalign.data_recipes.conversation import Message

TOOLS_BEFORE = "You can use the following tools to assist the user if required:\n<AVAILABLE_TOOLS>["
TOOLS_AFTER = (
    "]</AVAILABLE_TOOLS>\n\nIf you decide to call any tool(s), use the following format:\n"
    '<TOOLCALL>[{{"name": "tool_name1", "arguments": "tool_args1"}}, '
    '{{"name": "tool_name2", "arguments": "tool_args2"}}]</TOOLCALL>\n\n'
    "The user will execute tool-calls and return responses from tool(s) in this format:\n"
    '<TOOL_RESPONSE>[{{"tool_response1"}}, {{"tool_response2"}}]</TOOL_RESPONSE>\n\n'
    "Based on the tool responses, you can call additional tools if needed, correct tool calls if any errors are found, "
    "or just respond to the user."
)


class NemotronNanoV2(Format):
    """Nano v2 as trained here; see the module's text for the differences from the reference."""

    name = "nemotron-nano-v2"
    stop: tuple[str, ...] = ("<SPECIAL_12>",)
    special_tokens: tuple[str, ...] = ("<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>")
    call_tags = (("<TOOLCALL>", "</TOOLCALL>"),)
    jinja: tuple[str, ...] = ("signals", "nemotron")
    jinja_settings: Mapping[str, Any] = {"is_reference": False}

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, thinking: bool | None = None
    ) -> str:
        """As :meth:`ChatFormat.prompt`; raises DataError for a system message that is not the first message."""
        thinking = self._mode(messages) if thinking is None else thinking
        return (
            self._history(messages, tools)
            + "<SPECIAL_11>Assistant\n"
            + ("<think>\n" if thinking else "<think></think>")
        )

    def _mode(self, messages: Sequence[Message]) -> bool:
        return signalled_mode(messages)

    def _clean(self, text: str) -> str:
        return without_signals(text)

    def _history(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        has_system = bool(messages) and messages[0].role == "system"
        system = self._clean(messages[0].content) if has_system else ""
        if tools:
            system += "\n\n" if system else ""
            system += TOOLS_BEFORE + ", ".join(dumps(tool) for tool in tools) + TOOLS_AFTER
        parts = [f"<SPECIAL_10>System\n{system}\n"]
        results: list[str] = []
        turns = messages[1:] if has_system else messages
        for index, message in enumerate(turns):
            if message.role == "tool":
                results.append(message.content)
                if index + 1 == len(turns) or turns[index + 1].role != "tool":
                    parts.append(f"<SPECIAL_11>User\n<TOOL_RESPONSE>[{', '.join(results)}]</TOOL_RESPONSE>\n")
                    results = []
            elif message.role == "user":
                parts.append(f"<SPECIAL_11>User\n{self._clean(message.content)}\n")
            elif message.role == "assistant":
                parts.append(f"<SPECIAL_11>Assistant\n{self._past_answer(message)}\n<SPECIAL_12>\n")
            else:
                self._late_system()
        return "".join(parts)

    def _late_system(self) -> None:
        raise DataError("nemotron-nano-v2: a system message may only be the first message")

    def _past_answer(self, message: Message) -> str:
        return self._answer(message)

    def _answer(self, message: Message) -> str:
        content = message.content.strip()
        if not message.tool_calls:
            return content
        calls = ", ".join(dumps(call_object(call)) for call in message.tool_calls)
        return content + ("\n\n" if content else "") + f"<TOOLCALL>[{calls}]</TOOLCALL>"

    def _end(self) -> str:
        return "\n" + self.stop[0]


class NemotronNanoV2Reference(NemotronNanoV2):
    """Byte for byte what the model card's template renders, quirks included (tested against its golden renders).

    For comparison and for serving beside the released models; train with :class:`NemotronNanoV2`.
    """

    name = "nemotron-nano-v2-reference"
    jinja = ("signals", "nemotron_reference", "nemotron")
    jinja_settings: Mapping[str, Any] = {"is_reference": True}

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
    ) -> str:
        """The template's complete output. Assistant contents hold their ``<think>`` tags, as messages of an API do."""
        final = ""
        past = messages
        if messages and messages[-1].role == "assistant":
            final, past = messages[-1].content.strip(), messages[:-1]
        text = self._history(past, tools)
        if not add_generation_prompt and not final:
            return text
        text += "<SPECIAL_11>Assistant\n" + ("<think>\n" if self._mode(messages) else "<think></think>") + final
        return text if add_generation_prompt or continue_final_message else text + "\n<SPECIAL_12>\n"

    def _mode(self, messages: Sequence[Message]) -> bool:
        mode = True
        for message in messages:
            if message.role in ("user", "system") and "think" in message.content:
                mode = "/think" in message.content or ("/no_think" not in message.content and mode)
        return mode

    def _clean(self, text: str) -> str:
        return text.replace("/think", "").replace("/no_think", "").strip()

    def _late_system(self) -> None:
        """The reference leaves such a message out."""

    def _past_answer(self, message: Message) -> str:
        kept = message.content.split("</think>")[1] if "</think>" in message.content else message.content
        return super()._answer(Message("assistant", kept, tool_calls=message.tool_calls))

    def _answer(self, message: Message) -> str:
        return message.content.strip()
