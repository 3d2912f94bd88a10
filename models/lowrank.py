"""A linear layer's product as its last and only large operation, with or without a LoRA adapter on it.

A checkpointed piece that ends in this product is recomputed up to it and no further: torch stops a recomputation once
everything that the backward pass reads is there again, and a product saves its inputs before it runs. peft's own
forward ends in additions, behind the product, and makes two more passes over the output.
"""

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


def project(layer: nn.Module, x: Tensor, plus: Tensor | None = None) -> Tensor:
    """``layer(x) + plus`` for (..., D); ``plus`` is a residual stream of the output's shape."""
    if isinstance(layer, LoraLinear) and _plain(layer):
        shape, x, weight = x.shape[:-1], x.flatten(0, -2), layer.base_layer.weight
        plus = None if plus is None else plus.flatten(0, -2)
        for name in layer.active_adapters:
            down, up = (part[name].weight.to(x.dtype) for part in (layer.lora_A, layer.lora_B))
            plus = _linear(F.linear(layer.lora_dropout[name](x), down) * layer.scaling[name], up, plus)
        if plus is not None and layer.active_adapters and _alike(x, weight, plus):
            return plus.addmm_(x, weight.T).unflatten(0, shape)  # ours alone, and no view: added to in place
        return _linear(x, weight, plus).unflatten(0, shape)
    if type(layer) is nn.Linear and layer.bias is None and not _hooked(layer):
        return _linear(x, layer.weight, plus)
    return layer(x) if plus is None else plus + layer(x)


def _plain(layer: LoraLinear) -> bool:
    """Whether the adapters do nothing but add their product to a bare weight's."""
    parts = [layer, layer.base_layer, *layer.lora_A.values(), *layer.lora_B.values()]
    usual = not (layer.merged or layer.disable_adapters or getattr(layer, "lora_variant", None))
    return usual and layer.base_layer.bias is None and not any(map(_hooked, parts))


def _hooked(layer: nn.Module) -> bool:
    """Whether something (ZeRO-3, say) waits for the module to be called."""
    return bool(layer._forward_pre_hooks or layer._forward_hooks)


def _linear(x: Tensor, weight: Tensor, plus: Tensor | None) -> Tensor:
    if plus is None:
        return F.linear(x, weight)
    if not _alike(x, weight, plus):
        return plus + F.linear(x, weight)
    return torch.addmm(plus.flatten(0, -2), x.flatten(0, -2), weight.T).view(plus.shape)


def _alike(x: Tensor, weight: Tensor, plus: Tensor) -> bool:
    """Whether one kernel can multiply and add, in one dtype."""
    return plus.dtype == x.dtype == weight.dtype and not torch.is_autocast_enabled(x.device.type)
