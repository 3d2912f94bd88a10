"""Triton kernels of our own: the causal convolution with its SiLU and the squared ReLU. Imported on CUDA machines only.

Each is one pass over memory in each direction, where eager torch makes three to six. They read strided views (the
convolution's input is a slice of the input projection) and count offsets in 64 bits: a pack's projection has more than
2^31 elements.

Shapes: B batch, T tokens, D channels, K convolution width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TOKENS, CHANNELS, ELEMENTS = 64, 128, 4096
"""Sizes of a program's block."""


@triton.jit
def _preactivation(
    x, weight, bias, previous, document, t, d, t_mask, d_mask, own, batch, stride_b, stride_t, length, channels,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_DOCUMENT: tl.constexpr,
):  # fmt: skip
    """The convolution before SiLU at tokens ``t`` and channels ``d``, in fp32; ``own`` are the tokens' documents."""
    total = tl.zeros((t.shape[0], d.shape[0]), dtype=tl.float32)
    for lag in tl.static_range(K):
        value = _input(
            x, previous, document, t - lag, d, t_mask, d_mask, own, batch, stride_b, stride_t, length, channels,
            K, HAS_PREVIOUS, HAS_DOCUMENT,
        )  # fmt: skip
        factor = tl.load(weight + d * K + (K - 1 - lag), mask=d_mask, other=0.0).to(tl.float32)
        total += value * factor[None, :]
    if HAS_BIAS:
        total += tl.load(bias + d, mask=d_mask, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def _input(
    x, previous, document, source, d, t_mask, d_mask, own, batch, stride_b, stride_t, length, channels,
    K: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_DOCUMENT: tl.constexpr,
):  # fmt: skip
    """Inputs at tokens ``source`` (negative: what came before), zero where their document is not ``own``."""
    seen = t_mask & (source >= 0)
    value = tl.load(x + batch * stride_b + source[:, None] * stride_t + d[None, :],
                    mask=seen[:, None] & d_mask[None, :], other=0.0).to(tl.float32)  # fmt: skip
    if HAS_PREVIOUS:
        row = batch * (K - 1) + K - 1 + source
        value += tl.load(previous + row[:, None] * channels + d[None, :],
                         mask=(t_mask & (source < 0))[:, None] & d_mask[None, :], other=0.0).to(tl.float32)  # fmt: skip
    if HAS_DOCUMENT:  # what came before belongs to document 0, the first token's
        theirs = tl.load(document + batch * length + source, mask=seen, other=0)
        value = tl.where((theirs == own)[:, None], value, 0.0)
    return value


@triton.jit
def _conv_forward(
    x, weight, bias, previous, document, y, stride_b, stride_t, length, channels,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_DOCUMENT: tl.constexpr,
    SILU: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    t = (tl.program_id(1) * BT + tl.arange(0, BT)).to(tl.int64)
    d = (tl.program_id(0) * BD + tl.arange(0, BD)).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    t_mask, d_mask = t < length, d < channels
    own = t
    if HAS_DOCUMENT:
        own = tl.load(document + batch * length + t, mask=t_mask, other=-1)
    value = _preactivation(
        x, weight, bias, previous, document, t, d, t_mask, d_mask, own, batch, stride_b, stride_t, length, channels,
        K, HAS_BIAS, HAS_PREVIOUS, HAS_DOCUMENT,
    )  # fmt: skip
    if SILU:
        value *= tl.sigmoid(value)
    tl.store(y + (batch * length + t)[:, None] * channels + d[None, :], value, mask=t_mask[:, None] & d_mask[None, :])


@triton.jit
def _conv_slope(
    x, weight, bias, previous, document, grad_y, slope, grad_weight, grad_bias, stride_b, stride_t,
    grad_stride_b, grad_stride_t, length, channels,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_DOCUMENT: tl.constexpr,
    SILU: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The gradient before SiLU, and this block's part of the weight's and the bias's gradient."""
    t = (tl.program_id(1) * BT + tl.arange(0, BT)).to(tl.int64)
    d = (tl.program_id(0) * BD + tl.arange(0, BD)).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    t_mask, d_mask = t < length, d < channels
    mask = t_mask[:, None] & d_mask[None, :]
    own = t
    if HAS_DOCUMENT:
        own = tl.load(document + batch * length + t, mask=t_mask, other=-1)
    value = _preactivation(
        x, weight, bias, previous, document, t, d, t_mask, d_mask, own, batch, stride_b, stride_t, length, channels,
        K, HAS_BIAS, HAS_PREVIOUS, HAS_DOCUMENT,
    )  # fmt: skip
    grad = tl.load(grad_y + batch * grad_stride_b + t[:, None] * grad_stride_t + d[None, :], mask=mask, other=0.0)
    grad = grad.to(tl.float32)
    if SILU:
        sigmoid = tl.sigmoid(value)
        grad *= sigmoid * (1 + value * (1 - sigmoid))
    tl.store(slope + (batch * length + t)[:, None] * channels + d[None, :], grad, mask=mask)
    block = (batch * tl.num_programs(1) + tl.program_id(1)) * channels + d
    for lag in tl.static_range(K):
        source = _input(
            x, previous, document, t - lag, d, t_mask, d_mask, own, batch, stride_b, stride_t, length, channels,
            K, HAS_PREVIOUS, HAS_DOCUMENT,
        )  # fmt: skip
        tl.store(grad_weight + block * K + (K - 1 - lag), tl.sum(grad * source, axis=0), mask=d_mask)
    if HAS_BIAS:
        tl.store(grad_bias + block, tl.sum(grad, axis=0), mask=d_mask)


@triton.jit
def _conv_backward(
    slope, weight, document, grad_x, grad_previous, length, channels,
    K: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_DOCUMENT: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The gradient of the inputs, of those that came before too (tokens from 1 - K on)."""
    t = (tl.program_id(1) * BT + tl.arange(0, BT)).to(tl.int64) - (K - 1)
    d = (tl.program_id(0) * BD + tl.arange(0, BD)).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    t_mask, d_mask = t < length, d < channels
    own = t
    if HAS_DOCUMENT:
        own = tl.load(document + batch * length + t, mask=t_mask & (t >= 0), other=0)
    total = tl.zeros((BT, BD), dtype=tl.float32)
    for lag in tl.static_range(K):
        later = t + lag
        inside = (later >= 0) & (later < length)
        grad = tl.load(slope + (batch * length + later)[:, None] * channels + d[None, :],
                       mask=inside[:, None] & d_mask[None, :], other=0.0).to(tl.float32)  # fmt: skip
        if HAS_DOCUMENT:
            theirs = tl.load(document + batch * length + later, mask=inside, other=-1)
            grad = tl.where((theirs == own)[:, None], grad, 0.0)
        factor = tl.load(weight + d * K + (K - 1 - lag), mask=d_mask, other=0.0).to(tl.float32)
        total += grad * factor[None, :]
    tl.store(grad_x + (batch * length + t)[:, None] * channels + d[None, :], total,
             mask=(t_mask & (t >= 0))[:, None] & d_mask[None, :])  # fmt: skip
    if HAS_PREVIOUS:
        row = batch * (K - 1) + K - 1 + t
        tl.store(grad_previous + row[:, None] * channels + d[None, :], total,
                 mask=(t < 0)[:, None] & d_mask[None, :])  # fmt: skip


class CausalConv(torch.autograd.Function):
    """The depthwise causal convolution, document by document, and its SiLU if asked for."""

    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, previous_BKD: Tensor | None,
        document_BT: Tensor | None, silu: bool,
    ) -> Tensor:  # fmt: skip
        batch, length, channels = x_BTD.shape
        width = weight_DK.shape[1]
        if x_BTD.stride(2) != 1:
            x_BTD = x_BTD.contiguous()
        weight_DK = weight_DK.contiguous()
        if previous_BKD is not None:
            previous_BKD = previous_BKD[:, previous_BKD.shape[1] - (width - 1) :].contiguous()
        if document_BT is not None:
            document_BT = document_BT.int().expand(batch, length).contiguous()
        y_BTD = torch.empty(x_BTD.shape, dtype=x_BTD.dtype, device=x_BTD.device)
        grid = (triton.cdiv(channels, CHANNELS), triton.cdiv(length, TOKENS), batch)
        _conv_forward[grid](
            x_BTD, weight_DK, bias_D, previous_BKD, document_BT, y_BTD, x_BTD.stride(0), x_BTD.stride(1),
            length, channels, width, bias_D is not None, previous_BKD is not None, document_BT is not None,
            silu, TOKENS, CHANNELS,
        )  # fmt: skip
        ctx.silu = silu
        ctx.save_for_backward(x_BTD, weight_DK, bias_D, previous_BKD, document_BT)
        return y_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, weight_DK, bias_D, previous_BKD, document_BT = ctx.saved_tensors
        batch, length, channels = x_BTD.shape
        width = weight_DK.shape[1]
        if grad_BTD.stride(2) != 1:
            grad_BTD = grad_BTD.contiguous()
        has = (previous_BKD is not None, document_BT is not None)
        blocks = triton.cdiv(length, TOKENS)
        slope_BTD = torch.empty(x_BTD.shape, dtype=x_BTD.dtype, device=x_BTD.device)
        weights = slope_BTD.new_empty(batch * blocks, channels, width, dtype=torch.float32)
        biases = None if bias_D is None else slope_BTD.new_empty(batch * blocks, channels, dtype=torch.float32)
        grid = (triton.cdiv(channels, CHANNELS), blocks, batch)
        _conv_slope[grid](
            x_BTD, weight_DK, bias_D, previous_BKD, document_BT, grad_BTD, slope_BTD, weights, biases,
            x_BTD.stride(0), x_BTD.stride(1), grad_BTD.stride(0), grad_BTD.stride(1), length, channels,
            width, bias_D is not None, *has, ctx.silu, TOKENS, CHANNELS,
        )  # fmt: skip
        grad_x = torch.empty_like(slope_BTD)
        grad_previous = None if previous_BKD is None else torch.empty_like(previous_BKD)
        grid = (triton.cdiv(channels, CHANNELS), triton.cdiv(length + width - 1, TOKENS), batch)
        _conv_backward[grid](
            slope_BTD, weight_DK, document_BT, grad_x, grad_previous, length, channels, width, *has, TOKENS, CHANNELS
        )
        return (
            grad_x,
            weights.sum(0).to(weight_DK.dtype),
            None if biases is None else biases.sum(0).to(bias_D.dtype),
            grad_previous,
            None,
            None,
        )


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
