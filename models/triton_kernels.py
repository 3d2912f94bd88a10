"""Triton kernels of our own: the causal convolution with its SiLU, the gated norm, the squared ReLU. CUDA only.

Each is one pass over memory in each direction, where eager torch makes three to six. They read strided views (the
convolution's input is a slice of the input projection) and count offsets in 64 bits: a pack's projection has more than
2^31 elements.

Shapes: B batch, T tokens, D channels, K convolution width, R rows (tokens of a batch), G channels of a norm's group.
"""

# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: SIM102 (a condition known at compile time, around one that is not)
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TOKENS, CHANNELS, ELEMENTS, ROWS = 64, 128, 4096, 16
"""Sizes of a program's block."""


@triton.jit
def _preactivation(
    x, weight, bias, previous, document, first, t, d, d_mask, own, stride_t, length, channels,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_DOCUMENT: tl.constexpr,
):  # fmt: skip
    """The convolution before SiLU at tokens ``first + t``, channels ``d``, in fp32; ``own``: the tokens' documents."""
    total = tl.zeros((t.shape[0], d.shape[0]), dtype=tl.float32)
    for lag in tl.static_range(K):
        value = _input(
            x, previous, document, first, t - lag, d, d_mask, own, stride_t, length, channels,
            K, HAS_PREVIOUS, HAS_DOCUMENT,
        )  # fmt: skip
        factor = tl.load(weight + d * K + (K - 1 - lag), mask=d_mask, other=0.0).to(tl.float32)
        total += value * factor[None, :]
    if HAS_BIAS:
        total += tl.load(bias + d, mask=d_mask, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def _input(
    x, previous, document, first, t, d, d_mask, own, stride_t, length, channels,
    K: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_DOCUMENT: tl.constexpr,
):  # fmt: skip
    """Inputs at tokens ``first + t`` (negative: what came before), zero where their document is not ``own``.

    ``x``, ``previous`` and ``document`` point to token ``first``, so that offsets fit in 32 bits."""
    source = first + t
    seen = (source >= 0) & (source < length)
    if HAS_DOCUMENT:  # what came before belongs to document 0, the first token's
        seen_here = seen & (tl.load(document + t, mask=seen, other=0) == own)
    else:
        seen_here = seen
    value = tl.load(x + t[:, None] * stride_t + d[None, :], mask=seen_here[:, None] & d_mask[None, :], other=0.0)
    value = value.to(tl.float32)
    if HAS_PREVIOUS:
        if first < K:  # uniform over the program: only the first block looks back before the stretch
            before = (source < 0) & (source >= 1 - K)
            if HAS_DOCUMENT:
                before = before & (own == 0)
            rows = previous + (K - 1 + source)[:, None] * channels + d[None, :]
            value += tl.load(rows, mask=before[:, None] & d_mask[None, :], other=0.0).to(tl.float32)
    return value


@triton.jit
def _conv_forward(
    x, weight, bias, previous, document, y, stride_b, stride_t, length, channels,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_DOCUMENT: tl.constexpr,
    SILU: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(1) * BT
    t, d = tl.arange(0, BT), tl.program_id(0) * BD + tl.arange(0, BD)
    batch = tl.program_id(2).to(tl.int64)
    t_mask, d_mask = first + t < length, d < channels
    x += batch * stride_b + first.to(tl.int64) * stride_t
    if HAS_PREVIOUS:
        previous += batch * (K - 1) * channels
    own = t
    if HAS_DOCUMENT:
        document += batch * length + first
        own = tl.load(document + t, mask=t_mask, other=-1)
    value = _preactivation(
        x, weight, bias, previous, document, first, t, d, d_mask, own, stride_t, length, channels,
        K, HAS_BIAS, HAS_PREVIOUS, HAS_DOCUMENT,
    )  # fmt: skip
    if SILU:
        value *= tl.sigmoid(value)
    y += (batch * length + first) * channels
    tl.store(y + t[:, None] * channels + d[None, :], value, mask=t_mask[:, None] & d_mask[None, :])


@triton.jit
def _conv_slope(
    x, weight, bias, previous, document, grad_y, slope, grad_weight, grad_bias, stride_b, stride_t,
    grad_stride_b, grad_stride_t, length, channels,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_DOCUMENT: tl.constexpr,
    SILU: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The gradient before SiLU, and this block's part of the weight's and the bias's gradient."""
    first = tl.program_id(1) * BT
    t, d = tl.arange(0, BT), tl.program_id(0) * BD + tl.arange(0, BD)
    batch = tl.program_id(2).to(tl.int64)
    t_mask, d_mask = first + t < length, d < channels
    mask = t_mask[:, None] & d_mask[None, :]
    x += batch * stride_b + first.to(tl.int64) * stride_t
    if HAS_PREVIOUS:
        previous += batch * (K - 1) * channels
    own = t
    if HAS_DOCUMENT:
        document += batch * length + first
        own = tl.load(document + t, mask=t_mask, other=-1)
    value = _preactivation(
        x, weight, bias, previous, document, first, t, d, d_mask, own, stride_t, length, channels,
        K, HAS_BIAS, HAS_PREVIOUS, HAS_DOCUMENT,
    )  # fmt: skip
    grad_y += batch * grad_stride_b + first.to(tl.int64) * grad_stride_t
    grad = tl.load(grad_y + t[:, None] * grad_stride_t + d[None, :], mask=mask, other=0.0).to(tl.float32)
    if SILU:
        sigmoid = tl.sigmoid(value)
        grad *= sigmoid * (1 + value * (1 - sigmoid))
    slope += (batch * length + first) * channels
    tl.store(slope + t[:, None] * channels + d[None, :], grad, mask=mask)
    block = (batch * tl.num_programs(1) + tl.program_id(1)) * channels + d
    for lag in tl.static_range(K):
        source = _input(
            x, previous, document, first, t - lag, d, d_mask, own, stride_t, length, channels,
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
    first = tl.program_id(1) * BT - (K - 1)
    t, d = tl.arange(0, BT), tl.program_id(0) * BD + tl.arange(0, BD)
    batch = tl.program_id(2).to(tl.int64)
    t_mask, d_mask = (first + t < length) & (first + t >= 0), d < channels
    slope += (batch * length + first) * channels
    grad_x += (batch * length + first) * channels
    own = t
    if HAS_DOCUMENT:
        document += batch * length + first
        own = tl.load(document + t, mask=t_mask, other=0)
    total = tl.zeros((BT, BD), dtype=tl.float32)
    for lag in tl.static_range(K):
        later = t + lag
        inside = (first + later >= 0) & (first + later < length)
        if HAS_DOCUMENT:
            inside = inside & (tl.load(document + later, mask=inside, other=-1) == own)
        grad = tl.load(
            slope + later[:, None] * channels + d[None, :], mask=inside[:, None] & d_mask[None, :], other=0.0
        )
        factor = tl.load(weight + d * K + (K - 1 - lag), mask=d_mask, other=0.0).to(tl.float32)
        total += grad.to(tl.float32) * factor[None, :]
    tl.store(grad_x + t[:, None] * channels + d[None, :], total, mask=t_mask[:, None] & d_mask[None, :])
    if HAS_PREVIOUS:
        if first < 0:
            rows = grad_previous + batch * (K - 1) * channels + (K - 1 + first + t)[:, None] * channels + d[None, :]
            tl.store(rows, total, mask=(first + t < 0)[:, None] & d_mask[None, :])


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
