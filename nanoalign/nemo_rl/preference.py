"""One round of a DPO stage for NeMo-RL: the pairs that the round found here, as token ids."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.nemo_rl.settings import Export, Target, common_notes, merged, training
from nanoalign.rl.config import DPOStage


def export_dpo(target: Target, stage: DPOStage, pairs: Path) -> Export:
    """A row per pair of ``pairs``, a round's ``pairs.jsonl``.

    Raises:
        ConfigError: there are no pairs: NeMo-RL v0.6 samples none. DataError: none that it could train on as we do.
    """
    if not pairs.is_file():
        raise target.refuse(
            "rounds", f"NeMo-RL v0.6 has no on-policy DPO, it trains on given pairs; {pairs} is not there: run the "
            "stage up to a round's pairs first, or give another run with --root",
        )  # fmt: skip
    found = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    rows = [pair_row(pair) for pair in found if not _forced(pair)]
    if not rows:
        raise DataError(f"{pairs}: no pair without forced tokens")
    longest = max(len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows)
    config = merged(
        training(target, "dpo", stage.train, len(rows), stage.train.batch_size, stage.train.batch_size, longest),
        {
            "dpo": {
                "reference_policy_kl_penalty": stage.beta,
                "preference_loss_weight": 1.0,
                "sft_loss_weight": 0.0,
                "preference_average_log_probs": False,
                "sft_average_log_probs": False,
            },
        },
    )
    notes = [
        *common_notes(target, stage.train),
        ("beta", "`dpo.reference_policy_kl_penalty`"),
        ("rounds, tasks_per_round, samples_per_task, pairing, rollouts, thinking, environment", f"on-policy sampling "
         f"stays here: these are the {len(rows)} pairs of {pairs.parent.name}, for one round's training"),
        ("held_out_tasks, stop_when_flat", "not measured there: play the checkpoint here"),
    ]  # fmt: skip
    if left_out := len(found) - len(rows):
        notes.append(
            ("thinking.budgets", f"{left_out} pairs with forced tokens are left out: NeMo-RL would train on them")
        )
    return Export("dpo", config, rows, notes)


def pair_row(pair: Mapping[str, Any]) -> dict[str, list[int]]:
    return {
        "prompt_ids": pair["prompt_ids"],
        "chosen_ids": pair["chosen"]["token_ids"],
        "rejected_ids": pair["rejected"]["token_ids"],
    }


def _forced(pair: Mapping[str, Any]) -> bool:
    return any(any(pair[side]["forced"]) for side in ("chosen", "rejected"))
