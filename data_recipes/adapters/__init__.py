"""From raw rows in the layouts of published data sets, through rows of the normal form, to conversations.

An adapter takes one raw row and gives rows for :func:`data_recipes.rows.from_row`, which checks them. It raises
RowError for a row that is not of its layout; KeyError, TypeError, IndexError, AttributeError and ValueError mean the
same (a key is missing or malformed).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from nanoalign.data_recipes.adapters import chats, preferences, tasks, tool_use
from nanoalign.data_recipes.adapters.parts import LEFT_OUT, Adapter, NotASample, Raw, decoded
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.readers import RowError
from nanoalign.data_recipes.rows import from_row

__all__ = ["ADAPTERS", "Adapter", "NotASample", "conversations_of", "layout_of"]


def conversations_of(
    raw: Any, layout: str, origin: str, defaults: Mapping[str, str], unread: Counter[str]
) -> Iterator[Conversation]:
    """The samples of a raw row; most layouts have one a row.

    ``defaults`` are source, licence, domain and language, the latter three where the row does not tell them. What
    stands in the row but is not read is counted in ``unread``. Raises NotASample, RowError, and what adapters raise
    (see above).
    """
    if not isinstance(raw, Mapping):
        raise RowError("wrong type", "the row is not an object")
    for number, row in enumerate(ADAPTERS[layout](raw)):
        unread.update(row.pop(LEFT_OUT, ()))
        conversation = from_row(row, origin, **defaults)
        place = origin.rpartition("/")[2] + (f".{number}" if number else "")
        yield replace(conversation, source=defaults["source"], id=conversation.id or place)


def normal(raw: Raw) -> list[dict[str, Any]]:
    """Rows that are in the normal form already."""
    return [dict(raw)]


def recognised(raw: Raw) -> list[dict[str, Any]]:
    """A row of a local file without a named layout: its keys decide."""
    if isinstance(raw.get("messages"), str) and raw["messages"].lstrip().startswith("["):
        raw = {**raw, "messages": decoded(raw["messages"], "'messages'")}
    return list(ADAPTERS[layout_of(raw)](raw))


def layout_of(raw: Raw) -> str:
    """The layout that a row's keys indicate, row by row: what has ``messages`` is in the normal form unless something
    in it can only be OpenAI's."""
    if "messages" in raw:
        return "openai" if is_openai_form(raw) else "normal"
    if "conversations" in raw:
        return "sharegpt_pair" if "chosen" in raw else "sharegpt"
    if "instruction" in raw:
        return "alpaca_pair" if "chosen" in raw else "alpaca" if "output" in raw else "normal"
    return "normal"


def is_openai_form(raw: Raw) -> bool:
    """Whether something in a row of ``messages`` can only be OpenAI's: parts, nested calls or tools, its names."""
    tools = raw.get("tools")
    tools = tools if isinstance(tools, list) else []
    return (
        any(raw.get(key) for key in ("functions", "system"))
        or any(isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping) for tool in tools)
        or any(_is_openais(message) for message in raw["messages"] or () if isinstance(message, Mapping))
    )


def _is_openais(message: Raw) -> bool:
    calls = message.get("tool_calls")
    calls = calls if isinstance(calls, list) else []
    return (
        isinstance(message.get("content"), list)
        or message.get("role") in ("developer", "function")
        or any(message.get(key) for key in ("reasoning", "thinking", "function_call", "refusal"))
        or any(isinstance(call, Mapping) and isinstance(call.get("function"), Mapping) for call in calls)
    )


ADAPTERS: dict[str, Adapter] = {
    each.__name__: each
    for each in (
        normal, chats.document, chats.openai, chats.nemotron, chats.sharegpt, chats.alpaca, chats.self_instruct,
        chats.mt_bench, chats.mt_bench_reference, chats.oasst_tree, preferences.hh_rlhf, preferences.sharegpt_pair,
        preferences.alpaca_pair, preferences.ultrafeedback, preferences.helpsteer3, tasks.gsm8k, tasks.math_answer,
        tasks.distilled_math, tasks.ifeval, tasks.human_eval, tasks.mbpp, tool_use.bfcl, tool_use.bfcl_multi_turn,
        tool_use.workbench, tool_use.nemo_gym_prompt, tool_use.nemo_gym_rollout, tool_use.glaive, tool_use.toolace,
        recognised,
    )
}  # fmt: skip
