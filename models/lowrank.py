"""A linear layer's product as its last and only large operation, with or without a LoRA adapter on it.

A checkpointed piece that ends in this product is recomputed up to it and no further: torch stops a recomputation once
everything that the backward pass reads is there again, and a product saves its inputs before it runs. peft's own
forward ends in additions, behind the product, and makes two more passes over the output.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nanoalign.models import fp8
from nanoalign.models.deferred import materialize, placeholder
from nanoalign.models.fp8 import Fp8Linear


def project(layer: nn.Module, x: Tensor, plus: Tensor | None = None) -> Tensor:
    """``layer(x) + plus`` for (..., D); ``plus`` is a residual stream of the output's shape."""
    if isinstance(layer, LoraLinear) and _plain(layer):
        shape, base, weight = x.shape[:-1], layer.base_layer, layer.base_layer.weight
        in_fp8 = isinstance(base, Fp8Linear) and base.computes_fp8(x)
        x = (x.to(torch.bfloat16) if in_fp8 else x).flatten(0, -2)
        plus = None if plus is None else plus.flatten(0, -2)
        names = [name for name in layer.active_adapters if name in layer.lora_A]  # others are on other layers
        adapters = [
            (layer.lora_A[name].weight.to(x.dtype), layer.lora_B[name].weight.to(x.dtype), layer.scaling[name])
            for name in names
        ]
        dropouts = [layer.lora_dropout[name] for name in names]
        alike = _alike(x, weight, x if plus is None else plus)
        if alike and len(adapters) == 1 and not (layer.training and isinstance(dropouts[0], nn.Dropout)):
            down, up, scaling = adapters[0]
            deferred, read = _LowRank.apply(x, weight, down, up, scaling, plus, in_fp8)

            def product() -> Tensor:
                if in_fp8:
                    y = fp8.product(x, weight)
                    return (y if plus is None else y.add_(plus)).addmm_(read, up.T)
                low = read @ up.T if plus is None else torch.addmm(plus, read, up.T)
                return low.addmm_(x, weight.T)

            return materialize(product, deferred).unflatten(0, shape)
        for (down, up, scaling), dropout in zip(adapters, dropouts):
            plus = _linear(F.linear(dropout(x), down) * scaling, up, plus)
        return (fp8.linear if in_fp8 else _linear)(x, weight, plus).unflatten(0, shape)
    if _bare(layer):
        if isinstance(layer, Fp8Linear) and layer.computes_fp8(x):
            return fp8.linear(x.to(torch.bfloat16), layer.weight, plus)
        return _linear(x, layer.weight, plus)
    return layer(x) if plus is None else plus + layer(x)


class _LowRank(torch.autograd.Function):
    """The product with a frozen weight and its adapter, as a placeholder (:mod:`models.deferred`), and what the adapter
    reads of ``x``.

    Shapes: R rows (tokens), D inputs, E outputs, K rank.
    """

    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, weight_ED: Tensor, down_KD: Tensor, up_EK: Tensor, scaling: float,
        plus_RE: Tensor | None, in_fp8: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        read_RK = x_RD @ down_KD.T * scaling
        ctx.scaling, ctx.added, ctx.in_fp8 = scaling, plus_RE is not None, in_fp8
        ctx.save_for_backward(x_RD, weight_ED, down_KD, up_EK, read_RK)
        ctx.mark_non_differentiable(read_RK)
        return placeholder(x_RD, len(x_RD), len(weight_ED)), read_RK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RE: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, weight_ED, down_KD, up_EK, read_RK = ctx.saved_tensors
        grad_RK = grad_RE @ up_EK * ctx.scaling
        if ctx.in_fp8:
            grad_x, grad_weight = fp8.gradients(grad_RE, x_RD, weight_ED, *ctx.needs_input_grad[:2])
            grad_x = None if grad_x is None else grad_x.addmm_(grad_RK, down_KD)
        else:
            grad_x = (grad_RK @ down_KD).addmm_(grad_RE, weight_ED) if ctx.needs_input_grad[0] else None
            grad_weight = grad_RE.T @ x_RD if ctx.needs_input_grad[1] else None
        return (
            grad_x, grad_weight, grad_RK.T @ x_RD, grad_RE.T @ read_RK, None, grad_RE if ctx.added else None, None
        )  # fmt: skip


def _plain(layer: LoraLinear) -> bool:
    """Whether the adapters do nothing but add their product to a bare weight's."""
    parts = [layer.base_layer, *layer.lora_A.values(), *layer.lora_B.values()]
    usual = not (layer.merged or layer.disable_adapters or getattr(layer, "lora_variant", None))
    return usual and not _hooked(layer) and all(map(_bare, parts))


def _bare(layer: nn.Module) -> bool:
    """Whether a layer is a product with its weight and nothing else."""
    return type(layer) in (nn.Linear, Fp8Linear) and layer.bias is None and not _hooked(layer)


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
