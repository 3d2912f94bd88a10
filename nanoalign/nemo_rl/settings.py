"""What every training stage's settings are called in NeMo-RL."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.models.config import LoRA, Training
from nanoalign.models.schedules import optimizer_steps

SCHEDULERS = "torch.optim.lr_scheduler."
PLUGIN = "nanoalign_nemo_rl"
"""The module that an export brings along, a copy of ``plugin.py``."""


@dataclass(frozen=True)
class Target:
    """What is exported, and for which machines."""

    stage: str
    """The stage's name in the recipe."""
    model: str
    """The folder or hub id of the model that training starts from, with its tokenizer."""
    hybrid: bool
    """Whether it has Mamba blocks."""
    nodes: int
    gpus_per_node: int
    seed: int
    folder: Path
    """Absolute: where the export is."""

    @property
    def devices(self) -> int:
        return self.nodes * self.gpus_per_node

    def refuse(self, key: str, reason: str) -> ConfigError:
        """The error for a setting without a counterpart in NeMo-RL."""
        return ConfigError(f"stages.{self.stage}.{key}: {reason}")


@dataclass(frozen=True)
class Export:
    """A stage as NeMo-RL takes it."""

    algorithm: str
    config: dict[str, Any]
    """What differs from the example config of the algorithm."""
    rows: Iterable[dict[str, Any]]
    """The data, for ``plugin.py``; read once."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """(recipe key, what became of it), for the README."""


def training(
    target: Target, algorithm: str, train: Training, rows: int, row_batch: int, sequences: int, longest: int
) -> dict[str, Any]:
    """The sections ``policy``, ``data``, ``checkpointing``, ``logger``, ``cluster`` and the algorithm's own, as far as
    all three algorithms share them.

    Args:
        rows: rows of data; ``row_batch`` of them, or ``sequences`` to train on, make an optimizer step.
        longest: tokens in the longest sequence.

    Raises:
        ConfigError: the batch does not divide over the devices. DataError: there is not one batch of rows.
    """
    if rows < row_batch:
        raise DataError(f"stages.{target.stage}: {rows} rows do not fill a batch of {row_batch}; NeMo-RL needs one")
    micro = train.micro_batch_size or max(1, sequences // target.devices)
    if sequences % (micro * target.devices):
        raise target.refuse(
            "train.batch_size", f"{sequences} is not a multiple of {micro} (micro batch) x {target.devices} (GPUs)"
        )
    steps = optimizer_steps(train.model_copy(update={"batch_size": row_batch}), rows)
    return {
        algorithm: {
            "max_num_steps": steps,
            "max_num_epochs": math.ceil(steps / (rows // row_batch)),
            "val_period": 0,
            "val_at_start": False,
            "val_at_end": False,
            "seed": target.seed,
        },
        "policy": {
            "model_name": target.model,
            "tokenizer": {"name": target.model, "chat_template": "default"},
            "train_global_batch_size": sequences,
            "train_micro_batch_size": micro,
            "max_total_sequence_length": longest,
            "precision": train.dtype,
            "max_grad_norm": train.max_grad_norm,
            "dtensor_cfg": {
                "_v2": True,
                "enabled": True,
                "context_parallel_size": 1,
                "activation_checkpointing": train.gradient_checkpointing,
                **({"automodel_kwargs": {"force_hf": True}} if target.hybrid else {}),
                **({"lora_cfg": lora(train.lora)} if train.lora else {}),
            },
            "sequence_packing": {"enabled": False},
            "dynamic_batching": {"enabled": False},
            "optimizer": {
                "name": "torch.optim.AdamW",
                "kwargs": {
                    "lr": train.learning_rate,
                    "weight_decay": train.weight_decay,
                    "betas": list(train.betas),
                    "eps": 1e-8,
                },
            },
            "scheduler": schedule(train, steps),
        },
        "data": {
            "train": {"dataset_name": f"{PLUGIN}.Rows", "data_path": str(target.folder / "data.jsonl")},
            "validation": None,
        },
        "checkpointing": {
            "checkpoint_dir": str(target.folder / "checkpoints"),
            "metric_name": None,
            "save_period": train.checkpoint_every,
            "keep_top_k": 2,
            "model_save_format": "safetensors",
            "save_consolidated": True,
        },
        "logger": {"log_dir": str(target.folder / "logs"), "tensorboard_enabled": True},
        "cluster": {"gpus_per_node": target.gpus_per_node, "num_nodes": target.nodes},
    }


def schedule(train: Training, steps: int) -> list[dict[str, Any]]:
    """:func:`models.schedules.schedule_factor` as a sequence of PyTorch's schedulers."""
    warmup = round(train.warmup_ratio * steps)
    floor, parts = train.min_lr_ratio, []
    if warmup:
        parts.append((warmup, _part("LinearLR", start_factor=1 / (warmup + 1), end_factor=1.0, total_iters=warmup)))
    if train.schedule == "cosine":
        rest = max(1, steps - 1 - warmup)
        parts.append((rest, _part("CosineAnnealingLR", T_max=rest, eta_min=floor * train.learning_rate)))
    elif train.schedule == "wsd":
        decay = min(math.ceil(train.decay_ratio * steps), steps - warmup)
        stable = steps - decay - warmup
        if stable:
            parts.append((stable, _part("ConstantLR", factor=1.0, total_iters=1)))
        first, last = 1 - (1 - floor) / decay, max(1, decay - 1)
        parts.append((last, _part("LinearLR", start_factor=first, end_factor=floor, total_iters=last)))
    else:
        parts.append((0, _part("ConstantLR", factor=1.0, total_iters=1)))
    ends = [sum(length for length, _ in parts[: number + 1]) for number in range(len(parts) - 1)]
    return [part for _, part in parts] + [{"milestones": ends}]


