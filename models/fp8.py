"""Linear layers whose three products (output, input's gradient, weight's gradient) are FP8 GEMMs on Hopper.

Master weights, the residual stream, and everything between the products keep their dtypes; tensors are rounded to FP8
(:mod:`models.fp8_tiles`) right before a product and scaled by what is in them, so there is no state: a resumed training
goes on as if it had not stopped.

A document feels nothing of its neighbours in a pack in its outputs or in its inputs' gradients: tiles there lie along
a token's own features. A weight's gradient sums over tokens, in tiles of 128 of them; in a tile that documents share,
values 2^13 times smaller than the largest lose bits.
"""

import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nanoalign.common.errors import ConfigError
from nanoalign.models import fp8_tiles
from nanoalign.models.deferred import materialize, placeholder
from nanoalign.models.fp8_layers import CARDS, EMULATE
from nanoalign.models.fp8_tiles import Tiles
from nanoalign.models.loss import product_dtype

HELD = 3
"""Weights held in FP8 at a time: those of a mixer or an MLP, which its tiles use in turn."""


def quantize(x_RC: Tensor, by_rows: bool = True, by_columns: bool = False) -> tuple[Tiles | None, Tiles | None]:
    """``x`` in tiles along its rows, and transposed, in tiles along its columns: those that are wanted."""
    if x_RC.is_cuda:
        from nanoalign.models.triton_fp8 import quantize as by_triton

        return by_triton(x_RC, by_rows, by_columns)
    return (
        fp8_tiles.along_rows(x_RC) if by_rows else None,
        fp8_tiles.along_columns(x_RC) if by_columns else None,
    )


def multiply(a_RS: Tiles, b_CS: Tiles, dtype: torch.dtype) -> Tensor:
    """``a @ b.T``, (R, C) with what they were filled up with, accumulated in float32.

    Raises:
        ConfigError: there is no Hopper GPU.
    """
    if not a_RS.values.is_cuda:
        require_fp8(a_RS.values.device)
        return (a_RS.dequantized() @ b_CS.dequantized().T).float().to(dtype)
    return torch._scaled_mm(a_RS.values, b_CS.values.T, a_RS.scale, b_CS.scale.T, out_dtype=dtype)


def require_fp8(device: torch.device) -> None:
    """Raises ConfigError where the FP8 GEMMs with these scales do not run: torch has them for Hopper alone."""
    if os.environ.get(EMULATE) and device.type == "cpu":
        return
    if device.type != "cuda":
        raise ConfigError(f"train.precision: fp8 needs {CARDS}; this stage trains on the {device.type}")
    if torch.cuda.get_device_capability(device)[0] != 9:
        raise ConfigError(
            f"train.precision: fp8 needs {CARDS}; torch has no FP8 products with scales for blocks on "
            f"{torch.cuda.get_device_name(device)}"
        )


class _Held:
    """The weights used last, in FP8. A frozen weight is rounded anew in each pass, too: once for all tiles of a pack,
    0.4% of its products' time, where holding all weights would take as much memory again as bf16 does."""

    def __init__(self) -> None:
        self.weights: OrderedDict[int, tuple[weakref.ref[Tensor], int, tuple[Tiles, Tiles]]] = OrderedDict()

    def __call__(self, weight_ED: Tensor) -> tuple[Tiles, Tiles]:
        """The weight in blocks, (E, D) and transposed."""
        key, version = id(weight_ED), weight_ED._version
        found = self.weights.pop(key, None)
        if found is None or found[0]() is not weight_ED or found[1] != version:
            with torch.no_grad():
                found = weakref.ref(weight_ED), version, _in_blocks(weight_ED)
        self.weights[key] = found
        while len(self.weights) > HELD:
            self.weights.popitem(last=False)
        return found[2]

    def clear(self, *_: Any) -> None:
        """Before a forward pass: an optimizer, or ZeRO-3's gathering, may have changed the weights behind us."""
        self.weights.clear()


