"""What GRPO and its relatives minimize: advantages within a group of completions, and five losses on them.

Shapes: B completions, C completion tokens (padded on the right), G completions of a prompt, K rewards. An episode that
was cut into several rows (rl/episodes.py) counts as one completion: its rows are told of each other by :class:`Whole`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """One of the losses."""

    paper: str
    """Its arXiv number."""
    mean: Literal["sequence", "token", "length"]
    """What a sum over tokens is divided by: each completion's (an episode's) own tokens and then the completions; all
    tokens of the step; the completions times the longest length allowed."""
    ratio: Literal["token", "sequence"] = "token"
    """Whether each token has an importance ratio of its own, or a completion (an episode) has one: the geometric mean
    of them."""
    clip: Literal["surrogate", "weight"] = "surrogate"
    """PPO's pessimistic minimum of the clipped and the unclipped surrogate, through which clipped tokens get no
    gradient; or REINFORCE weighted by the detached ratio, capped from above, through which every token gets one."""
    scaled: bool = True
    """Whether advantages are divided by the group's standard deviation."""


LOSSES = {
    "grpo": Objective("2402.03300", mean="sequence"),
    "dr_grpo": Objective("2503.20783", mean="length", scaled=False),
    "dapo": Objective("2503.14476", mean="token"),
    "gspo": Objective("2507.18071", mean="sequence", ratio="sequence"),
    "cispo": Objective("2506.13585", mean="token", clip="weight"),
}
"""By the name that a recipe's `loss` has."""

EPSILON = 1e-4
"""Keeps the advantages of a group of nearly equal rewards finite."""


