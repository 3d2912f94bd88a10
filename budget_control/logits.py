"""The rule applied to logits before sampling. Shapes: B rows, V vocabulary, R guarded rows, K stop tokens a row."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def force_tokens_(logits_BV: "torch.Tensor", rows: "torch.Tensor", tokens: "torch.Tensor") -> None:
    """In place: leaves ``rows`` nothing but ``tokens`` (one a row) to draw."""
    logits_BV[rows] = float("-inf")
    logits_BV[rows, tokens] = 0.0


def hand_over_stop_(
    logits_BV: "torch.Tensor", rows_R: "torch.Tensor", stop_ids_RK: "torch.Tensor", due_R: "torch.Tensor"
) -> None:
    """In place: where a stop token would end a completion inside budgeted thinking, the close takes over its logit.

    Greedy decoding then writes the close exactly where it would have stopped; sampling does so with the higher of the
    two probabilities rather than their sum.
    """
    stop_RK = logits_BV[rows_R[:, None], stop_ids_RK]
    logits_BV[rows_R[:, None], stop_ids_RK] = float("-inf")
    logits_BV[rows_R, due_R] = logits_BV[rows_R, due_R].maximum(stop_RK.amax(dim=1))
