"""Rollout engines: the same small protocol in process (hf) and on vLLM."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rl.rollouts.base import Completion, Request, RolloutEngine, Sampling

if TYPE_CHECKING:
    from data_recipes.chat.base import ChatFormat

__all__ = ["Completion", "Request", "RolloutEngine", "Sampling", "open_engine"]


def open_engine(
    kind: Literal["hf", "vllm"],
    model: Any,
    tokenizer: Any,
    chat: "ChatFormat",
    *,
    batch_size: int = 64,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_length: int | None = None,
    gpu_memory: float = 0.45,
    sleep: Literal[0, 1, 2] = 0,
    budgets: bool = True,
) -> RolloutEngine:
    """Opens a rollout engine.

    Args:
        kind: ``hf`` runs in process; ``vllm`` is a colocated vLLM.
        model: a model folder or spec, or (hf) a live model, which the engine then shares with the caller.
        tokenizer: the model's own; gives the close tag, line ends and stop tokens.
        chat: the chat format whose stop texts end a completion.
        batch_size: rows generated together.
        device: auto, cpu or cuda; a live model stays where it is.
        dtype: bfloat16 runs a model on a GPU in bfloat16 (a live one under autocast).
        max_length: vllm: tokens of the longest prompt and completion together.
        gpu_memory: vllm: share of the GPU's memory.
        sleep: vllm: level of its sleep between rollouts.
        budgets: vllm: whether requests may have thinking budgets; without, it generates faster.

    Raises:
        ConfigError: a model that the engine cannot serve, or a tokenizer without the format's stop tokens.
    """
    from budget_control.vocabulary import ThinkingTokens

    thinking = ThinkingTokens.from_tokenizer(tokenizer, chat.think_open, chat.think_close, chat.stop)
    if kind == "vllm":
        from models.loading import resolve
        from rl.rollouts.vllm import VLLMEngine

        tags = (chat.think_open, chat.think_close)
        return VLLMEngine(
            resolve(model), thinking, tags, batch_size=batch_size, dtype=dtype, max_length=max_length,
            gpu_memory=gpu_memory, sleep=sleep, budgets=budgets,
        )  # fmt: skip
    import torch

    from rl.rollouts.hf import HFEngine

    if isinstance(model, str | Path):
        from models.loading import load_model

        loaded = load_model(str(model), dtype=dtype, device=device)
        return HFEngine(loaded, thinking, batch_size=batch_size)
    autocast = torch.bfloat16 if dtype == "bfloat16" and model.device.type == "cuda" else None
    return HFEngine(model, thinking, batch_size=batch_size, autocast=autocast)
