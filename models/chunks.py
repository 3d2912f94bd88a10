"""Where the chunks of the state-space scan begin: at every document anew. And the tiles of a pack, on chunks' bounds.

All of it follows from which documents a pack holds, and is the same in every layer: it is computed once for each tensor
that says so. Shapes: B batch, T tokens, Z chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

LONGEST = 64
"""Tokens of the longest chunk; a shorter one's length divides it."""
Result = TypeVar("Result")


def once_for_each(function: Callable[..., Result]) -> Callable[..., Result]:
    """Keeps ``function``'s results for its first argument, a tensor that nobody writes to, as long as that lives."""
    known: Any = WeakIdKeyDictionary()

    @wraps(function)
    def kept(tensor: Tensor, *arguments: Any) -> Result:
        results = known.setdefault(tensor, {})
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


def chunks_of(document_BT: Tensor | None, length: int, batch: int, tokens: int, device: torch.device) -> Chunks:
    """Chunks of at most ``length`` tokens of (``batch``, ``tokens``) in documents numbered by ``document_BT`` (which
    may have one row for all), or in one a row."""
    if document_BT is None:
        return _plain(length, batch, tokens, device)
    return _of_documents(document_BT, length, batch)


@cache
def _plain(length: int, batch: int, tokens: int, device: torch.device) -> Chunks:
    return _of_documents.__wrapped__(torch.zeros(1, tokens, dtype=torch.int32, device=device), length, batch)  # type: ignore[attr-defined]


@once_for_each
def _of_documents(document_BT: Tensor, length: int, batch: int) -> Chunks:
    document_BT = document_BT.expand(batch, -1)
    tokens = document_BT.shape[1]
    at = torch.arange(tokens, device=document_BT.device)
    fresh_BT = F.pad(document_BT[:, 1:] != document_BT[:, :-1], (1, 0))
    within_BT = at - torch.where(fresh_BT, at, 0).cummax(1).values
    begin = (within_BT % length == 0).flatten().nonzero().flatten()  # the one wait for the GPU
    rows = torch.searchsorted(begin, torch.arange(batch + 1, device=begin.device) * tokens)
    return Chunks(F.pad(begin, (0, 1), value=batch * tokens).int(), fresh_BT.flatten()[begin].byte(), rows.int())


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