held = _Held()


def _in_blocks(weight_ED: Tensor) -> tuple[Tiles, Tiles]:
    """By way of bf16, as autocast would have it: on an H100 Triton 3.6 misplaced the transposed blocks of a weight in
    fp32 (benchmarks/fp8.py, `bits`), and none of one in bf16."""
    weight_ED = weight_ED.bfloat16()
    if weight_ED.is_cuda:
        from nanoalign.models.triton_fp8 import in_blocks

        return in_blocks(weight_ED)
    return fp8_tiles.in_blocks(weight_ED)


def product(x_RD: Tensor, weight_ED: Tensor) -> Tensor:
    """``x @ weight.T`` in x's dtype, outside autograd."""
    rows, _ = quantize(x_RD)
    assert rows is not None
    return multiply(rows, held(weight_ED)[0], x_RD.dtype)[: len(x_RD), : len(weight_ED)]


def gradients(
    grad_RE: Tensor, x_RD: Tensor, weight_ED: Tensor, for_x: bool, for_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of :func:`product`'s arguments, those that are wanted, in their dtypes."""
    rows, columns = quantize(grad_RE, for_x, for_weight)
    grad_x = grad_weight = None
    if rows is not None:
        grad_x = multiply(rows, held(weight_ED)[1], x_RD.dtype)[: len(x_RD), : x_RD.shape[1]]
        del rows  # a GPU's memory is at its fullest here
    if columns is not None:
        _, inputs = quantize(x_RD, False, True)
        assert inputs is not None
        grad_weight = multiply(columns, inputs, weight_ED.dtype)[: len(weight_ED), : x_RD.shape[1]]
    return grad_x, grad_weight


class _Product(torch.autograd.Function):
    """:func:`product`, with a residual stream on it, as a placeholder (:mod:`models.deferred`): a checkpoint's
    recomputation leaves it out."""

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, weight_ED: Tensor, plus_RE: Tensor | None) -> Tensor:
        ctx.added = plus_RE is not None
        ctx.save_for_backward(x_RD, weight_ED)
        return placeholder(x_RD, len(x_RD), len(weight_ED))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RE: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, weight_ED = ctx.saved_tensors
        found = gradients(grad_RE, x_RD, weight_ED, *ctx.needs_input_grad[:2])
        return *found, grad_RE if ctx.added else None


def linear(x: Tensor, weight_ED: Tensor, plus: Tensor | None = None) -> Tensor:
    """``x @ weight.T + plus`` for (..., D), in x's dtype or a wider one of ``plus``."""
    if plus is not None and plus.dtype != x.dtype:
        return linear(x, weight_ED) + plus
    x_RD = x.flatten(0, -2)
    plus_RE = None if plus is None else plus.flatten(0, -2)

    def compute() -> Tensor:
        y_RE = product(x_RD, weight_ED)
        return y_RE if plus_RE is None else y_RE.add_(plus_RE)

    return materialize(compute, _Product.apply(x_RD, weight_ED, plus_RE)).unflatten(0, x.shape[:-1])


_switch = {"on": True}


@contextmanager
def disabled() -> Iterator[None]:
    """Layers multiply in bf16 for a while."""
    before, _switch["on"] = _switch["on"], False
    try:
        yield
    finally:
        _switch["on"] = before


class Fp8Linear(nn.Linear):
    """A linear layer in training: FP8 where it would compute in bf16. In eval mode it is the bf16 layer that is saved,
    on which held-out losses are measured, unless ``always``."""

    always: bool = False

    def computes_fp8(self, x: Tensor) -> bool:
        """Whether the product with ``x`` is an FP8 one: in place of one in bf16."""
        return _switch["on"] and (self.training or self.always) and product_dtype(x) == torch.bfloat16

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., E)."""
        if not self.computes_fp8(x):
            return super().forward(x)
        y = linear(x.to(torch.bfloat16), self.weight)
        return y if self.bias is None else y + self.bias.to(y.dtype)
