"""Models with one score a sequence: a language model's trunk under a linear head on its last token.

Shapes: B sequences, T tokens (padded on the right).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHPreTrainedModel

from nanoalign.common.errors import CheckpointError
from nanoalign.common.processes import BUILDING
from nanoalign.models.hybrid import install
from nanoalign.models.model_folder import read_config


class NemotronHForSequenceClassification(GenericForSequenceClassification, NemotronHPreTrainedModel):
    """The trunk with a linear head on its last token, which transformers has for other architectures only."""


OWN_CLASSES: dict[str, type[PreTrainedModel]] = {"nemotron_h": NemotronHForSequenceClassification}


def load_scorer(folder: Path, pad_token_id: int, device: str, fresh_head: bool) -> PreTrainedModel:
    """A model with one score a sequence. ``fresh_head``: ``folder`` holds a language model, whose trunk gets a head of
    zeros; else it holds a trained scorer.

    Raises:
        CheckpointError: tensors are missing or unexpected, beyond what a fresh head means.
    """
    cls = OWN_CLASSES.get(read_config(folder)["model_type"], AutoModelForSequenceClassification)
    with BUILDING:
        model, report = cls.from_pretrained(
            folder, num_labels=1, pad_token_id=pad_token_id, dtype=torch.float32, output_loading_info=True,
            local_files_only=True,
        )  # fmt: skip
    missing = set(report["missing_keys"]) - ({"score.weight"} if fresh_head else set())
    unexpected = {name for name in report["unexpected_keys"] if not (fresh_head and name.startswith("lm_head."))}
    if missing or unexpected:
        raise CheckpointError(
            f"{folder}: no {'trunk' if fresh_head else 'reward model'}: missing {sorted(missing)[:5]}, unexpected "
            f"{sorted(unexpected)[:5]}"
        )
    if fresh_head:
        nn.init.zeros_(model.score.weight)
    install(model)
    return model.to(device).eval()


@torch.no_grad()
def scores(model: PreTrainedModel, sequences: Sequence[Sequence[int]], batch_size: int) -> list[float]:
    """The score of every sequence, by batches of sequences of about the same length."""
    result = [0.0] * len(sequences)
    by_length = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    pad = model.config.get_text_config().pad_token_id
    for start in range(0, len(by_length), batch_size):
        chunk = by_length[start : start + batch_size]
        longest = len(sequences[chunk[-1]])
        ids_BT = torch.tensor([[*sequences[i], *[pad] * (longest - len(sequences[i]))] for i in chunk])
        mask_BT = torch.tensor([[1] * len(sequences[i]) + [0] * (longest - len(sequences[i])) for i in chunk])
        logits_B1 = model(
            input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), use_cache=False
        ).logits
        for index, value in zip(chunk, logits_B1[:, 0].tolist(), strict=True):
            result[index] = value
    return result
