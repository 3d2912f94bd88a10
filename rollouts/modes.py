"""Which prompts are answered with thinking, and under which budget: drawn once, from a seed."""

import random
from dataclasses import dataclass

from nanoalign.rollouts.base import Sampling
from nanoalign.rollouts.config import Rollouts, Thinking


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
