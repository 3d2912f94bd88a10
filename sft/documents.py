"""Tokenized documents: a few bytes of each in memory, their tokens wherever they are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanoalign.data_recipes.tokenize import Example

Tokens = tuple[NDArray[np.int32], NDArray[np.bool_]]
"""Token ids, and whether the model learns to write each; never a document's first, which nothing in it predicts."""


@dataclass(frozen=True)
class Documents:
    """N documents: each an example, or a part of one."""

    read: Callable[[int], Tokens]
    """An example's tokens, by its number."""
    examples: NDArray[np.int32]
    """(N,) the example of each document."""
    starts: NDArray[np.int32]
    """(N,) where it begins in the example."""
    lengths: NDArray[np.int64]
    """(N,) tokens of each document."""
    trained_tokens: NDArray[np.int32]
    """(N,) trained tokens of each document."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, document: int) -> Tokens:
        start = int(self.starts[document])
        stop = start + int(self.lengths[document])
        ids, trained = self.read(int(self.examples[document]))
        return ids[start:stop], trained[start:stop]


def gather(examples: Iterable[Example]) -> Documents:
    """One document per example, all in memory."""
    held: list[Tokens] = []
    for example in examples:
        trained = np.asarray(example.loss_mask, dtype=bool)
        trained[:1] = False
        held.append((np.asarray(example.input_ids, dtype=np.int32), trained))
    numbers = np.arange(len(held), dtype=np.int32)
    lengths = np.array([len(ids) for ids, _ in held], np.int64)
    trained_tokens = np.array([trained.sum() for _, trained in held], np.int32)
    return Documents(held.__getitem__, numbers, np.zeros_like(numbers), lengths, trained_tokens)
