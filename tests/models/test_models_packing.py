from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.models.packing import Packs, pack, turn_pieces


def rooms(lengths: np.ndarray, packs: Packs) -> list[int]:
    return [packs.capacity - int(lengths[samples].sum()) for samples in packs]


@given(
    lengths=st.lists(st.integers(1, 60), max_size=200),
    capacity=st.integers(1, 40),
    seed=st.none() | st.integers(0, 2**63),
)
def test_every_sample_is_in_one_pack_or_dropped_and_none_overflows(
    lengths: list[int], capacity: int, seed: int | None
) -> None:
    array = np.array(lengths, dtype=np.int64)
    packs = pack(array, capacity, over_long="drop", seed=seed)
    assert sorted([*packs.samples, *packs.dropped]) == list(range(len(lengths)))
    assert packs.dropped.tolist() == [i for i, length in enumerate(lengths) if length > capacity]
    assert all(room >= 0 for room in rooms(array, packs))
    assert all(len(samples) > 0 and (np.diff(samples) > 0).all() for samples in packs)
    assert packs.tokens == array[array <= capacity].sum()
    assert len(packs) == 0 or packs.fill == pytest.approx(packs.tokens / (len(packs) * capacity))


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook's: one sample at a time, each pack in a list."""
    packs: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [p for p in packs if capacity - sum(p) >= length]
        if fitting:
            min(fitting, key=lambda p: capacity - sum(p)).append(length)
        else:
            packs.append([length])
    return packs


@given(lengths=st.lists(st.integers(1, 30), max_size=80), capacity=st.integers(30, 64))
def test_equals_the_textbook_algorithm(lengths: list[int], capacity: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    # Which of two packs with the same room is taken is free, so the totals compare, not the contents.
    ours = sorted(int(array[samples].sum()) for samples in pack(array, capacity))
    assert ours == sorted(sum(samples) for samples in best_fit_decreasing(lengths, capacity))


def test_a_thousand_short_documents_take_the_fewest_packs_there_can_be() -> None:
    lengths = np.random.default_rng(0).integers(20, 2000, 1000)
    packs = pack(lengths, 8192)
    assert len(packs) == np.ceil(lengths.sum() / 8192)
    assert packs.fill > 0.99


def test_the_post_training_mix_fills_packs() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(8.15, 1.2, 100_000), 20, 131_072).astype(np.int64)
    packs = pack(lengths, 131_072)
    assert packs.fill > 0.999
    again = pack(lengths.tolist(), 131_072)
    assert np.array_equal(packs.samples, again.samples) and np.array_equal(packs.starts, again.starts)


@given(lengths=st.lists(st.integers(1, 30) | st.sampled_from([17, 18, 30]), max_size=120), capacity=st.integers(30, 64))
def test_mixed_packs_are_no_more_than_best_fit_needs(lengths: list[int], capacity: int) -> None:
    assert len(pack(lengths, capacity, seed=1)) <= len(pack(lengths, capacity))


def two_kinds(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of documents, and whether each is of the kind that is twice as long as the other."""
    rng = np.random.default_rng(seed)
    long = rng.random(count) < 0.4
    return np.clip(rng.normal(np.where(long, 160, 80), 20), 10, 400).astype(np.int64), long


def follow_their_kind(packs: Packs, kind: np.ndarray) -> float:
    same = np.concatenate([kind[samples][1:] == kind[samples][:-1] for samples in packs])
    return float(same.mean())


def test_mixed_packs_are_as_full_and_no_kind_keeps_to_itself() -> None:
    lengths, long = two_kinds(3000, 0)
    mixed, best = pack(lengths, 1024, seed=5), pack(lengths, 1024)
    chance = long.mean() ** 2 + (1 - long.mean()) ** 2
    assert len(best) >= len(mixed) == np.ceil(lengths.sum() / 1024)
    assert follow_their_kind(best, long) > chance + 0.15
    assert abs(follow_their_kind(mixed, long) - chance) < 0.03
    shares = [np.array([long[samples].mean() for samples in packs]).std() for packs in (mixed, best)]
    assert shares[0] < shares[1] / 2


def test_mixed_packs_follow_from_the_seed() -> None:
    lengths, _ = two_kinds(500, 1)
    one, again, other = (pack(lengths, 1024, seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(one.samples, again.samples) and np.array_equal(one.starts, again.starts)
    assert not np.array_equal(one.samples, other.samples)


def test_mixed_packs_of_the_post_training_mix_are_full() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(8.15, 1.2, 100_000), 20, 131_072).astype(np.int64)
    assert pack(lengths, 131_072, seed=1).fill > 0.999


def test_over_long_samples_are_an_error_by_default() -> None:
    with pytest.raises(
        DataError, match=r"2 of 3 samples are longer than a pack of 8 tokens \(longest: sample 2 with 11"
    ):
        pack([5, 9, 11], 8)


def test_no_room_and_no_tokens_are_errors() -> None:
    with pytest.raises(ConfigError, match="got 0"):
        pack([1], 0)
    with pytest.raises(DataError, match="sample 1 has no tokens"):
        pack([3, 0], 8)


@given(mask=st.lists(st.booleans(), max_size=60), capacity=st.integers(1, 30))
def test_pieces_are_whole_turns_that_fit(mask: list[bool], capacity: int) -> None:
    pieces = turn_pieces(mask, capacity)
    ends = {i + 1 for i in range(len(mask)) if mask[i] and (i + 1 == len(mask) or not mask[i + 1])}
    starts = {0} | ends
    assert all(0 < stop - start <= capacity and start in starts and stop in ends for start, stop in pieces)
    assert all(first[1] <= second[0] for first, second in pairwise(pieces))
    turns = list(zip(sorted(starts), sorted(ends), strict=False))
    kept = [turn for turn in turns if any(start <= turn[0] and turn[1] <= stop for start, stop in pieces)]
    assert kept == [turn for turn in turns if turn[1] - turn[0] <= capacity]


def test_a_conversation_that_fits_is_one_piece_up_to_its_last_answer() -> None:
    assert turn_pieces([0, 0, 1, 1, 0, 1, 0], 7) == [(0, 6)]
