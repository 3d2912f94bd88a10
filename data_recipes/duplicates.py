"""Filters that leave out samples seen before, in a few bytes per sample."""

import os
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanoalign.data_recipes.conversation import Conversation, text_of, words_of
from nanoalign.data_recipes.rows import digest

MAX_LOAD = 0.75
"""Of a table's slots; then it doubles."""
AT_ONCE = 1 << 14
"""Sketches that are read together when tables double."""
EQUAL = np.array([(value < 16) + (value % 16 == 0) for value in range(256)], np.uint8)
"""Of two bytes' exclusive or: in how many of their halves they agree."""


class _Table:
    """Numbers other than 0 by slots, with linear probing: a number is in the first free slot from where it starts."""

    def __init__(self, slots: int, dtype: Any) -> None:
        self._values = np.zeros(slots, dtype)

    def __len__(self) -> int:
        return len(self._values)

    def run(self, start: int) -> tuple[list[int], int]:
        """The numbers from a slot on to the first free one, and that."""
        found = []
        while value := int(self._values[start]):
            found.append(value)
            start = (start + 1) % len(self._values)
        return found, start

    def put(self, slot: int, value: int) -> None:
        """Takes a free slot."""
        self._values[slot] = value

    def place(self, starts: NDArray[Any], values: NDArray[Any]) -> None:
        """Many numbers, each from where it starts."""
        while len(values):
            free = self._values[starts] == 0
            self._values[starts[free]] = values[free]
            left = self._values[starts] != values
            starts, values = (starts[left] + 1) % len(self._values), values[left]

    def all(self) -> NDArray[Any]:
        """All numbers."""
        return self._values[self._values != 0]


class ExactDuplicates:
    """Leaves out samples whose messages and tools were seen before, apart from case and white space.

    It remembers 64 bits of each, 11 to 21 bytes with the free slots: of 10 million different samples one is taken for
    another with a chance of 3 in a million.
    """

    def __init__(self) -> None:
        self._seen = _Table(1 << 10, np.uint64)
        self._count = 0

    def __call__(self, conversation: Conversation) -> str | None:
        parts = [
            f"{message.role}\0{message.content}\0{message.reasoning or ''}\0{message.tool_calls}"
            for message in conversation.messages
        ]
        text = " ".join("\1".join([*parts, str(conversation.tools), str(conversation.task)]).lower().split())
        name = digest(text.encode()) or 1
        found, free = self._seen.run(name % len(self._seen))
        if name in found:
            return "duplicate"
        self._seen.put(free, name)
        self._count += 1
        if self._count > MAX_LOAD * len(self._seen):
            values, slots = self._seen.all(), 2 * len(self._seen)
            self._seen = _Table(slots, np.uint64)
            self._seen.place((values % np.uint64(slots)).astype(np.int64), values)
        return None


class NearDuplicates:
    """Leaves out samples that share most of their word triples with an earlier one (MinHash, Broder 1997, by
    datasketch).

    Of each signature the lowest four bits a permutation are kept (b-bit minwise hashing, Li and Koenig 2010), 64 bytes
    in a temporary file. Every 8 permutations are a band of 32 bits; samples with one of the 16 bands in common are
    compared. One table per band finds them, by their numbers alone: 85 to 171 bytes of memory per sample, with the free
    slots.
    """

    PERMUTATIONS = 128
    BANDS = 16
    BYTES = PERMUTATIONS // 2

    def __init__(self, threshold: float = 0.8) -> None:
        from datasketch import MinHash

        # Unrelated values agree in four bits with a chance of 1 in 16.
        self._least = (threshold + (1 - threshold) / 16) * self.PERMUTATIONS
        self._blank = MinHash(self.PERMUTATIONS, seed=1)
        self._sketches = TemporaryFile(buffering=0)  # noqa: SIM115 (it goes with the filter)
        self._count = 0
        self._tables = [_Table(1 << 10, np.uint32) for _ in range(self.BANDS)]

    def __call__(self, conversation: Conversation) -> str | None:
        words = words_of(text_of(conversation))
        triples = {" ".join(words[i : i + 3]).encode() for i in range(max(1, len(words) - 2))}
        signature = self._blank.copy()
        signature.update_batch(triples)
        low = (signature.hashvalues & 15).astype(np.uint8)
        sketch = low[0::2] << 4 | low[1::2]
        runs = [table.run(start) for table, start in zip(self._tables, self._starts(sketch[None])[0].tolist())]
        candidates = {number for found, _ in runs for number in found}
        if candidates and self._agreement(sketch, candidates) >= self._least:
            return "near duplicate"
        os.pwrite(self._sketches.fileno(), sketch.tobytes(), self._count * self.BYTES)
        self._count += 1
        for table, (_, free) in zip(self._tables, runs):
            table.put(free, self._count)
        if self._count > MAX_LOAD * len(self._tables[0]):
            self._double()
        return None

    def _agreement(self, sketch: NDArray[np.uint8], numbers: set[int]) -> int:
        """In how many permutations the nearest of these samples, numbered from 1, agrees."""
        file = self._sketches.fileno()
        read = b"".join(os.pread(file, self.BYTES, (number - 1) * self.BYTES) for number in numbers)
        others = np.frombuffer(read, np.uint8).reshape(-1, self.BYTES)
        return int(EQUAL[others ^ sketch].sum(1).max())

    def _starts(self, sketches: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Where samples' bands start in their tables: (N, BYTES) to (N, BANDS)."""
        mixed = sketches.view(np.uint32) * np.uint32(2654435769)  # Knuth's multiplicative hashing: the high bits count
        return (mixed.astype(np.uint64) * np.uint64(len(self._tables[0])) >> np.uint64(32)).astype(np.int64)

    def _double(self) -> None:
        slots, self._tables = 2 * len(self._tables[0]), []
        self._tables = [_Table(slots, np.uint32) for _ in range(self.BANDS)]
        for first in range(0, self._count, AT_ONCE):
            read = os.pread(self._sketches.fileno(), AT_ONCE * self.BYTES, first * self.BYTES)
            starts = self._starts(np.frombuffer(read, np.uint8).reshape(-1, self.BYTES))
            numbers = np.arange(first + 1, first + 1 + len(starts), dtype=np.uint32)
            for band, table in enumerate(self._tables):
                table.place(starts[:, band], numbers)
