"""What is done about completions that other weights drew."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.rl.loss import LOSSES, behaviour, token_losses

LOGPROB = st.floats(-20, 0)


def both(rows: list[list[tuple[float, float, bool]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    own, engine, trained = (
        torch.tensor([[each[k] for each in row] for row in rows], dtype=torch.float64) for k in range(3)
    )
    return own, engine, trained


rows = st.integers(1, 5).flatmap(
    lambda length: st.lists(
        st.lists(st.tuples(LOGPROB, LOGPROB, st.booleans()), min_size=length, max_size=length), min_size=1, max_size=4
    )
)


@given(rows, st.floats(1.1, 5.0))
def test_weights_are_truncated_ratios(drawn: list[list[tuple[float, float, bool]]], cap: float) -> None:
    own, engine, trained = both(drawn)
    old, weight = behaviour("token", own, engine, trained, cap)
    assert torch.equal(old, own)
    old, of_completion = behaviour("sequence", own, engine, trained, cap)
    for row, places in enumerate(drawn):
        expected = [min(math.exp(a - b), cap) if counts else 1.0 for a, b, counts in places]
        assert weight[row].tolist() == pytest.approx(expected)
        total = sum(a - b for a, b, counts in places if counts)
        assert of_completion[row].tolist() == pytest.approx([min(math.exp(min(total, 700)), cap)])


@given(rows, st.sampled_from(["token", "sequence"]))
def test_weights_of_the_engines_own_policy_are_one(drawn: list[list[tuple[float, float, bool]]], kind: Any) -> None:
    own, _, trained = both(drawn)
    assert torch.equal(
        behaviour(kind, own, own, trained, 2.0)[1], torch.ones_like(own if kind == "token" else own[:, :1])
    )


def test_clip_is_the_ratio_within_the_loss() -> None:
    own, engine, trained = torch.randn(2, 3), torch.randn(2, 3), torch.ones(2, 3)
    old, weight = behaviour("clip", own, engine, trained, 2.0)
    assert torch.equal(old, engine) and torch.equal(weight, torch.ones(2, 3))


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "cispo"])
def test_the_gradient_is_that_of_weighted_reinforce(loss: str) -> None:
    """Each token's gradient is its truncated ratio times its advantage, whatever the loss's clip."""
    own, engine = torch.tensor([[-1.0, -0.1]], requires_grad=True), torch.tensor([[-3.0, -0.4]])
    old, weight = behaviour("token", own, engine, torch.ones(1, 2), 2.0)
    found = token_losses(LOSSES[loss], own, old, torch.ones(1, 2), torch.tensor([[0.7]]), (0.2, 0.28))
    (found.losses_BC * weight).sum().backward()
    assert own.grad is not None
    assert own.grad.tolist()[0] == pytest.approx([-0.7 * 2.0, -0.7 * math.exp(0.3)], rel=1e-5)
