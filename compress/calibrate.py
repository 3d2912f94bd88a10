"""Rows of isolated documents on which importance and losses are measured, and what is measured on them alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from nanoalign.common.errors import DataError
from nanoalign.compress.config import Calibration

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from nanoalign.data_recipes.chat.base import ChatFormat
    from nanoalign.data_recipes.config import Mixture

Row = Mapping[str, "torch.Tensor"]
"""What :func:`sft.collate.collate` makes of one row, (1, T) each: documents end to end, without padding."""


@dataclass(frozen=True)
class Rows:
    """Calibration rows."""

    scoring: Sequence[Row]
    """For importance and depth."""
    held_out: Sequence[Row]
    """For the candidates' losses."""
    documents: int
    tokens: int
    """Of all documents, as cut."""
    cut: int
    """Documents that were longer than a row."""


def calibration_rows(
    config: Calibration,
    name: str,
    mixture: "Mixture",
    chat: "ChatFormat",
    tokenizer: Any,
    data_root: Path | None,
    seed: int,
) -> Rows:
    """The mixture's documents, packed best fit into rows in an order drawn from ``seed``.

    Raises:
        DataError: bad rows; or the mixture ``name`` has no token that a model learns to write, or fills one row only.
    """
    from nanoalign.data_recipes.selection import build
    from nanoalign.data_recipes.tokenize import Example, encode_batch
    from nanoalign.models.packing import pack
    from nanoalign.sft.collate import collate, gather

    built = build(mixture, data_root, seed, chat=chat)
    examples = [each for some in encode_batch(built.conversations, chat, tokenizer) for each in some]
    whole = [len(example.input_ids) for example in examples]
    examples = [Example(e.input_ids[: config.length], e.loss_mask[: config.length]) for e in examples if e.input_ids]
    documents = gather(examples)
    if not int(documents.trained_tokens.sum()):
        raise DataError(f"data.{name}: {len(built.conversations)} samples without a trained token to calibrate on")
    packs = list(pack(documents.lengths, config.length))
    if len(packs) < 2:
        raise DataError(
            f"data.{name}: {int(documents.lengths.sum())} tokens fill one row of calibration.length {config.length}; "
            "at least two are needed, one to score on and one to measure losses on"
        )
    Random(f"{seed}/calibration").shuffle(packs)
    held_out = min(config.held_out_rows, len(packs) // 2)
    chosen = packs[: held_out + config.rows]
    rows = [collate(documents, [row], True, tokenizer.pad_token_id) for row in chosen]
    if not any(bool((row["labels"] != -100).any()) for row in rows[:held_out]):
        raise DataError(f"data.{name}: no trained token in the {held_out} rows that are held out of calibration")
    return Rows(rows[held_out:], rows[:held_out], len(examples), sum(len(example.input_ids) for example in examples),
                sum(length > config.length for length in whole))  # fmt: skip


def inputs(row: Row, device: "torch.device | str") -> dict[str, "torch.Tensor"]:
    """A model's inputs, without labels."""
    return {name: tensor.to(device) for name, tensor in row.items() if name != "labels"}


def mean_loss(model: "PreTrainedModel", rows: Sequence[Row]) -> float:
    """Nats per trained token over the rows, in the model's dtype; no more logits than a tile's exist at a time."""
    import torch
    import torch.nn.functional as F

    from nanoalign.models.loss import IGNORED, linear_cross_entropy

    device = model.device
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            hidden_BTD = model.base_model(**inputs(row, device), use_cache=False).last_hidden_state
            labels = F.pad(row["labels"][:, 1:], (0, 1), value=IGNORED).flatten().to(device)
            head = model.get_output_embeddings().weight
            total += linear_cross_entropy(hidden_BTD.flatten(0, 1), head, labels).item()
            count += int((labels != IGNORED).sum())
    return total / count
