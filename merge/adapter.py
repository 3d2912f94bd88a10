"""A LoRA adapter on its base, as a source of merged weights that are never materialised (Hu et al., arXiv 2106.09685).

A chunk of W + scale * B A is computed on demand, from the mapped base and the adapter's two thin matrices. An
interpolation of two adapters on one base thus reads the base's pages and writes the merge, and holds nothing else.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoalign.common.errors import CheckpointError
from nanoalign.merge.checkpoint import (
    ITEM_BYTES,
    WEIGHTS,
    Checkpoint,
    TensorInfo,
    TensorSource,
    open_checkpoint,
    read_header,
    read_json_object,
)
from nanoalign.models.model_folder import extra_files

if TYPE_CHECKING:
    import torch

CONFIG, ADAPTER_WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
KNOWN = (
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "exclude_modules",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "task_type", "use_rslora",
)  # fmt: skip
"""peft's settings (0.21) under which the merged weight is W + scale * B A: those that describe what was trained and
how, not what is computed. Configs of initialisations count by ``init_lora_weights`` alone."""
NO_PATTERN: tuple[str, Any] = ("alpha_pattern", {})
BASE_KEPT = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base as it was. The others (pissa, olora, corda, loftq, lora_ga) put W - scale * B0
A0, or a quantized W, in its place: peft repeats this from W when it loads the adapter, and an SVD of W on another
machine differs."""


@dataclass(frozen=True)
class AdaptedCheckpoint:
    """A base with an adapter on it; ``updates`` are LoRA's pairs and ``replaced`` full tensors (modules_to_save), by
    the base's tensor names."""

    folder: Path
    base: Checkpoint
    adapter: Checkpoint
    updates: dict[str, tuple[str, str]]
    replaced: dict[str, str]
    scales: dict[str, float]

    @property
    def inputs(self) -> tuple[Path, ...]:
        return self.folder, self.base.folder

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return self.base.tensors

    @cached_property
    def extras(self) -> dict[str, Path]:
        """The base's files, and the adapter's where it has its own (a tokenizer, a chat template)."""
        own = {name: path for name, path in extra_files(self.folder).items() if name != CONFIG}
        return self.base.extras | own

    def flat(self, name: str, start: int, stop: int) -> "torch.Tensor":
        """Values in fp32 for 16-bit tensors with an update, in fp64 for fp32 ones: rounded only by the merge."""
        import torch

        if name in self.replaced:
            return self.adapter.flat(self.replaced[name], start, stop)
        weight = self.base.flat(name, start, stop)
        if name not in self.updates or start == stop:
            return weight
        wide = torch.float32 if ITEM_BYTES[self.tensors[name].dtype] == 2 else torch.float64
        down_name, up_name = self.updates[name]
        (rank, columns), rows = self.adapter.tensors[down_name].shape, self.tensors[name].shape[0]
        first, last = start // columns, math.ceil(stop / columns)
        down_RC = self.adapter.flat(down_name, 0, rank * columns).view(rank, columns).to(wide)
        up_OR = self.adapter.flat(up_name, 0, rows * rank).view(rows, rank)[first:last].to(wide)
        update = (up_OR @ down_RC).mul_(self.scales[name]).view(-1)
        return update[start - first * columns : stop - first * columns].add_(weight)

    def fingerprint(self) -> str:
        parts = f"{self.base.fingerprint()} {self.adapter.fingerprint()} {sorted(self.scales.items())}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


