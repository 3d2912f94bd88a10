"""Which samples share a pack, over a whole data set: from their lengths alone, before any token is read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.models.best_fit import best_fit
from nanoalign.models.mixed_fit import mixed_fit


@dataclass(frozen=True)
class Packs:
    """Which samples share a pack. Pack i holds ``samples[starts[i]:starts[i + 1]]``, in the data set's order."""

    samples: NDArray[np.int32]
    """Sample indices, pack after pack."""
    starts: NDArray[np.int64]
    """Offsets into ``samples``; one more than there are packs."""
    dropped: NDArray[np.int32]
    """Samples that are longer than a pack."""
    capacity: int
    """Tokens that fit into a pack."""
    tokens: int
    """Tokens in all packs."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self.samples[self.starts[index] : self.starts[index + 1]]

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (self[index] for index in range(len(self)))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Samples in each pack."""
        return np.diff(self.starts)

    @property
    def fill(self) -> float:
        """Tokens over the room of all packs; 1 where there are none."""
        return self.tokens / (len(self) * self.capacity) if len(self) else 1.0


def pack(
    lengths: ArrayLike, capacity: int, over_long: Literal["error", "drop"] = "error", seed: int | None = None
) -> Packs:
    """Packs samples of ``lengths`` (N,) tokens into packs of at most ``capacity`` tokens.

    Args:
        seed: packs of samples drawn at random (:mod:`models.mixed_fit`); None: best fit (:mod:`models.best_fit`), which
            puts samples of one length together.

    Raises:
        ConfigError: ``capacity`` is not positive.
        DataError: a length is not positive, or longer than a pack where ``over_long`` is "error".
    """
    lengths = np.ascontiguousarray(lengths, dtype=np.int64)
    if capacity < 1:
        raise ConfigError(f"pack.length: expected a positive number of tokens, got {capacity}")
    if lengths.size and lengths.min() < 1:
        raise DataError(f"sample {int(lengths.argmin())} has no tokens")
    too_long = np.flatnonzero(lengths > capacity).astype(np.int32)
    if too_long.size and over_long == "error":
        raise DataError(
            f"{too_long.size} of {lengths.size} samples are longer than a pack of {capacity} tokens (longest: sample "
            f"{int(lengths.argmax())} with {int(lengths.max())}); make pack.length longer or set pack.over_long"
        )
    fitting = np.flatnonzero(lengths <= capacity).astype(np.int32)
    if seed is not None:
        fitting = np.random.default_rng(seed).permutation(fitting)
        pack_of_placed, packs = mixed_fit(lengths[fitting], capacity)
    else:
        pack_of_placed, packs = best_fit(np.bincount(lengths[fitting], minlength=capacity + 1), capacity)
    # Samples from the longest down, ties in their order: the order in which the two count them.
    order = fitting[np.argsort(-lengths[fitting].astype(np.int32), kind="stable")]
    pack_of = np.full(lengths.size, packs, dtype=np.int32)
    pack_of[order] = pack_of_placed
    samples = np.argsort(pack_of, kind="stable")[: order.size].astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(np.bincount(pack_of_placed, minlength=packs))]).astype(np.int64)
    return Packs(samples, starts, too_long, capacity, int(lengths[order].sum()))


def singly(lengths: ArrayLike) -> Packs:
    """Each sample in its own pack, no larger than the longest: a data set that is padded, not packed."""
    lengths = np.asarray(lengths, dtype=np.int64)
    capacity = int(lengths.max(initial=1))
    each = np.arange(lengths.size + 1)
    return Packs(each[:-1].astype(np.int32), each, np.empty(0, np.int32), capacity, int(lengths.sum()))


def turn_pieces(loss_mask: ArrayLike, capacity: int) -> list[tuple[int, int]]:
    """Cuts a sample that is longer than ``capacity`` at its turns, into as few pieces as possible: (start, stop) of
    each.

    A turn ends where a trained run ends, after the assistant's stop token. Later pieces begin with the next user's turn
    and lack what came before. What cannot be kept, a turn that is longer than a pack or a tail without a trained token,
    is in no piece.
    """
    mask = np.asarray(loss_mask, dtype=bool)
    ends = np.flatnonzero(mask & ~np.append(mask[1:], False)) + 1
    pieces: list[tuple[int, int]] = []
    start = stop = 0
    for end in ends.tolist():
        if end - start > capacity:
            if stop > start:
                pieces.append((start, stop))
            start = stop
        stop = end
        if stop - start > capacity:
            start = stop
    if stop > start:
        pieces.append((start, stop))
    return pieces
