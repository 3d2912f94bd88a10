"""Tokenized documents end to end in flat arrays: a few bytes a token, and a document is a view."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_recipes.tokenize import Example


@dataclass(frozen=True)
class Documents:
    """N documents. Document i is ``ids[offsets[i]:offsets[i + 1]]``."""

    ids: NDArray[np.int32]
    """Token ids, document after document."""
    trained: NDArray[np.bool_]
    """Whether the model is to learn to write the token; never a document's first, which nothing in it predicts."""
    offsets: NDArray[np.int64]
    """Where documents begin; (N + 1,)."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document."""
        return np.diff(self.offsets)

    @property
    def trained_tokens(self) -> NDArray[np.int64]:
        """Trained tokens of each document."""
        before = np.concatenate([[0], np.cumsum(self.trained, dtype=np.int64)])
        return before[self.offsets[1:]] - before[self.offsets[:-1]]

    def span(self, document: int) -> slice:
        """Where the document lies in ``ids`` and ``trained``."""
        return slice(int(self.offsets[document]), int(self.offsets[document + 1]))


def gather(examples: Iterable[Example]) -> Documents:
    """One document an example."""
    lengths: list[int] = []
    ids: list[NDArray[np.int32]] = []
    trained: list[NDArray[np.bool_]] = []
    for example in examples:
        lengths.append(len(example.input_ids))
        ids.append(np.asarray(example.input_ids, dtype=np.int32))
        trained.append(np.asarray(example.loss_mask, dtype=bool))
        trained[-1][:1] = False
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return Documents(
        np.concatenate([np.empty(0, np.int32), *ids]), np.concatenate([np.empty(0, bool), *trained]), offsets
    )
