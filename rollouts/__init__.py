"""Generating: token ids in; token ids, log-probabilities and forced tokens out, by whichever engine a recipe names.

In the order of a prompt: `base` (its mode, the settings of each completion), an engine (`hf`, `vllm` or `server`), and
`samples` (what rewards judge); `episodes` goes that way turn by turn in an environment. See README.md.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nanoalign.common.printable import known
from nanoalign.rollouts.base import Completion, Opening, Request, RolloutEngine, Sampling
from nanoalign.rollouts.config import Engine, Rollouts
from nanoalign.rollouts.engines import ENGINES

if TYPE_CHECKING:
    from nanoalign.data_recipes.chat.base import ChatFormat

__all__ = ["Completion", "Request", "RolloutEngine", "Sampling", "open_engine", "open_for_eval"]


def open_engine(
    engine: Engine | str,
    model: Any,
    tokenizer: Any,
    chat: "ChatFormat",
    *,
    batch_size: int = 64,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_length: int | None = None,
    budgets: bool = True,
    exchange: Path | None = None,
) -> RolloutEngine:
    """Opens a rollout engine.

    Args:
        engine: its settings, or its kind, with the settings' defaults.
        model: a model folder or spec, or (hf) a live model, which the engine then shares with the caller.
        tokenizer: the model's own; gives the close tag, line ends and stop tokens.
        chat: the chat format whose stop texts end a completion.
        batch_size: rows generated together.
        device: auto, cpu or cuda; a live model stays where it is.
        dtype: bfloat16 runs a model on a GPU in bfloat16 (a live one under autocast); vLLM's own setting goes first.
        max_length: vllm: tokens of the longest prompt and completion together.
        budgets: vllm: whether requests may have thinking budgets; without, it generates faster.
        exchange: vllm_server: a folder for weights in transit and for the server's log; by default a temporary one.

    Raises:
        ConfigError: a model that the engine cannot serve, or a tokenizer without the format's stop tokens.
    """
    from nanoalign.budget_control.vocabulary import ThinkingTokens

    settings: Any = ENGINES[known("rollout engine", engine, ENGINES)].settings() if isinstance(engine, str) else engine
    thinking = ThinkingTokens.from_tokenizer(tokenizer, chat.think_open, chat.think_close, chat.stop)
    tags = (chat.think_open, chat.think_close)
    opened: RolloutEngine = ENGINES[settings.kind].load()(
        settings, Opening(model, thinking, tags, batch_size, device, dtype, max_length, budgets, exchange)
    )
    return opened


def open_for_eval(
    rollouts: Rollouts, folder: Path, tokenizer: Any, chat: "ChatFormat", device: str, **more: Any
) -> RolloutEngine:
    """:func:`open_engine` on a finished model, as evaluations and merge sweeps use it: bfloat16 on a GPU, else fp32."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if device == "cuda" else "float32"
    return open_engine(
        rollouts.engine, folder, tokenizer, chat, batch_size=rollouts.batch_size, device=device, dtype=dtype, **more
    )
