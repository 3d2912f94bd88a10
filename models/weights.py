"""A live model's weights as a plain model has them, for an engine that answers with them: one by one, adapters merged
on the way, gathered bucket by bucket where ZeRO-3 has split them."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn

from nanoalign.models.adapters import base_of

BUCKET_BYTES = 2**30
"""Of weights that are gathered at once: beside its own part a GPU holds this much, and the copy that is sent."""
SEEN_ROWS = 1024
"""Of a tensor, where a share of all weights is wanted: enough of them, and quickly read."""


def whole_weights(
    model: nn.Module, bucket_bytes: int = BUCKET_BYTES, want: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and persistent buffer with its name in the plain model's state dict; tied ones once, under their
    first name.

    A LoRA adapter comes merged into its layer's weight (the product in fp32, the sum in the weight's dtype); the model
    is not changed. Where ZeRO-3 has split the parameters this is a collective: every process iterates it to its end.
    A bucket is gathered, copied and released before its first tensor is given, so that nothing a consumer does stands
    inside a collective.

    Args:
        want: False on processes that only help to gather; they are given nothing.
    """
    base = base_of(model)
    layers = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    weights = [
        (name.replace(".base_layer.", "."), parameter,
         layers.get(name.removesuffix(".base_layer.weight")) if name.endswith(".base_layer.weight") else None)
        for name, parameter in base.named_parameters() if ".lora_" not in name
    ]  # fmt: skip
    for bucket in buckets(weights, bucket_bytes):
        yield from _gathered(bucket, want)
    if want:
        persistent = base.state_dict(keep_vars=True)
        yield from ((name, buffer) for name, buffer in base.named_buffers() if name in persistent)


Item = TypeVar("Item", bound=tuple[Any, ...])


def buckets(tensors: Iterable[Item], limit: int = BUCKET_BYTES) -> Iterator[list[Item]]:
    """Neighbouring tuples of a name, a tensor and whatever else, each bucket closed by the tensor with which it exceeds
    ``limit`` bytes (as a whole, where ZeRO-3 has split it); only one bucket is held."""
    bucket: list[Item] = []
    size = 0
    for item in tensors:
        bucket.append(item)
        size += getattr(item[1], "ds_numel", item[1].numel()) * item[1].element_size()
        if size > limit:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


class WholeWeights:
    """:func:`whole_weights` of a model that is on this process alone, as often as they are asked for."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return whole_weights(self.model)


def is_split(model: nn.Module) -> bool:
    """Whether ZeRO-3 has split its parameters over the processes."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def stored_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model folder, one at a time, under the names that they are stored by."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                yield name, tensors.get_tensor(name)


def changed_share(before: Path, after: Path, dtype: torch.dtype) -> float:
    """The share of a model's weights that differ between two of its folders once both are rounded to ``dtype``: what an
    engine in this dtype can see of a training. Of each tensor the first ``SEEN_ROWS`` rows.
    """
    held = {name: file for file in before.glob("*.safetensors") for name in _names(file)}
    changed = seen = 0
    for file in sorted(after.glob("*.safetensors")):
        for name in _names(file):
            if name in held:
                old, new = (_first_rows(each, name).to(dtype) for each in (held[name], file))
                changed, seen = changed + int((old != new).sum()), seen + new.numel()
    return changed / max(1, seen)


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _first_rows(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        stored = tensors.get_slice(name)
        return stored[:SEEN_ROWS] if stored.get_shape() else tensors.get_tensor(name)


def _gathered(bucket: Sequence[tuple[str, nn.Parameter, LoraLayer | None]], want: bool) -> list[tuple[str, Tensor]]:
    split = [parameter for _, parameter, _ in bucket if hasattr(parameter, "ds_id")]
    split += [factor for _, _, layer in bucket if layer is not None for factor in _factors(layer)
              if hasattr(factor, "ds_id")]  # fmt: skip
    if not split:
        return [(name, _merged(parameter, layer)) for name, parameter, layer in bucket] if want else []
    import deepspeed

    with deepspeed.zero.GatheredParameters(split), torch.no_grad():
        if not want:
            return []
        return [
            (name, parameter.detach().clone() if layer is None else _merged(parameter, layer))
            for name, parameter, layer in bucket
        ]


def _factors(layer: LoraLayer) -> list[Any]:
    return [part[name].weight for name in layer.active_adapters for part in (layer.lora_A, layer.lora_B)]


@torch.no_grad()
def _merged(parameter: nn.Parameter, layer: LoraLayer | None) -> Tensor:
    """The weight itself, or with its layer's adapters added."""
    if layer is None:
        return parameter.detach()
    added = sum(
        layer.scaling[name] * (layer.lora_B[name].weight.float() @ layer.lora_A[name].weight.float())
        for name in layer.active_adapters
    )
    return (parameter.float() + added).to(parameter.dtype)
