"""From the layouts of published data sets to rows of the normal form.

An adapter takes one raw row and gives rows for :func:`data_recipes.rows.from_row`, which checks them. It raises
RowError for a row that is not of its layout; KeyError, TypeError, IndexError, AttributeError and ValueError mean the
same (a key is missing or malformed).
"""

from typing import Any

from nanoalign.data_recipes.adapters import chats, preferences, tasks, tool_use
from nanoalign.data_recipes.adapters.openai_form import is_openai_form
from nanoalign.data_recipes.adapters.parts import LEFT_OUT, Adapter, NotASample, Raw, decoded

__all__ = ["ADAPTERS", "LEFT_OUT", "Adapter", "NotASample", "layout_of"]


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


ADAPTERS: dict[str, Adapter] = {
    each.__name__: each
    for each in (
        chats.normal, chats.document, chats.openai, chats.nemotron, chats.sharegpt, chats.alpaca, chats.self_instruct,
        chats.mt_bench, chats.mt_bench_reference, chats.oasst_tree, preferences.hh_rlhf, preferences.sharegpt_pair,
        preferences.alpaca_pair, preferences.ultrafeedback, preferences.helpsteer3, tasks.gsm8k, tasks.math_answer,
        tasks.distilled_math, tasks.ifeval, tasks.human_eval, tasks.mbpp, tool_use.bfcl, tool_use.bfcl_multi_turn,
        tool_use.workbench, tool_use.nemo_gym_prompt, tool_use.nemo_gym_rollout, tool_use.glaive, tool_use.toolace,
        recognised,
    )
}  # fmt: skip
