"""From the layouts of published data sets to rows of the normal form.

An adapter takes one raw row and gives rows for :func:`data_recipes.rows.from_row`, which checks them. It raises
RowError for a row that is not of its layout; KeyError, TypeError, IndexError, AttributeError and ValueError tell the
same (a key is missing or misshapen).
"""

from data_recipes.adapters import chats, preferences, tasks, tool_use
from data_recipes.adapters.parts import Adapter, NotASample

__all__ = ["ADAPTERS", "Adapter", "NotASample"]

ADAPTERS: dict[str, Adapter] = {
    each.__name__: each
    for each in (
        chats.normal, chats.document, chats.openai, chats.nemotron, chats.sharegpt, chats.alpaca, chats.self_instruct,
        chats.mt_bench, chats.mt_bench_reference, chats.oasst_tree, preferences.hh_rlhf, preferences.sharegpt_pair,
        preferences.alpaca_pair, preferences.ultrafeedback, preferences.helpsteer3, tasks.gsm8k, tasks.math_answer,
        tasks.distilled_math, tasks.ifeval, tasks.human_eval, tasks.mbpp, tool_use.bfcl, tool_use.bfcl_multi_turn,
        tool_use.workbench, tool_use.nemo_gym_prompt, tool_use.nemo_gym_rollout, tool_use.glaive, tool_use.toolace,
    )
}  # fmt: skip
