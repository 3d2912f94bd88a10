"""Drawing against the distributions it claims to draw from."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.rollouts.sampler import sample_tokens
from nanoalign.rollouts.seeds import derive_seed, uniform

numbers = st.floats(-8, 8, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=9), st.floats(0.2, 3), st.floats(0.05, 1))
def test_draws_follow_tempered_nucleus_probabilities(logits, temperature, top_p):
    """A fine grid of uniforms reproduces each token's probability to the grid's width."""
    grid = 2000
    logits_BV = torch.tensor([logits] * grid)
    uniform_B = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    tokens, normalizer = sample_tokens(
        logits_BV, torch.full((grid,), temperature), torch.full((grid,), top_p), uniform_B
    )
    weights = [math.exp((value - max(logits)) / temperature) for value in logits]
    order = sorted(range(len(logits)), key=lambda token: -weights[token])
    kept, mass = [], 0.0
    for token in order:
        if mass < top_p * sum(weights) * (1 - 1e-6) or not kept:
            kept.append(token)
        mass += weights[token]
    total = sum(weights[token] for token in kept)
    counts = torch.bincount(tokens, minlength=len(logits)).tolist()
    # Equal logits may swap places at the nucleus' edge.
    edge = weights[kept[-1]]
    for token, count in enumerate(counts):
        if math.isclose(weights[token], edge, rel_tol=1e-4):
            continue
        expected = weights[token] / total if token in kept else 0.0
        assert abs(count / grid - expected) < 2e-3
    assert normalizer[0].item() == torch.logsumexp(torch.tensor(logits), 0).item()


def test_temperature_zero_takes_the_likeliest_beside_sampled_rows():
    logits_BV = torch.tensor([[0.0, 1.0, 0.9], [0.0, 1.0, 0.9]])
    tokens, _ = sample_tokens(
        logits_BV, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.999, 0.999], dtype=torch.float64)
    )
    assert tokens.tolist() == [1, 2]


def test_impossible_tokens_are_never_drawn():
    logits_BV = torch.tensor([[-torch.inf, 0.0, -torch.inf]] * 2)
    uniform_B = torch.tensor([0.0, 1 - 2**-32], dtype=torch.float64)
    tokens, _ = sample_tokens(logits_BV, torch.ones(2), torch.ones(2), uniform_B)
    assert tokens.tolist() == [1, 1]


def test_uniforms_are_even_and_independent_of_neighbours():
    values = torch.tensor([[uniform(seed, counter) for counter in range(64)] for seed in range(200)])
    assert abs(values.mean() - 0.5) < 0.01
    assert abs((values[:, 1:] * values[:, :-1]).mean() - 0.25) < 0.01
    assert abs((values[1:] * values[:-1]).mean() - 0.25) < 0.01
    assert values.min() >= 0 and values.max() < 1


def test_seeds_tell_their_parts_apart():
    seeds = {derive_seed(a, b, c) for a in range(12) for b in range(12) for c in range(12)}
    assert len(seeds) == 12**3
    assert all(0 <= seed < 2**31 for seed in seeds)
