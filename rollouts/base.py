"""What a rollout engine is: prompts in as token ids, completions out as token ids with log-probabilities.

Ids are never decoded and tokenized again on the way to the trainer.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from nanoalign.common.errors import NanoalignError
from nanoalign.rollouts.config import Rollouts, Thinking


@dataclass(frozen=True)
class Sampling:
    """How one completion is drawn. ``temperature`` 0 is greedy."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    thinking_budget: int | None = None
    """Tokens of thinking, by budget_control's rule; None is unlimited."""
    grace: int = 500
    """Tokens past the budget to wait for a newline."""
    seed: int = 0
    """The completion is a function of (weights, prompt, sampling) with this seed, whatever else is in the batch
    (HF engine; vLLM guarantees it per request as far as its kernels are batch-invariant)."""


@dataclass(frozen=True)
class Mode:
    """How a prompt is to be answered."""

    thinking: bool
    budget: int | None = None
    """Thinking tokens; None is unlimited (and means nothing without thinking)."""


def draw_mode(thinking: Thinking, seed: int) -> Mode:
    """A mode by the shares of the recipe's `thinking` section; equal seeds give equal modes."""
    generator = random.Random(seed)
    if generator.random() >= thinking.on:
        return Mode(False)
    return Mode(True, generator.choice(thinking.budgets))


def sampling(rollouts: Rollouts, mode: Mode, seed: int) -> Sampling:
    """The settings of one completion under the recipe's `rollouts` section."""
    return Sampling(
        max_tokens=rollouts.max_tokens,
        temperature=rollouts.temperature,
        top_p=rollouts.top_p,
        thinking_budget=mode.budget if mode.thinking else None,
        grace=rollouts.grace,
        seed=seed,
    )


if TYPE_CHECKING:
    import torch

    from nanoalign.budget_control.vocabulary import ThinkingTokens


@dataclass(frozen=True)
class Request:
    prompt_ids: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True)
class Completion:
    """``token_ids`` includes the stop token where there is one. ``logprobs[i]`` is the log-probability of token i under
    the weights, at temperature 1 and before any budget forcing. ``forced[i]``: written by the budget rule, not
    sampled; never trained on. A close in place of a stop token counts as forced; vLLM reports only the likeliest
    token besides the one drawn, so there it counts where a stop token was the likeliest."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    forced: tuple[bool, ...]
    finish: Literal["stop", "length"]
    versions: tuple[int, ...] = ()
    """The version of the weights that drew each token; empty where an engine does not count them."""


@dataclass(frozen=True)
class Opening:
    """What every engine is opened with; see :func:`rollouts.open_engine`."""

    model: Any
    thinking: "ThinkingTokens"
    tags: tuple[str, str]
    """The texts that open and close thinking."""
    batch_size: int
    device: str
    dtype: Literal["float32", "bfloat16"]
    max_length: int | None
    budgets: bool
    exchange: Path | None


Done = Callable[[int, Completion], None]
"""Is told of a completion as soon as it ends, with its request's place: what it keeps survives a crash."""


class EngineLostError(NanoalignError, RuntimeError):
    """The engine is gone, failed or does not answer; a new one may serve the request."""


class RolloutEngine(Protocol):
    """Implemented by HF batched generation and by vLLM."""

    lost: int
    """Engines lost and replaced so far."""

    @property
    def max_length(self) -> int | None:
        """Tokens of the longest prompt and completion together; None: no limit."""
        ...

    def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        """One completion per request, in order, duplicate prompts included; ``done`` is told of each as it ends."""
        ...

    def load_weights(self, tensors: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """Replaces the engine's weights (names as in the HF state dict)."""
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of every token but the first, by the engine itself: the probe that shows the weights to be
        current."""
        ...

    def sleep(self) -> None:
        """Releases what memory it can until it is called again."""
        ...

    def close(self) -> None: ...
