"""The proof that a rollout engine runs on the trainer's weights."""

import math
from collections.abc import Sequence

from nanoalign.common.errors import StaleWeightsError


def mismatch(
    engine: Sequence[Sequence[float]], trainer: Sequence[Sequence[float]], forced: Sequence[Sequence[bool]]
) -> float:
    """Mean exp|difference| of log-probabilities over the sampled tokens: 1 is perfect agreement (NeMo-RL's figure, with
    its bound of 1.05). Forced tokens are left out: engines report them after forcing. 1 where there is no token."""
    ratios = [
        math.exp(min(abs(a - b), 700.0))
        for row_a, row_b, row_forced in zip(engine, trainer, forced, strict=True)
        for a, b, is_forced in zip(row_a, row_b, row_forced, strict=True)
        if not is_forced
    ]
    return math.fsum(ratios) / len(ratios) if ratios else 1.0


def require_fresh(value: float, limit: float, step: int) -> None:
    """Raises StaleWeightsError where ``value`` is above ``limit`` or not a number."""
    if not value <= limit:
        raise StaleWeightsError(
            f"step {step}: the rollout engine's log-probabilities differ from the trainer's by a mean factor of "
            f"{value:.3f}, more than max_mismatch {limit}: it runs on other weights or in another precision"
        )
