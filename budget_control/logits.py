"""The rule applied to logits before sampling.

Shapes: B rows, V vocabulary, R rows under a budget, K stop tokens per row, N = K times the rows where a stop token's
logit passes to the close, F rows where a token is forced. Places are indices into the flat logits [B * V].
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch


class Edits(NamedTuple):
    """What is to be done to one step's logits, as int64 tensors on their device."""

    stops_N: "torch.Tensor"
    """Places of stop tokens that may not end the completion."""
    heirs_N: "torch.Tensor"
    """Places of the close tokens that take over their logits."""
    rows_F: "torch.Tensor"
    """Rows that have nothing to choose."""
    forced_F: "torch.Tensor"
    """Places of the tokens that they must write."""


def plan_edits(
    rows_R: np.ndarray, forced_R: np.ndarray, heirs_R: np.ndarray, stops_RK: np.ndarray, vocabulary: int
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """All places of :class:`Edits` in one array, so that one copy brings them to a device, and their numbers.

    ``forced_R`` and ``heirs_R`` hold a token, or -1: where none is forced, and where no stop token's logit passes to
    the close.
    """
    guarded, bound = np.flatnonzero(heirs_R >= 0), np.flatnonzero(forced_R >= 0)
    base = rows_R[guarded] * vocabulary
    stops = (base[:, None] + stops_RK[guarded]).ravel()
    heirs = np.repeat(base + heirs_R[guarded], stops_RK.shape[1])
    rows = rows_R[bound]
    return np.concatenate([stops, heirs, rows, rows * vocabulary + forced_R[bound]]), (
        len(stops), len(heirs), len(rows), len(rows),
    )  # fmt: skip


def edit_(logits_BV: "torch.Tensor", edits: Edits) -> None:
    """In place, on contiguous logits, without waiting for the device.

    Where a stop token would end a completion inside budgeted thinking, the close takes over its logit: greedy decoding
    then writes the close exactly where it would have stopped, sampling does so with the higher of the two probabilities
    rather than their sum. A forced token is left alone in its row.
    """
    flat = logits_BV.view(-1)
    if len(edits.stops_N):
        stops_N = flat.index_select(0, edits.stops_N)
        flat.index_fill_(0, edits.stops_N, float("-inf"))
        flat.scatter_reduce_(0, edits.heirs_N, stops_N, "amax")
    if len(edits.rows_F):
        logits_BV.index_fill_(0, edits.rows_F, float("-inf"))
        flat.index_fill_(0, edits.forced_F, 0.0)
