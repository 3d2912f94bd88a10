"""Rewards for an answer's shape: well-formed, and within its budget."""

from nanoalign.common.errors import DataError
from nanoalign.reward.base import Sample

_THINK_TAGS = ("<think>", "</think>")


def score_format(sample: Sample) -> float:
    """1.0 where thinking was closed exactly once, an answer or a tool call follows, it contains no thinking tag, and
    the model ended its turn; else 0.0."""
    content = sample.answer.content
    said = bool(content.strip()) or bool(sample.answer.tool_calls)
    return float(sample.closed and sample.finished and said and not any(tag in content for tag in _THINK_TAGS))


def score_environment(sample: Sample) -> float:
    """The environment's reward of an episode, from 0 to 1. Raises DataError for a sample that ends none."""
    if sample.environment is None:
        raise DataError("reward 'environment' is for stages with an `environment`: nothing was played")
    return sample.environment


def length_factor(sample: Sample) -> float:
    """How well a sample keeps to its thinking budget, in [0, 1]: 1 without a budget, else
    ``clip(0.5 + (budget - tokens) / budget, 0, 1)``: L1-Max (arXiv 2503.04697) with its slope in units of the budget.
    To be multiplied by correctness, as there and in ThinkPrune (arXiv 2504.01296): a short wrong answer earns nothing.
    A budget of 0 is the budget rule's to keep (it writes the close, the sample's only thinking tokens), so it counts 1.
    """
    budget, tokens = sample.thinking_budget, sample.thinking_tokens
    if not budget:
        return 1.0
    return min(1.0, max(0.0, 0.5 + (budget - tokens) / budget))
