"""Chunks of the state-space scan, which restart at every document, and tiles of a pack, on chunk bounds.

All of it follows from which documents a pack holds, and is the same in every layer: it is computed once for each such
tensor. Shapes: B batch, T tokens, Z chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

LONGEST = 64
"""Tokens of the longest chunk; a shorter one's length divides it."""
Result = TypeVar("Result")


def cached_per_tensor(function: Callable[..., Result]) -> Callable[..., Result]:
    """Caches ``function``'s results for its first argument, a tensor, as long as that lives and is not modified."""
    known: Any = WeakIdKeyDictionary()

    @wraps(function)
    def kept(tensor: Tensor, *arguments: Any) -> Result:
        version = None if tensor.is_inference() else tensor._version
        if tensor not in known or known[tensor][0] != version:
            known[tensor] = version, {}
        results = known[tensor][1]
        if arguments not in results:
            results[arguments] = function(tensor, *arguments)
        return results[arguments]

    return kept


@dataclass(frozen=True)
class Chunks:
    """The chunks of B rows of T tokens, in the order of tokens."""

    begin: Tensor
    """(Z + 1,) int32: the first token of each, counted over all rows, and B T."""
    fresh: Tensor
    """(Z,) uint8: whether a document begins here, other than the first of its row."""
    rows: Tensor
    """(B + 1,) int32: the first chunk of each row, and Z."""

    @property
    def count(self) -> int:
        return len(self.fresh)


def first_tokens(seq_idx_BT: Tensor) -> Tensor:
    """Marks the first token of each document, where ``seq_idx`` changes, and of each row. (B, T) to (B, T) bool."""
    return F.pad(seq_idx_BT[:, 1:] != seq_idx_BT[:, :-1], (1, 0), value=True)


def document_runs(seq_idx_BT: Tensor) -> Tensor:
    """Numbers the runs of equal values from 0, so that two documents never share a number. (B, T) to (B, T) int64."""
    return first_tokens(seq_idx_BT).cumsum(1) - 1


def document_positions(first_BT: Tensor) -> Tensor:
    """Each token's place in its document, from :func:`first_tokens`. (B, T) to (B, T) int64."""
    at = torch.arange(first_BT.shape[1], device=first_BT.device).expand_as(first_BT)
    return at - torch.where(first_BT, at, 0).cummax(1).values


class PackLayout:
    """Which document each token belongs to, and the chunks that follow from it, found once.

    Not a tensor but an object, which checkpointing passes through unchanged: tensors come back as different objects.
    """

    def __init__(self, runs_BT: Tensor) -> None:
        """``runs_BT``: numbers as of :func:`document_runs`, for each row or in one row for all."""
        self.runs_BT = runs_BT
        self.known: dict[tuple[int, int], Chunks] = {}

    def chunks(self, length: int, batch: int) -> Chunks:
        """Chunks of at most ``length`` tokens of ``batch`` rows. The first call waits for the GPU."""
        if (length, batch) not in self.known:
            self.known[length, batch] = _chunks(self.runs_BT.expand(batch, -1), length)
        return self.known[length, batch]


@cached_per_tensor
def pack_layout(seq_idx_BT: Tensor) -> PackLayout:
    """The documents of a pack whose tokens change ``seq_idx`` with the document."""
    return PackLayout(document_runs(seq_idx_BT))


@lru_cache(256)
def plain_chunks(length: int, batch: int, tokens: int, device: torch.device) -> Chunks:
    """Chunks of rows of one document each."""
    return _chunks(torch.zeros(batch, tokens, dtype=torch.int32, device=device), length)


def _chunks(runs_BT: Tensor, length: int) -> Chunks:
    batch, tokens = runs_BT.shape
    first_BT = first_tokens(runs_BT)
    begin = (document_positions(first_BT) % length == 0).flatten().nonzero().flatten()  # the only wait for the GPU
    rows = torch.searchsorted(begin, torch.arange(batch + 1, device=begin.device) * tokens)
    fresh = first_BT.flatten()[begin] & (begin % tokens > 0)
    return Chunks(F.pad(begin, (0, 1), value=batch * tokens).int(), fresh.byte(), rows.int())


def tile_bounds(starts: list[int], tokens: int, tile: int) -> list[int]:
    """Bounds of tiles of at most ``tile`` of ``tokens`` tokens. A tile that cannot end with a document ends with a
    chunk of it where it is long enough to hold one. ``starts`` are the documents' first tokens, from 0 on."""
    bounds, document = [0], 0
    while tokens - bounds[-1] > tile:
        limit = bounds[-1] + tile
        while document + 1 < len(starts) and starts[document + 1] <= limit:
            document += 1
        start = starts[document]
        aligned = start + (limit - start) // LONGEST * LONGEST
        useful = aligned > bounds[-1] and (aligned == start or aligned >= bounds[-1] + LONGEST)
        bounds.append(aligned if useful else limit)
    return [*bounds, tokens]
