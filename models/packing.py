"""Best-fit-decreasing packing over a whole data set, by multiplicities of lengths rather than sample by sample.

Samples of one length are interchangeable, and so are packs with one amount of room. For each length, from the longest
down, the packs with the least sufficient room are filled first (Johnson 1973; for training data Ding et al. 2024,
arXiv 2404.10830), as many at once as there are. The result depends on nothing but the lengths and the capacity.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanoalign.common.errors import ConfigError, DataError

WORD = 512
"""Amounts of room that one word of the occupancy bitmap covers."""


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


def pack(lengths: ArrayLike, capacity: int, over_long: Literal["error", "drop"] = "error") -> Packs:
    """Packs samples of ``lengths`` (N,) tokens into packs of at most ``capacity`` tokens.

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
    counts = np.bincount(np.where(lengths > capacity, 0, lengths), minlength=capacity + 1)
    counts[0] = 0
    pack_of_placed, packs = _place(counts, capacity)
    # Samples from the longest down, ties in the data set's order: the order in which _place counted them.
    order = np.argsort(np.where(lengths > capacity, 0, -lengths).astype(np.int32), kind="stable").astype(np.int32)
    order = order[: lengths.size - too_long.size]
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


def _place(counts: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int32], int]:
    """The pack of every sample, samples taken from the longest down, and the number of packs.

    ``counts[l]`` (capacity + 1,) is the number of samples of ``l`` tokens.
    """
    room = _Room(capacity)
    placed: list[NDArray[np.int32]] = []
    batch: list[int] = []
    packs = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        free = room.at_least(length)
        while left and free <= capacity:
            each = free // length  # a pack stays the best fit until no further sample of this length fits
            open_packs = room.packs[free]
            many = min(len(open_packs), left // each)
            if many:
                chosen = open_packs[-many:]
                del open_packs[-many:]
                batch += chosen * each
                left -= many * each
                room.add(free - each * length, chosen)
            if open_packs and left:  # fewer samples than fit into the next pack
                last = open_packs.pop()
                batch += [last] * left
                room.add(free - left * length, [last])
                left = 0
            if not open_packs:
                room.clear(free)
            free = room.at_least(free + 1)
        while left:
            each = min(capacity // length, left)
            many = left // each
            chosen = list(range(packs, packs + many))
            packs += many
            batch += chosen * each
            left -= many * each
            room.add(capacity - each * length, chosen)
        if len(batch) > 1 << 20:
            placed.append(np.array(batch, dtype=np.int32))
            batch = []
    placed.append(np.array(batch, dtype=np.int32))
    return np.concatenate(placed), packs


class _Room:
    """Open packs by the tokens they still have room for, with a two-level bitmap of the amounts that occur."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.packs: dict[int, list[int]] = {}
        self.words = [0] * (capacity // WORD + 1)
        self.used_words = 0

    def add(self, free: int, packs: list[int]) -> None:
        if free == 0:
            return
        held = self.packs.get(free)
        if held is not None:
            held += packs
            return
        self.packs[free] = packs
        self.words[free // WORD] |= 1 << free % WORD
        self.used_words |= 1 << free // WORD

    def clear(self, free: int) -> None:
        del self.packs[free]
        self.words[free // WORD] ^= 1 << free % WORD
        if not self.words[free // WORD]:
            self.used_words ^= 1 << free // WORD

    def at_least(self, free: int) -> int:
        """The least room of an open pack that is ``free`` or more; more than the capacity if there is none."""
        if free > self.capacity:
            return free
        word, bit = divmod(free, WORD)
        bits = self.words[word] >> bit
        if bits:
            return free + (bits & -bits).bit_length() - 1
        used = self.used_words >> (word + 1)
        if not used:
            return self.capacity + 1
        word += (used & -used).bit_length()
        bits = self.words[word]
        return word * WORD + (bits & -bits).bit_length() - 1


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
