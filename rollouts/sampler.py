"""Sampling tokens: each row by its own settings.

A random number becomes a token by inverse-CDF sampling, so that a logit that moves by a rounding error moves a boundary
by as little.

Shapes: B rows, V vocabulary.
"""

import torch


def sample_tokens(logits_BV: torch.Tensor, temperature_B: torch.Tensor, top_p_B: torch.Tensor,
                  uniform_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """One token a row and the log-normalizer of its row.

    ``logits_BV`` is float; ``temperature_B`` 0 takes the most likely token; ``top_p_B`` 1 cuts nothing off;
    ``uniform_B`` (float64) comes from :func:`rollouts.seeds.uniform`. Returns token ids [B] and logsumexp(logits) [B],
    by which log-probabilities at temperature 1 follow for any token.
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
