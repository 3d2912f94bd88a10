"""An SFT stage for NeMo-RL: rows of token ids that are already rendered, tokenized and masked here."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from nanoalign.data_recipes.tokenize import Example
from nanoalign.models.config import Training
from nanoalign.nemo_rl.settings import Export, Target, common_notes, merged, training


@dataclass(frozen=True)
class Packing:
    """Packs of documents that do not see each other."""

    tokens: int
    packs: int


def export_sft(
    target: Target, train: Training, examples: Iterable[Example], rows: int, longest: int, packing: Packing | None
) -> Export:
    """One row per example. ``packing`` says how the stage packs them in isolation: where the model has attention only,
    NeMo-RL packs them again, with as many documents in a batch as the stage has on average."""
    batch = train.batch_size
    notes = common_notes(target, train)
    if packing is not None:
        per_device = max(1, round(batch * rows / packing.packs / target.devices))
        batch, train = per_device * target.devices, train.model_copy(update={"micro_batch_size": 1})
        notes.append(
            ("train.batch_size", f"counts packs here, documents there: {batch}, as many as in the packs' mean")
        )
    config = merged(
        training(target, "sft", train, rows, batch, batch, longest + 1),
        {"data": {"default": {"processor": "nanoalign_sft"}}},
    )
    if packing is not None and not target.hybrid:
        packed = {"enabled": True, "train_mb_tokens": packing.tokens}
        config = merged(config, {"policy": {"sequence_packing": packed}})
        notes.append(("pack", f"`policy.sequence_packing` into {packing.tokens} tokens; documents stay isolated"))
    elif packing is not None:
        notes.append(("pack", "off: NeMo-RL cannot isolate documents in Mamba blocks; batches are padded instead"))
    notes.append(("chat, strip_reasoning, truncate_reasoning, over_long", "applied here: `data.jsonl` holds token ids"))
    return Export("sft", config, (sft_row(example) for example in examples), notes)


def sft_row(example: Example) -> dict[str, Any]:
    """Token ids, and the runs of trained and untrained ones: ``lengths`` of the runs, ``trained`` 1 or 0 of each."""
    runs = [(trained, sum(1 for _ in run)) for trained, run in groupby(example.loss_mask)]
    return {
        "input_ids": list(example.input_ids),
        "lengths": [length for _, length in runs],
        "trained": [trained for trained, _ in runs],
    }
