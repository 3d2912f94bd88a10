"""From documents to a batch of the model's inputs. B rows, T tokens of the longest row."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from nanoalign.data_recipes.tokenize import Example
from nanoalign.models.labels import IGNORED, next_labels
from nanoalign.models.packing import Packs

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
    every_token: bool = False
    """All tokens are trained, whatever the examples say, but each document's first."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, document: int) -> Tokens:
        start = int(self.starts[document])
        stop = start + int(self.lengths[document])
        ids, trained = self.read(int(self.examples[document]))
        if self.every_token:
            return ids[start:stop], np.arange(stop - start) > 0
        return ids[start:stop], trained[start:stop]

    def in_full(self) -> "Documents":
        """The same documents, with every token trained that something in its document predicts."""
        return replace(self, every_token=True, trained_tokens=(self.lengths - 1).astype(np.int32))


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


@dataclass(frozen=True)
class Collator:
    """A Trainer's collator over a data set of ``{"row": i}``; ``rows[i]`` holds the documents of row i."""

    documents: Documents
    rows: Packs
    isolate: bool
    """Documents of a row cannot see each other. False concatenates plainly, and pads under an attention mask."""
    pad_id: int
    rank: int = 0
    """This process's place among those that share each row."""
    ranks: int = 1
    """Processes that share each row, one shard each."""

    def __call__(self, batch: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
        rows = [self.rows[item["row"]] for item in batch]
        whole = collate(self.documents, rows, self.isolate, self.pad_id, self.ranks)
        return whole if self.ranks == 1 else sequence_shard(whole, self.rank, self.ranks)


def collate(
    documents: Documents, rows: Sequence[Sequence[int] | np.ndarray], isolate: bool, pad_id: int, multiple: int = 1
) -> dict[str, torch.Tensor]:
    """Batches rows of documents; all tensors are (B, T), with T filled up to a multiple.

    Returns:
        ``input_ids``; ``labels``, -100 where nothing is trained: off the loss mask, in padding, and on each document's
        first token, so that no loss crosses documents. With ``isolate``: ``position_ids``, from 0 in each document, and
        ``seq_idx``, the document's number in its row; padding at a row's end is one more document. Else
        ``attention_mask``, 0 on padding at a row's end.
    """
    tokens = [[documents[int(document)] for document in row] for row in rows]
    width = max(sum(len(ids) for ids, _ in row) for row in tokens)
    width += -width % multiple
    shape = (len(rows), width)
    ids_BT = np.full(shape, pad_id, dtype=np.int64)
    labels_BT = np.full(shape, IGNORED, dtype=np.int64)
    positions_BT = np.zeros(shape, dtype=np.int64)
    document_BT = np.zeros(shape, dtype=np.int32)
    real_BT = np.zeros(shape, dtype=np.int64)
    for i, row in enumerate(tokens):
        at = 0
        for number, (ids, trained) in enumerate(row):
            here = slice(at, at + len(ids))
            ids_BT[i, here] = ids
            labels_BT[i, here] = np.where(trained, ids, IGNORED)
            positions_BT[i, here] = np.arange(here.stop - at)
            document_BT[i, here] = number
            at = here.stop
        positions_BT[i, at:] = np.arange(width - at)
        document_BT[i, at:] = len(row)
        real_BT[i, :at] = 1
    batch: dict[str, np.ndarray] = {"input_ids": ids_BT, "labels": labels_BT}
    if isolate:
        batch |= {"position_ids": positions_BT, "seq_idx": document_BT}
    else:
        batch |= {"attention_mask": real_BT}
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def sequence_shard(batch: Mapping[str, torch.Tensor], rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """One rank's part of a batch whose T is a multiple of ``ranks``, for :mod:`models.sequence_parallel`.

    Returns (B, T / ranks) ``input_ids``, ``position_ids``, ``shift_labels`` (each token's next, which may be in the
    next rank's part) and ``labels`` (the same; trainers look for the name), and the full (B, T) ``seq_idx``. A row that
    is concatenated plainly is one document, its padding another.
    """
    ids_BT = batch["input_ids"]
    shift_BT = next_labels(batch["labels"])
    if "seq_idx" in batch:
        positions_BT, document_BT = batch["position_ids"], batch["seq_idx"]
    else:
        positions_BT, document_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT), 1 - batch["attention_mask"]
    ids_BL, positions_BL, shift_BL = (whole.chunk(ranks, 1)[rank] for whole in (ids_BT, positions_BT, shift_BT))
    return {
        "input_ids": ids_BL,
        "labels": shift_BL,
        "shift_labels": shift_BL,
        "position_ids": positions_BL,
        "seq_idx": document_BT,
    }
