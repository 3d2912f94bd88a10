"""Optimizer steps and learning-rate curves: one definition for the plan's drawing and for the trainer. No torch."""

import math

from nanoalign.common.errors import ConfigError
from nanoalign.models.config import Training


def optimizer_steps(train: Training, samples: int) -> int:
    """Optimizer steps of a stage over ``samples`` sequences (packs, pairs, completions).

    The last step of an epoch may hold fewer than ``batch_size`` sequences; losses are normalised by trained tokens, so
    it weighs what it holds.

    Raises:
        ConfigError: both ``steps`` and ``epochs`` are given, or there is nothing to train on.
    """
    if train.steps is not None and train.epochs is not None:
        raise ConfigError("train: give `steps` or `epochs`, not both")
    if samples < 1:
        raise ConfigError("train: no samples to train on")
    if train.steps is not None:
        return train.steps
    return math.ceil(math.ceil(samples / train.batch_size) * (train.epochs or 1.0))


def schedule_factor(train: Training, step: int, steps: int) -> float:
    """The learning rate of optimizer step ``step`` (0 .. steps - 1) over the peak one.

    Warm-up is linear from 0, exclusive, so that the first step trains too; every schedule is at 1 on the step after it.
    ``cosine`` and ``wsd`` reach ``min_lr_ratio`` at the last step. WSD: Hu et al. 2024 (arXiv 2404.06395), with the
    linear decay of Haegele et al. 2024 (arXiv 2405.18392).
    """
    warmup = round(train.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    floor = train.min_lr_ratio
    if train.schedule == "cosine":
        progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
    if train.schedule == "wsd":
        decay = min(math.ceil(train.decay_ratio * steps), steps - warmup)
        decayed = min(decay, max(0, step + 1 - (steps - decay)))
        return 1 - (1 - floor) * decayed / decay
    return 1.0


def schedule_curve(train: Training, steps: int) -> list[float]:
    """The learning rate of each of ``steps`` optimizer steps."""
    return [train.learning_rate * schedule_factor(train, step, steps) for step in range(steps)]
