"""Triton kernels of our own: the gated norm and the squared ReLU (:mod:`models.triton_conv` has the convolution).

CUDA only. Each is one pass over memory in each direction, where eager torch makes three to six. They read strided views
and count offsets in 64 bits: a pack's projection has more than 2^31 elements.

Shapes: D channels, R rows (tokens of a batch), G channels of a norm's group.
"""

# mypy: disable-error-code="no-untyped-def"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

ELEMENTS, ROWS = 4096, 16
"""Sizes of a program's block: elements of the squared ReLU, rows of the gated norm."""


@triton.jit
def _gated_norm_forward(
    y, gate, weight, out, stride_y, stride_gate, channels, eps, rows,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, BLOCK)
    mask, column = at < GROUP, tl.program_id(1) * GROUP
    w = tl.load(weight + column + at, mask=mask, other=0.0).to(tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for row in range(first, min(first + ROWS, rows)):
        value = tl.load(y + row * stride_y + column + at, mask=mask, other=0.0).to(tl.float32)
        z = tl.load(gate + row * stride_gate + column + at, mask=mask, other=0.0).to(tl.float32)
        value *= z * tl.sigmoid(z)
        scale = tl.rsqrt(tl.sum(value * value, axis=0) / GROUP + eps)
        tl.store(out + row * channels + column + at, value * scale * w, mask=mask)


@triton.jit
def _gated_norm_backward(
    y, gate, weight, grad_out, grad_y, grad_gate, grad_weight, stride_y, stride_gate, stride_grad, channels, eps, rows,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of a group of some rows, and these rows' part of the weight's."""
    at = tl.arange(0, BLOCK)
    mask, column = at < GROUP, tl.program_id(1) * GROUP
    w = tl.load(weight + column + at, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for row in range(first, min(first + ROWS, rows)):
        value = tl.load(y + row * stride_y + column + at, mask=mask, other=0.0).to(tl.float32)
        z = tl.load(gate + row * stride_gate + column + at, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_out + row * stride_grad + column + at, mask=mask, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(z)
        silu = z * sigmoid
        gated = value * silu
        scale = tl.rsqrt(tl.sum(gated * gated, axis=0) / GROUP + eps)
        normed = gated * scale
        total += grad * normed
        grad *= w
        grad = (grad - normed * (tl.sum(grad * normed, axis=0) / GROUP)) * scale
        tl.store(grad_y + row * channels + column + at, grad * silu, mask=mask)
        tl.store(grad_gate + row * channels + column + at, grad * value * sigmoid * (1 + z - silu), mask=mask)
    tl.store(grad_weight + tl.program_id(0).to(tl.int64) * channels + column + at, total, mask=mask)


class GatedNorm(torch.autograd.Function):
    """``rms_norm(y * silu(gate)) * weight`` over groups of channels."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, gate: Tensor, weight_D: Tensor, group: int, eps: float) -> Tensor:
        y_RD, gate_RD = (_rows(tensor) for tensor in (y, gate))
        rows, channels = y_RD.shape
        out_RD = torch.empty(rows, channels, dtype=y.dtype, device=y.device)
        _gated_norm_forward[(triton.cdiv(rows, ROWS), channels // group)](
            y_RD, gate_RD, weight_D, out_RD, y_RD.stride(0), gate_RD.stride(0), channels, eps, rows,
            group, ROWS, triton.next_power_of_2(group),
        )  # fmt: skip
        ctx.group, ctx.eps, ctx.shape = group, eps, y.shape
        ctx.save_for_backward(y_RD, gate_RD, weight_D)
        return out_RD.view(y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y_RD, gate_RD, weight_D = ctx.saved_tensors
        grad_RD, (rows, channels) = _rows(grad), y_RD.shape
        grad_y, grad_gate = (torch.empty_like(grad_RD, memory_format=torch.contiguous_format) for _ in range(2))
        blocks = triton.cdiv(rows, ROWS)
        weights = torch.empty(blocks, channels, dtype=torch.float32, device=grad.device)
        _gated_norm_backward[(blocks, channels // ctx.group)](
            y_RD, gate_RD, weight_D, grad_RD, grad_y, grad_gate, weights, y_RD.stride(0), gate_RD.stride(0),
            grad_RD.stride(0), channels, ctx.eps, rows, ctx.group, ROWS, triton.next_power_of_2(ctx.group),
        )  # fmt: skip
        return grad_y.view(ctx.shape), grad_gate.view(ctx.shape), weights.sum(0).to(weight_D.dtype), None, None


def _rows(tensor: Tensor) -> Tensor:
    """(..., D) as (R, D) with adjacent channels, without a copy where strides allow."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


@triton.jit
def _relu2_forward(x, y, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.maximum(tl.load(x + at, mask=at < size, other=0.0).to(tl.float32), 0.0)
    tl.store(y + at, value * value, mask=at < size)


@triton.jit
def _relu2_backward(x, grad_y, grad_x, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.maximum(tl.load(x + at, mask=at < size, other=0.0).to(tl.float32), 0.0)
    grad = tl.load(grad_y + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(grad_x + at, 2 * value * grad, mask=at < size)


class SquaredReLU(torch.autograd.Function):
    """``relu(x) ** 2``, elementwise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        _relu2_forward[(triton.cdiv(x.numel(), ELEMENTS),)](x, y, x.numel(), ELEMENTS)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        _relu2_backward[(triton.cdiv(x.numel(), ELEMENTS),)](x, grad.contiguous(), grad_x, x.numel(), ELEMENTS)
        return grad_x
