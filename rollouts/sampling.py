"""Drawing tokens: each row by its own settings, from a counter-based generator.

The number that draws token ``t`` of a completion is a hash of the completion's seed and ``t`` alone: a completion is
the same whoever shares its batch, and wherever a run is resumed. Inverse-CDF sampling turns it into a token, so that a
logit that moves by a rounding error moves a boundary by as little.

Shapes: B rows, V vocabulary.
"""

import torch

MASK64 = (1 << 64) - 1


def mix64(value: int) -> int:
    """SplitMix64's finalizer (Steele et al. 2014): 64 well-mixed bits of a 64-bit number."""
    value = (value + 0x9E3779B97F4A7C15) & MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)


def derive_seed(*parts: int) -> int:
    """One seed (below 2**31) out of several numbers, such as (seed, step, prompt, sample); order matters."""
    state = 0
    for part in parts:
        state = mix64(state ^ mix64(part & MASK64))
    return state >> 33


def uniform(seed: int, counter: int) -> float:
    """The ``counter``-th number in [0, 1) of a seed's stream, a multiple of 2**-32."""
    return (mix64(mix64(seed) + counter) >> 32) / 2**32


def draw(logits_BV: torch.Tensor, temperature_B: torch.Tensor, top_p_B: torch.Tensor,
         uniform_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """One token a row and the log-normalizer of its row.

    ``logits_BV`` is float; ``temperature_B`` 0 takes the most likely token; ``top_p_B`` 1 cuts nothing off;
    ``uniform_B`` (float64) comes from :func:`uniform`. Returns token ids [B] and logsumexp(logits) [B], by which
    log-probabilities at temperature 1 follow for any token.
    """
    normalizer_B = torch.logsumexp(logits_BV, dim=-1)
    greedy_B = temperature_B == 0
    if bool(greedy_B.all()):
        return logits_BV.argmax(dim=-1), normalizer_B
    scaled_BV = logits_BV / torch.where(greedy_B, 1.0, temperature_B)[:, None]
    weights_BV = torch.softmax(scaled_BV, dim=-1, dtype=torch.float32).double()
    if bool((top_p_B < 1).any()):
        weights_BV = _nucleus(weights_BV, top_p_B.double())
    cumulative_BV = weights_BV.cumsum(dim=-1)
    # A multiple of 2**-32 below 1 times the total stays below the total, so that the token found has a weight above 0.
    target_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    drawn_B = torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1)
    if bool(greedy_B.any()):
        drawn_B = torch.where(greedy_B, logits_BV.argmax(dim=-1), drawn_B)
    return drawn_B, normalizer_B


def _nucleus(weights_BV: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """Zeroes what is outside the smallest set of likeliest tokens whose mass reaches top_p (Holtzman et al. 2020)."""
    sorted_BV, order_BV = weights_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    kept_BV = torch.where((before_BV < top_p_B[:, None]) | (top_p_B[:, None] >= 1), sorted_BV, 0.0)
    return torch.zeros_like(weights_BV).scatter_(-1, order_BV, kept_BV)
