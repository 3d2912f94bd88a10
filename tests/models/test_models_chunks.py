"""Chunks and tiles follow the documents; what is kept for a tensor goes with it."""

import gc
import weakref
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.models.chunks import LONGEST, PackLayout, cached_per_tensor, pack_layout, plain_chunks, tile_bounds

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=6)


@given(st.lists(LENGTHS, min_size=1, max_size=3), st.sampled_from([8, 64]))
def test_chunks_lie_within_documents(rows: list[list[int]], length: int):
    tokens = max(sum(lengths) for lengths in rows)
    rows = [[*lengths, tokens - sum(lengths)] for lengths in rows]
    document = torch.stack([torch.repeat_interleave(torch.tensor(lengths)) for lengths in rows])
    chunks = PackLayout(document).chunks(length, len(rows))
    bounds, at, want_begin, want_fresh, want_rows = chunks.begin.tolist(), 0, [], [], []
    for lengths in rows:
        want_rows.append(len(want_begin))
        for number, size in enumerate(size for size in lengths if size):
            for start in range(0, size, length):
                want_begin.append(at + start)
                want_fresh.append(int(start == 0 and number > 0))
            at += size
    assert bounds == [*want_begin, at] and chunks.count == len(want_begin)
    assert chunks.fresh.tolist() == want_fresh and chunks.rows.tolist() == [*want_rows, len(want_begin)]


def test_rows_without_documents_share_their_chunks():
    chunks = plain_chunks(8, 2, 20, torch.device("cpu"))
    assert chunks.begin.tolist() == [0, 8, 16, 20, 28, 36, 40] and chunks.rows.tolist() == [0, 3, 6]
    assert plain_chunks(8, 2, 20, torch.device("cpu")) is chunks


def test_chunks_are_found_once_for_a_pack():
    seq_idx = torch.tensor([[3, 3, 5, 5, 5]])
    assert pack_layout(seq_idx) is pack_layout(seq_idx)
    assert pack_layout(seq_idx).chunks(2, 3) is pack_layout(seq_idx).chunks(2, 3)
    assert pack_layout(seq_idx).chunks(2, 1).begin.tolist() == [0, 2, 4, 5]


@given(LENGTHS, st.integers(1, 400))
def test_tiles(lengths: list[int], tile: int):
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    bounds = tile_bounds(starts, sum(lengths), tile)
    assert bounds[0] == 0 and bounds[-1] == sum(lengths)
    assert all(0 < end - start <= tile for start, end in pairwise(bounds))
    if tile >= 2 * LONGEST:  # each tile ends with a document or a chunk of it, and none is a splinter
        for bound in bounds[:-1]:
            assert (bound - max(start for start in starts if start <= bound)) % LONGEST == 0
        for start, end in pairwise(bounds):
            assert end - start >= LONGEST or end in starts or end == bounds[-1]


def test_results_are_kept_as_long_as_the_tensor():
    calls = []

    @cached_per_tensor
    def total(tensor: torch.Tensor, factor: int) -> torch.Tensor:
        calls.append(factor)
        return tensor.sum() * factor

    first, second = torch.ones(3), torch.ones(3)
    assert total(first, 2) is total(first, 2) and total(first, 3) == 9 and total(second, 2) == 6
    assert calls == [2, 3, 2]
    first[0] = 5
    assert total(first, 2) == 14 and calls == [2, 3, 2, 2]  # a tensor written to is another one
    kept = weakref.ref(total(first, 2))
    del first
    gc.collect()
    assert kept() is None
