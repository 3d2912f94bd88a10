"""What a tokenizer's own chat template cannot do, found out by rendering: for the plan to say before anything runs."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.conversation import Conversation, Message, ToolCall

if TYPE_CHECKING:
    from nanoalign.data_recipes.chat.template import HFTemplate

ASK = Message("user", "nanoalign asks")
NAME = "nanoalign_tool"
TOOL = {"name": NAME, "description": "a tool", "parameters": {"type": "object", "properties": {"a": {}}}}
CALL = ToolCall(NAME, {"a": "one", "b": 2})


def gaps(chat: "HFTemplate") -> list[str]:
    """Each gap as a sentence; empty for a template that does everything that our own formats do."""
    return list(_gaps(chat))


def without_thinking(chat: "HFTemplate") -> str | None:
    """Why an answer without thinking cannot be rendered, or None."""
    return _fault(chat, [ASK, Message("assistant", "nanoalign answers", "")])


def _gaps(chat: "HFTemplate") -> Iterator[str]:
    thought = Message("assistant", "nanoalign answers", "nanoalign thinks")
    if fault := _fault(chat, [ASK, thought]):
        yield f"answers with thinking cannot be trained: {fault}"
    if fault := without_thinking(chat):
        yield f"answers without thinking (/no_think) cannot be trained: {fault}"
    on, off = (chat.prompt([ASK], thinking=mode) for mode in (True, False))
    if on == off:
        yield "no switch for thinking: the prompt is the same with and without it, so /no_think cannot be learned"
    if not chat.reads_reasoning:
        yield (
            "`reasoning_content` is not read: thinking is trained as text, and no prompt holds earlier thinking, "
            f"not even between two calls ({chat.think_open} ... {chat.think_close})"
        )
    elif chat.between != (chat.think_open, chat.think_close):
        written = " and ".join(f"`{tag}`" for tag in chat.between if tag) or "nothing"
        yield f"thinking stands between {written}, no tags of its own: what the model writes cannot be read"
    elif not _fault(chat, [ASK, thought, ASK, thought]):
        later = chat.prompt([ASK, thought, ASK], thinking=True)
        if "nanoalign thinks" not in later:
            yield "earlier thinking is left out of the history: of a conversation each thinking turn is an example"
    if fault := _fault(chat, [Message("system", "nanoalign rules"), ASK, thought]):
        yield f"no system message: {fault}"
    elif "nanoalign rules" not in chat.prompt([Message("system", "nanoalign rules"), ASK], thinking=False):
        yield "a system message is left out of the prompt"
    yield from _tools(chat)
    if "strftime_now" in chat.template():
        yield "today's date is in the prompt: what is trained today is not what inference renders tomorrow"


def _tools(chat: "HFTemplate") -> Iterator[str]:
    try:
        if NAME not in chat.prompt([ASK], [TOOL], thinking=False):
            yield "tools are not shown"
            return
        turn = "".join(span.text for span in chat._turn([ASK], [TOOL], Message("assistant", "", "", (CALL,))))
        read = chat.parse(turn, thinking=False)
        if read.tool_calls != (CALL,):
            yield f"its tool calls cannot be read back: {turn[:80]!r}"
        called = Message("assistant", "", "", (CALL,))
        answered = chat.prompt([ASK, called, Message("tool", "nanoalign result")], [TOOL], thinking=False)
        if "nanoalign result" not in answered:
            yield "a tool's result is left out of the prompt"
    except DataError as error:
        yield f"tools cannot be used: {error}"


def _fault(chat: "HFTemplate", messages: list[Message]) -> str | None:
    try:
        chat.examples(Conversation(tuple(messages)))
    except DataError as error:
        return str(error)
    return None
