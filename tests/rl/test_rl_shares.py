"""Completions of a step over processes: all of them once, in packs that fit, about equally many on each."""

import random

from hypothesis import given
from hypothesis import strategies as st

from nanoalign.models.packing import pack
from nanoalign.models.size import attention_cost
from nanoalign.rl.shares import share_out


def cost(lengths: list[int], packs: list[list[int]], quadratic: float) -> float:
    return sum(lengths[place] + quadratic * lengths[place] ** 2 for places in packs for place in places)


@given(
    st.lists(st.integers(1, 60), max_size=60), st.integers(1, 50), st.integers(1, 8), st.sampled_from([0.0, 1e-3, 1.0])
)
def test_every_row_once_in_packs_that_fit_equally_many_on_all(lengths, capacity, processes, quadratic):
    shares = share_out(lengths, capacity, processes, quadratic)
    assert shares == share_out(lengths, capacity, processes, quadratic)
    assert len(shares) == processes and len({len(packs) for packs in shares}) == 1 and shares[0]
    assert sorted(place for packs in shares for places in packs for place in places) == list(range(len(lengths)))
    for places in (places for packs in shares for places in packs):
        assert len(places) <= 1 or sum(lengths[place] for place in places) <= capacity
    bound = pack(lengths, capacity, "drop")
    assert len(shares[0]) >= -(-(len(bound) + len(bound.dropped)) // processes)


def test_processes_have_about_as_much_to_compute():
    """Completions of mixed length, as reasoning traces are: in place of packs of each process's own."""
    generator = random.Random(0)
    lengths = [min(4096, round(generator.lognormvariate(6.2, 0.9))) + 300 for _ in range(256)]
    for quadratic in (0.0, 1e-4):
        shares = share_out(lengths, 16_384, 4, quadratic)
        costs = [cost(lengths, packs, quadratic) for packs in shares]
        assert max(costs) < 1.01 * min(costs)
        for together in zip(*shares, strict=True):
            of_a_round = [cost(lengths, [places], quadratic) for places in together]
            assert max(of_a_round) < 1.05 * min(of_a_round)
        own = [cost(lengths[first : first + 64], [[*range(64)]], quadratic) for first in range(0, 256, 64)]
        assert max(own) > 1.05 * min(own)


def test_a_transformer_pays_for_length_and_a_hybrid_hardly():
    llama = {
        "model_type": "llama", "num_hidden_layers": 30, "num_attention_heads": 9, "hidden_size": 576,
    }  # fmt: skip
    hybrid = {
        "model_type": "nemotron_h", "hybrid_override_pattern": "M-" * 24 + "*-" * 4, "num_attention_heads": 40,
        "head_dim": 128, "hidden_size": 4480,
    }  # fmt: skip
    assert 4096 * attention_cost(llama, 134_515_008) > 0.5
    assert 4096 * attention_cost(hybrid, 8_900_000_000) < 0.02
