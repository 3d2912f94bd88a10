"""Best-fit-decreasing packing over a whole data set, by multiplicities of lengths rather than sample by sample.

Samples of one length are interchangeable, and so are packs with one amount of room. For each length, from the longest
down, the packs with the least sufficient room are filled first (Johnson 1973; for training data Ding et al. 2024,
arXiv 2404.10830), as many at once as there are. The result depends on nothing but the lengths and the capacity.
"""

import numpy as np
from numpy.typing import NDArray

WORD = 512
"""Amounts that one word of a bitmap covers."""


def best_fit(counts: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int32], int]:
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
    """Open packs by the tokens they still have room for."""

    def __init__(self, capacity: int) -> None:
        self.packs: dict[int, list[int]] = {}
        self.amounts = Amounts(capacity)
        self.at_least = self.amounts.at_least

    def add(self, free: int, packs: list[int]) -> None:
        if free == 0:
            return
        held = self.packs.get(free)
        if held is not None:
            held += packs
            return
        self.packs[free] = packs
        self.amounts.add(free)

    def clear(self, free: int) -> None:
        del self.packs[free]
        self.amounts.remove(free)


class Amounts:
    """A set of amounts of tokens up to a limit, as a two-level bitmap."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.words = [0] * (limit // WORD + 1)
        self.used_words = 0

    def add(self, amount: int) -> None:
        self.words[amount // WORD] |= 1 << amount % WORD
        self.used_words |= 1 << amount // WORD

    def remove(self, amount: int) -> None:
        """Takes out an amount that is in it."""
        self.words[amount // WORD] ^= 1 << amount % WORD
        if not self.words[amount // WORD]:
            self.used_words ^= 1 << amount // WORD

    def at_least(self, amount: int) -> int:
        """The least that is ``amount`` or more; more than the limit if there is none."""
        if amount > self.limit:
            return amount
        word, bit = divmod(amount, WORD)
        bits = self.words[word] >> bit
        if bits:
            return amount + (bits & -bits).bit_length() - 1
        used = self.used_words >> (word + 1)
        if not used:
            return self.limit + 1
        word += (used & -used).bit_length()
        bits = self.words[word]
        return word * WORD + (bits & -bits).bit_length() - 1
