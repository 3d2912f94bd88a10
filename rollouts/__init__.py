"""Rollout engines: the same small protocol in process (hf) and on vLLM."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nanoalign.rollouts.base import Completion, Request, RolloutEngine, Sampling
from nanoalign.rollouts.config import Rollouts

if TYPE_CHECKING:
    from nanoalign.data_recipes.chat.base import ChatFormat

__all__ = ["Completion", "Request", "RolloutEngine", "Sampling", "open_engine", "open_for_measuring"]


def open_engine(
    kind: Literal["hf", "vllm", "vllm_server"],
    model: Any,
    tokenizer: Any,
    chat: "ChatFormat",
    *,
    batch_size: int = 64,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_length: int | None = None,
    settings: Rollouts | None = None,
    budgets: bool = True,
    exchange: Path | None = None,
) -> RolloutEngine:
    """Opens a rollout engine.

    Args:
        kind: ``hf`` runs in process; ``vllm`` is a colocated vLLM; ``vllm_server`` one in another process.
        model: a model folder or spec, or (hf) a live model, which the engine then shares with the caller.
        tokenizer: the model's own; gives the close tag, line ends and stop tokens.
        chat: the chat format whose stop texts end a completion.
        batch_size: rows generated together.
        device: auto, cpu or cuda; a live model stays where it is.
        dtype: bfloat16 runs a model on a GPU in bfloat16 (a live one under autocast); ``settings`` may choose another
            one for vllm.
        max_length: vllm: tokens of the longest prompt and completion together.
        settings: vllm: memory, sleep, server and restarts of a recipe's section; None is its defaults.
        budgets: vllm: whether requests may have thinking budgets; without, it generates faster.
        exchange: vllm_server: a folder for weights on their way and for the server's log; by default a temporary one.

    Raises:
        ConfigError: a model that the engine cannot serve, or a tokenizer without the format's stop tokens.
    """
    from nanoalign.budget_control.vocabulary import ThinkingTokens

    thinking = ThinkingTokens.from_tokenizer(tokenizer, chat.think_open, chat.think_close, chat.stop)
    if kind != "hf":
        from nanoalign.models.loading import resolve
        from nanoalign.rollouts.restarts import RestartingEngine

        folder, tags = resolve(model), (chat.think_open, chat.think_close)
        settings = settings or Rollouts(engine=kind, max_tokens=1)

        def colocated() -> RolloutEngine:
            from nanoalign.rollouts.vllm import VLLMEngine

            return VLLMEngine(
                folder, thinking, tags, batch_size=batch_size, dtype=settings.dtype or dtype, max_length=max_length,
                gpu_memory=settings.gpu_memory, cache_gb=settings.cache_gb, sleep=settings.sleep, budgets=budgets,
            )  # fmt: skip

        def server() -> RolloutEngine:
            from nanoalign.rollouts.server import open_server

            place = exchange or Path(tempfile.mkdtemp(prefix="nanoalign-exchange-"))
            return open_server(folder, thinking, tags, settings, place, settings.dtype or dtype, batch_size, max_length)

        return RestartingEngine(colocated if kind == "vllm" else server, settings.restarts)
    import torch

    from nanoalign.rollouts.hf import HFEngine

    if isinstance(model, str | Path):
        from nanoalign.models.loading import load_model

        loaded = load_model(str(model), dtype=dtype, device=device)
        return HFEngine(loaded, thinking, batch_size=batch_size)
    autocast = torch.bfloat16 if dtype == "bfloat16" and model.device.type == "cuda" else None
    return HFEngine(model, thinking, batch_size=batch_size, autocast=autocast)


def open_for_measuring(
    settings: Rollouts, folder: Path, tokenizer: Any, chat: "ChatFormat", device: str, **more: Any
) -> RolloutEngine:
    """:func:`open_engine` on a finished model, as evaluations and merge sweeps use it: bfloat16 on a GPU, else fp32."""
    return open_engine(
        settings.engine, folder, tokenizer, chat, batch_size=settings.batch_size, device=device,
        dtype="bfloat16" if device == "cuda" else "float32", settings=settings, **more,
    )  # fmt: skip