def advantages(scores_BK: Tensor, weights_K: Tensor, group_size: int, scaled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Each completion's weighted reward, its advantage over its group's mean, and its group's standard deviation, all
    (B,). Groups are consecutive rows."""
    rewards_B = (scores_BK * weights_K).sum(1)
    grouped = rewards_B.view(-1, group_size)
    centered = grouped - grouped.mean(1, keepdim=True)
    deviation = (centered**2).mean(1, keepdim=True).mul(group_size / (group_size - 1)).sqrt().expand_as(grouped)
    advantages_B = (centered / (deviation + EPSILON) if scaled else centered).flatten()
    return rewards_B, advantages_B, deviation.flatten()


@dataclass(frozen=True)
class Whole:
    """The episode that each row is of."""

    tokens_B: Tensor
    """Its trained tokens, those of its other rows included."""
    elsewhere_B: Tensor
    """Sum of the log-ratios of its other rows' trained tokens, detached; 0 for an episode of one row."""

    @classmethod
    def of(cls, trained_BC: Tensor) -> "Whole":
        """Where each row is a completion of its own."""
        return cls(trained_BC.sum(1), torch.zeros(len(trained_BC), device=trained_BC.device))


@dataclass(frozen=True)
class TokenLosses:
    """The loss of every token and what is logged of it. Masks are (B, 1) where a completion has one ratio."""

    losses_BC: Tensor
    ratio: Tensor
    below: Tensor
    """Where the lower clip stopped the gradient of a token that the loss would make less likely."""
    above: Tensor
    """Where the upper clip did, or capped the weight, of one that it would make more likely."""


def token_losses(
    objective: Objective,
    logprobs_BC: Tensor,
    old_BC: Tensor,
    trained_BC: Tensor,
    advantages_B1: Tensor,
    clip: tuple[float, float],
    whole: Whole | None = None,
) -> TokenLosses:
    """The policy loss of every token.

    Args:
        logprobs_BC: under the weights that are trained, with gradients.
        old_BC: under the weights that sampled; clipping bounds how far the two may part.
        trained_BC: 1 for the tokens that count.
        clip: how far below and above 1 a ratio still counts.
        whole: None where each row is a completion of its own.
    """
    log_ratio = logprobs_BC - old_BC
    if objective.ratio == "sequence":
        whole = whole or Whole.of(trained_BC)
        row_B = mean_of(log_ratio, trained_BC, trained_BC.sum(1))
        total_B = (log_ratio.detach() * trained_BC).sum(1) + whole.elsewhere_B
        # The episode's mean, with the gradient of the row's own: the row's loss counts by its share of the episode's
        # tokens, and so each token's gradient is one of the episode's (exactly where no weights or KL of single tokens
        # multiply it). Nothing is added to a row that is alone.
        log_ratio = (row_B + (total_B / whole.tokens_B.clamp(min=1.0) - row_B.detach())).unsqueeze(1)
    ratio = torch.exp(log_ratio)
    low, high = 1 - clip[0], 1 + clip[1]
    below, above = (ratio < low) & (advantages_B1 < 0), (ratio > high) & (advantages_B1 > 0)
    if objective.clip == "weight":
        losses_BC = -ratio.clamp(max=high).detach() * advantages_B1 * logprobs_BC
        return TokenLosses(losses_BC, ratio, torch.zeros_like(below), above)
    losses_BC = -torch.min(ratio * advantages_B1, ratio.clamp(low, high) * advantages_B1)
    return TokenLosses(losses_BC.expand_as(logprobs_BC), ratio, below, above)


Correction = Literal["clip", "token", "sequence"]
"""What is done about completions that other weights drew, see :func:`behaviour`."""


def behaviour(
    correction: Correction, logprobs_BC: Tensor, engine_BC: Tensor, trained_BC: Tensor, cap: float,
    whole: Whole | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the importance ratio of a step begins at, (B, C), and the weight of each token's loss, (B, C) or (B, 1).

    ``clip``: it begins at the engine's log-probabilities, so that the loss's own clipping bounds how far the trainer
    may have moved since they were drawn. ``token`` and ``sequence``: it begins at the trainer's own, and the ratio of
    these to the engine's, of each token or (their product) of each completion or episode, weighs the loss, at most
    ``cap`` times: truncated importance sampling (Ionides 2008, doi 10.1198/106186008X320456; token by token in V-trace,
    arXiv 1802.01561; beside a proximal policy in AReaL, arXiv 2505.24298).

    Args:
        engine_BC: log-probabilities when the tokens were drawn, finite.
    """
    if correction == "clip":
        return engine_BC, torch.ones_like(logprobs_BC)
    own_BC = logprobs_BC.detach()
    log_weight = (own_BC - engine_BC) * trained_BC
    if correction == "sequence":
        log_weight = log_weight.sum(1, keepdim=True)
        if whole is not None:
            log_weight = log_weight + whole.elsewhere_B.unsqueeze(1)
    return own_BC, torch.exp(log_weight).clamp(max=cap)


def kl_to(reference_BC: Tensor, logprobs_BC: Tensor, ratio: Tensor, trained_BC: Tensor) -> Tensor:
    """An estimate of the KL divergence from a reference, of every token: Schulman's k3, never negative
    (http://joschu.net/blog/kl-approx.html), times the importance ratio, without which its gradient is not that of the
    divergence and grows exponentially where the two part (DeepSeek-V3.2, arXiv 2512.02556)."""
    difference_BC = (reference_BC - logprobs_BC) * trained_BC  # a forced token's may overflow
    return (torch.exp(difference_BC) - difference_BC - 1) * ratio


def mean_of(values_BC: Tensor, trained_BC: Tensor, tokens_B: Tensor) -> Tensor:
    """Each row's part of a mean over so many tokens, (B,); 0 without one."""
    return (values_BC * trained_BC).sum(1) / tokens_B.clamp(min=1.0)


def reduce(
    objective: Objective, losses_BC: Tensor, trained_BC: Tensor, completions: int, tokens: Tensor, longest: int,
    whole: Whole,
) -> Tensor:  # fmt: skip
    """A micro-batch's part of the step's loss: the parts of all micro-batches add up to it.

    Args:
        completions: (episodes) of the whole step on this process, those left out for want of a signal included.
        tokens: trained ones of the whole step, divided by the number of processes, whose gradients are averaged.
        longest: tokens that a completion may have.
    """
    if objective.mean == "sequence":
        return mean_of(losses_BC, trained_BC, whole.tokens_B).sum() / completions
    total = (losses_BC * trained_BC).sum()
    return total / (tokens.clamp(min=1.0) if objective.mean == "token" else completions * longest)