def open_source(folder: Path, base: Path | None = None) -> TensorSource:
    """A checkpoint folder, or a peft adapter folder on ``base`` (default: the folder that the adapter names).

    Raises:
        CheckpointError: as :func:`merge.checkpoint.open_checkpoint`; or the adapter is not plain LoRA, its base is not
            available, or an update fits no tensor of the base.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).exists() or not (folder / CONFIG).exists():
        return open_checkpoint(folder)
    config = read_json_object(folder / CONFIG)
    named = base or Path(str(config.get("base_model_name_or_path") or "."))
    if not named.is_dir():
        raise CheckpointError(f"{folder / CONFIG}: base model {str(named)!r} is not a folder here; give its path")
    return _adapted(folder.resolve(), config, open_checkpoint(named))


def _adapted(folder: Path, config: dict[str, Any], base: Checkpoint) -> AdaptedCheckpoint:
    where = folder / CONFIG
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{where}: peft_type {config.get('peft_type')!r}, only LORA can be merged here")
    _check_settings(where, config)
    file = folder / ADAPTER_WEIGHTS
    adapter = Checkpoint(folder, {info.name: info for info in read_header(file)}, {})
    updates, replaced, scales = {}, {}, {}
    for stored, info in adapter.tensors.items():
        module = stored.removeprefix(PREFIX)
        if module.endswith(".lora_B.weight"):
            continue  # taken with its lora_A
        if module.endswith(".lora_A.weight"):
            up = stored.replace(".lora_A.weight", ".lora_B.weight")
            name = _base_name(file, base, module.replace(".lora_A.weight", ".weight"))
            _check_shapes(file, base.tensors[name], info, adapter.tensors.get(up))
            updates[name] = (stored, up)
            rank = info.shape[0]
            scales[name] = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        elif ".lora_" in module:
            raise CheckpointError(f"{file}: {stored}: only LoRA on linear modules can be merged here")
        else:
            name = _base_name(file, base, module)
            expected = base.tensors[name]
            if (info.shape, info.dtype) != (expected.shape, expected.dtype):
                due = f"{expected.dtype} {list(expected.shape)}"
                raise CheckpointError(f"{file}: {stored}: {info.dtype} {list(info.shape)}, the base has {due}")
            _check_tie(file, base, name)
            replaced[name] = stored
    orphans = {stored for stored in adapter.tensors if stored.endswith(".lora_B.weight")} - {
        up for _, up in updates.values()
    }
    if orphans:
        raise CheckpointError(f"{file}: {min(orphans)} has no lora_A beside it")
    return AdaptedCheckpoint(folder, base, adapter, updates, replaced, scales)


def _check_settings(where: Path, config: dict[str, Any]) -> None:
    # peft makes a full configuration of {}, so for most options that is not the default
    off = {key for key, value in config.items() if value is None or value is False or (key, value) == NO_PATTERN}
    used = sorted(config.keys() - {*KNOWN} - off)
    if used:
        raise CheckpointError(
            f"{where}: {', '.join(used)} is set; only what is known to be scale * B A can be merged: {', '.join(KNOWN)}"
        )
    made = config.get("init_lora_weights", True)
    if made not in BASE_KEPT:
        raise CheckpointError(
            f"{where}: init_lora_weights {made!r} changed the base under the adapter; give an adapter that was saved "
            "with peft's path_initial_model_for_weight_conversion, or merge it with peft"
        )


def _base_name(file: Path, base: Checkpoint, name: str) -> str:
    """The base's name for an adapter's tensor: equal, or equal but for the first part (``model.``, ``backbone.``)."""
    if name in base.tensors:
        return name
    tail = name.partition(".")[2]
    found = [stored for stored in base.tensors if stored.partition(".")[2] == tail]
    if len(found) != 1:
        raise CheckpointError(f"{file}: {name}: the base {base.folder} has no such tensor")
    return found[0]


def _check_tie(file: Path, base: Checkpoint, name: str) -> None:
    """peft trains a copy of an embedding, and leaves the output head that is tied to it as it was: what it merges is a
    model with two matrices, for which the base has one place."""
    tied = not any(stored.endswith("lm_head.weight") for stored in base.tensors)
    if tied and ("embed" in name or "wte" in name):
        raise CheckpointError(f"{file}: {name} was trained, but is the base's output head too; merge it with peft")


def _check_shapes(file: Path, weight: TensorInfo, down: TensorInfo, up: TensorInfo | None) -> None:
    if up is None:
        raise CheckpointError(f"{file}: {down.name} has no lora_B beside it")
    fits = len(weight.shape) == len(down.shape) == len(up.shape) == 2 and down.shape[0] == up.shape[1]
    if not fits or (up.shape[0], down.shape[1]) != weight.shape:
        update = f"{list(up.shape)} x {list(down.shape)}"
        raise CheckpointError(f"{file}: {down.name}: {update} does not fit {weight.name} {list(weight.shape)}")
