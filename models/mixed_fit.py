"""Packs of documents drawn at random, as full as best-fit packs.

Best fit puts documents of one length together, and where a domain has its lengths, of one domain: the optimizer's steps
then differ in their make-up far more than random ones (docs/results/isolation.md). Here a pack takes documents in the
order drawn until it is full, one too many or one too few, whichever is closer; then one of its documents is exchanged
for one, anywhere among those still to come, whose length closes the gap. As with :mod:`models.best_fit`, documents of
one length are interchangeable, so only lengths are exchanged.
"""

from array import array
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from nanoalign.models.best_fit import Amounts, best_fit

CHUNK = 1 << 16
"""Lengths that are Python numbers at a time."""
TOLERATED = 1000
"""One pack more than best fit needs, of this many, is room enough for a random order."""


def mixed_fit(lengths: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int32], int]:
    """The pack of every document, documents taken from the longest down, and the number of packs.

    The last packs are left to best fit: too few documents remain to find one that closes a gap. That is one pack's
    worth, or where lengths hardly fit together four times as many, and again, until packs are as full as best fit's.

    Args:
        lengths: (N,) each from 1 to ``capacity``, in the order drawn.
    """
    _, fewest = best_fit(np.bincount(lengths, minlength=capacity + 1), capacity)
    last = capacity
    while True:
        pack_of, packs = _mixed_until(lengths, capacity, last)
        if packs <= fewest + fewest // TOLERATED:
            return pack_of, packs
        last *= 4  # as soon as it is all that there is, this is best fit


def _mixed_until(lengths: NDArray[np.int64], capacity: int, last: int) -> tuple[NDArray[np.int32], int]:
    """As :func:`mixed_fit`, ``last`` tokens being left to best fit."""
    pool = _Pool(lengths, capacity)
    slots, sizes = array("i"), array("i")
    while pool.tokens > last:
        pack = _fill(pool, capacity)
        slots.extend(pack)
        sizes.append(len(pack))
    counts = np.array(pool.counts, dtype=np.int64)
    rest, packs = best_fit(counts, capacity)
    descending = np.flatnonzero(counts)[::-1].astype(np.int32)
    slot_lengths = np.concatenate([np.array(slots), np.repeat(descending, counts[descending])])
    slot_packs = np.concatenate([np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), rest + np.int32(len(sizes))])
    return slot_packs[np.argsort(-slot_lengths, kind="stable")], len(sizes) + packs


def _fill(pool: "_Pool", capacity: int) -> list[int]:
    """The lengths of one pack, taken out of a pool of more tokens than fit."""
    pack: list[int] = []
    gap = capacity
    while gap > 0:
        pack.append(pool.draw())
        gap -= pack[-1]
    if gap + pack[-1] < -gap:  # one too few is closer
        gap += pool.put_back(pack.pop())
    while gap:
        place, found = _exchange(pool, pack, gap)
        if found:
            gap -= found
            pool.take(found)
            if place < len(pack):
                gap += pool.put_back(pack[place])
                pack[place] = found
            else:
                pack.append(found)
        elif gap > 0:
            break  # nothing makes it fuller
        else:
            gap += pool.put_back(pack.pop())
    return pack


def _exchange(pool: "_Pool", pack: list[int], gap: int) -> tuple[int, int]:
    """Which of the pack's documents to replace (its end: to add one) and the length that leaves the least room, a
    negative ``gap`` closed; length 0 where none does better than the pack as it is."""
    best, place, length = (gap if gap > 0 else pool.capacity), len(pack), 0
    for here, replaced in enumerate([*pack, 0]):
        wanted = replaced + gap
        found = pool.longest(wanted)
        if found and wanted - found < best:
            best, place, length = wanted - found, here, found
            if not best:
                break
    return place, length


class _Pool:
    """Lengths that are in no pack yet, in the order drawn."""

    def __init__(self, lengths: NDArray[np.int64], capacity: int) -> None:
        self.capacity = capacity
        self.tokens = int(lengths.sum())
        self.counts: list[int] = np.bincount(lengths, minlength=capacity + 1).tolist()
        self._room_beside = Amounts(capacity)
        for length in np.unique(lengths).tolist():
            self._room_beside.add(capacity - length)
        chunks = (lengths[start : start + CHUNK] for start in range(0, lengths.size, CHUNK))
        self._order = (length for chunk in chunks for length in chunk.tolist())
        self._put_back: list[int] = []
        self._ahead: Counter[int] = Counter()
        """Lengths taken out of turn, to be passed over when they come."""

    def draw(self) -> int:
        """Takes the next length."""
        while True:
            length = self._put_back.pop() if self._put_back else next(self._order)
            if not self._ahead[length]:
                self._remove(length)
                return length
            self._ahead[length] -= 1

    def take(self, length: int) -> None:
        """Takes a length that is in the pool, wherever it is."""
        self._ahead[length] += 1
        self._remove(length)

    def put_back(self, length: int) -> int:
        """Returns a length, which is drawn next; gives the length."""
        self._put_back.append(length)
        if not self.counts[length]:
            self._room_beside.add(self.capacity - length)
        self.counts[length] += 1
        self.tokens += length
        return length

    def longest(self, most: int) -> int:
        """The longest length of at most ``most`` tokens; 0 if there is none."""
        return max(0, self.capacity - self._room_beside.at_least(self.capacity - most)) if most > 0 else 0

    def _remove(self, length: int) -> None:
        self.counts[length] -= 1
        self.tokens -= length
        if not self.counts[length]:
            self._room_beside.remove(self.capacity - length)