def _part(name: str, **settings: float) -> dict[str, Any]:
    return {"name": SCHEDULERS + name, "kwargs": settings}


def lora(adapters: LoRA) -> dict[str, Any]:
    """Adapters on the named modules only."""
    return {
        "enabled": True,
        "match_all_linear": False,
        "target_modules": list(adapters.targets),
        "exclude_modules": [],
        "dim": adapters.rank,
        "alpha": adapters.alpha,
        "dropout": adapters.dropout,
    }


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``more`` laid over ``base``, section by section."""
    both = dict(base)
    for key, value in more.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both


def common_notes(target: Target, train: Training) -> list[tuple[str, str]]:
    """What the README says about the settings that all stages share."""
    notes = [
        ("train.learning_rate, betas, weight_decay", "`policy.optimizer.kwargs` (AdamW; eps 1e-8 as here)"),
        ("train.schedule, warmup_ratio, decay_ratio, min_lr_ratio", "`policy.scheduler`, the same at every step"),
        ("train.epochs, steps", "`max_num_steps`, counted here; NeMo-RL shuffles by its own seed and drops the last, "
         "smaller batch of an epoch"),
        ("train.batch_size, micro_batch_size", "`policy.train_global_batch_size`, `train_micro_batch_size`"),
        ("train.checkpoint_every", "`checkpointing.save_period`; the newest two are kept, as here"),
        ("launch", f"`cluster`: {target.nodes} x {target.gpus_per_node} GPUs; `zero` has no equal: NeMo-RL always "
         "shards (FSDP2)"),
        ("held-out loss", "not measured there: `nanoalign` evaluates the checkpoint"),
    ]  # fmt: skip
    if train.lora:
        notes.append(("train.lora", "`policy.dtensor_cfg.lora_cfg`; NeMo-RL saves the adapter, not the merged model"))
    if target.hybrid:
        notes.append(
            ("model", "hybrid (Mamba): `force_hf`, no packing and no context parallelism, as in NeMo-RL's own recipes")
        )
    return notes
