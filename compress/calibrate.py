"""Rows of isolated documents on which importance and losses are measured, and what is measured on them alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from nanoalign.common.errors import DataError
from nanoalign.compress.config import Calibration

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from nanoalign.data_recipes.prepared import Prepared

Row = Mapping[str, "torch.Tensor"]
"""What :func:`sft.collate.collate` makes of one row, (1, T) each: documents end to end, without padding."""


@dataclass(frozen=True)
class Rows:
    """Calibration rows."""

    scoring: Sequence[Row]
    """For importance and depth."""
    held_out: Sequence[Row]
    """For the candidates' losses."""
    tokens: int
    """Of the scoring rows."""
    cut: int
    """Documents that were longer than a row."""


def calibration_rows(config: Calibration, name: str, data: "Prepared", pad_id: int, seed: int) -> Rows:
    """The documents of a mixture, packed best fit into rows, in an order drawn from ``seed``.

    Raises:
        DataError: the mixture ``name`` has no token that a model learns to write, or fills one row only.
    """
    import numpy as np

    from nanoalign.models.labels import IGNORED
    from nanoalign.models.packing import pack
    from nanoalign.sft.collate import Documents, collate

    trained = data.column("trained")
    if not len(data) or not int(trained.sum()):
        raise DataError(f"data.{name}: {len(data)} samples without a trained token: nothing to calibrate on")
    whole = data.column("length").astype(np.int64)
    lengths, numbers = np.minimum(whole, config.length), np.arange(len(data), dtype=np.int32)
    documents = Documents(data.tokens, numbers, np.zeros_like(numbers), lengths, trained)
    packs = list(pack(lengths, config.length))
    if len(packs) < 2:
        raise DataError(
            f"data.{name}: {int(lengths.sum()):,} tokens fill only one row of calibration.length {config.length:,}; "
            "two are needed at least: one to score on, one to measure losses on"
        )
    Random(f"{seed}/calibration").shuffle(packs)
    held_out = min(config.held_out_rows, len(packs) // 2)
    rows = [collate(documents, [row], True, pad_id) for row in packs[: held_out + config.rows]]
    if not any(bool((row["labels"] != IGNORED).any()) for row in rows[:held_out]):
        raise DataError(f"data.{name}: no trained token in the {held_out} rows that calibration holds out")
    tokens = sum(row["input_ids"].numel() for row in rows[held_out:])
    return Rows(rows[held_out:], rows[:held_out], tokens, int((whole > config.length).sum()))


def inputs(row: Row, device: "torch.device | str") -> dict[str, "torch.Tensor"]:
    """A model's inputs, without labels."""
    return {name: tensor.to(device) for name, tensor in row.items() if name != "labels"}


def mean_loss(model: "PreTrainedModel", rows: Sequence[Row]) -> float:
    """Nats per trained token over the rows, in the model's dtype; no more logits than a tile's exist at a time."""
    import torch

    from nanoalign.models.labels import IGNORED, next_labels
    from nanoalign.models.loss import linear_cross_entropy

    device = model.device
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            hidden_BTD = model.base_model(**inputs(row, device), use_cache=False).last_hidden_state
            labels = next_labels(row["labels"]).flatten().to(device)
            head = model.get_output_embeddings().weight
            total += linear_cross_entropy(hidden_BTD.flatten(0, 1), head, labels).item()
            count += int((labels != IGNORED).sum())
    return total / count
