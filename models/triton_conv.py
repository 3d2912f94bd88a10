"""The causal convolution with its SiLU as Triton kernels of our own, one for each direction. CUDA only.

A program marches along a segment of tokens with a few channels, keeping their last inputs in registers, so that each
direction reads and writes every element once; the gradients of weights add up in registers too. There are two copies of
each march: segments inside one document, which are nearly all, need no masks. They read strided views (the input is a
slice of the input projection) and count offsets in 64 bits: a pack's projection has more than 2^31 elements.

Shapes: B batch, T tokens, D channels, K convolution width.
"""

# mypy: disable-error-code="no-untyped-def,assignment"
# ruff: noqa: RUF005, SIM102 (Triton unpacks no tuples, and a condition known to the compiler stands around others)
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

CHANNELS, WARPS = 512, 4
"""A program's channels, four for every thread: eight halve the warps that fit, two double the work on addresses."""
FORWARD_TOKENS, BACKWARD_TOKENS, STEP = 64, 128, 4
"""Tokens that a program marches along, and those of them that it loads at once."""
REGISTERS = 128
"""Of a thread in the backward pass: left alone, the compiler takes twice as many, and half the warps fit."""


@triton.jit
def _factors(weight, bias, d, d_mask, K: tl.constexpr, HAS_BIAS: tl.constexpr, BD: tl.constexpr):
    """The factors of the tokens 0 to ``K - 1`` back, and the bias, in fp32."""
    factors = ()
    for lag in tl.static_range(K):
        factors += (tl.load(weight + d * K + (K - 1 - lag), mask=d_mask, other=0.0).to(tl.float32),)
    offset = tl.zeros((BD,), dtype=tl.float32)
    if HAS_BIAS:
        offset += tl.load(bias + d, mask=d_mask, other=0.0).to(tl.float32)
    return factors, offset


@triton.jit
def _tokens(base, stride, t, length, d_mask, COUNT: tl.constexpr, MASKED: tl.constexpr):
    """The channels of ``COUNT`` tokens from ``t`` on: all are loaded before the first is used."""
    base += t * stride
    rows = ()
    for i in tl.static_range(COUNT):
        if MASKED:
            rows += (tl.load(base + i * stride, mask=d_mask & (t + i < length), other=0.0),)
        else:
            rows += (tl.load(base + i * stride, mask=d_mask),)
    return rows


@triton.jit
def _documents(document, t, length, COUNT: tl.constexpr, MASKED: tl.constexpr):
    """The documents of ``COUNT`` tokens from ``t`` on; what came before the first token belongs to document 0."""
    owners = ()
    for i in tl.static_range(COUNT):
        if MASKED:
            owners += (tl.load(document + t + i, mask=(t + i >= 0) & (t + i < length), other=0),)
        else:
            owners += (0,)
    return owners


@triton.jit
def _earlier(
    x, stride_t, previous, channels, document, first, length, d_mask,
    K: tl.constexpr, HAS_PREVIOUS: tl.constexpr, MASKED: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The inputs 1 to ``K - 1`` tokens before ``first``, and their documents."""
    inputs, owners = (), ()
    for lag in tl.static_range(1, K):
        t = first - lag
        value = tl.zeros((BD,), dtype=tl.float32)
        if t >= 0:
            value = tl.load(x + t * stride_t, mask=d_mask, other=0.0).to(tl.float32)
        elif HAS_PREVIOUS:
            value = tl.load(previous + (K - 1 + t) * channels, mask=d_mask, other=0.0).to(tl.float32)
        inputs += (value,)
        owners += _documents(document, t, length, 1, MASKED)
    return inputs, owners


@triton.jit
def _uninterrupted(document, first, last, length, K: tl.constexpr, HAS_DOCUMENT: tl.constexpr):
    """Whether all that the tokens from ``first`` to ``last`` touch exists and is of one document."""
    same = last < length
    if HAS_DOCUMENT:
        if same:  # documents are runs: where both ends are of one, all between them is
            entering = tl.load(document + first - (K - 1), mask=first >= K - 1, other=0)
            same = tl.load(document + last) == entering
    return same


@triton.jit
def _pushed(newest, kept, K: tl.constexpr):
    """What is kept of the last ``K - 1`` tokens, a token later."""
    return ((newest,) + kept)[: K - 1]


@triton.jit
def _convolve(row, earlier, owner, owners, factors, offset, K: tl.constexpr, MASKED: tl.constexpr):
    """A token before SiLU in fp32, and the ``K`` inputs it sees, its own first. All tokens are added up in one order by
    explicit fused steps, so that a token's bits do not depend on where in the pack it is."""
    inputs = (row.to(tl.float32),)
    for lag in tl.static_range(1, K):
        if MASKED:
            inputs += (tl.where(owners[lag - 1] == owner, earlier[lag - 1], 0.0),)
        else:
            inputs += (earlier[lag - 1],)
    for lag in tl.static_range(K):
        offset = tl.fma(inputs[lag], factors[lag], offset)
    return offset, inputs


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp2(x * -1.4426950408889634))  # tl.sigmoid negates by a subtraction of its own


@triton.jit
def _forward_march(
    x, previous, document, y, stride_t, first, length, channels, d_mask, factors, offset,
    K: tl.constexpr, HAS_PREVIOUS: tl.constexpr, SILU: tl.constexpr, MASKED: tl.constexpr, HAS_DOCUMENT: tl.constexpr,
    BT: tl.constexpr, STEP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes the outputs of the tokens from ``first`` on, keeping the last ``K - 1`` inputs in registers."""
    APART: tl.constexpr = MASKED and HAS_DOCUMENT
    earlier, owners = _earlier(
        x, stride_t, previous, channels, document, first, length, d_mask, K, HAS_PREVIOUS, APART, BD
    )
    for t in range(first, min(first + BT, length), STEP):
        rows = _tokens(x, stride_t, t, length, d_mask, STEP, MASKED)
        documents = _documents(document, t, length, STEP, APART)
        for i in tl.static_range(STEP):
            value, _ = _convolve(rows[i], earlier, documents[i], owners, factors, offset, K, APART)
            if SILU:
                value *= _sigmoid(value)
            mask = d_mask
            if MASKED:
                mask = mask & (t + i < length)
            tl.store(y + t * channels + i * channels, value, mask=mask)
            earlier, owners = _pushed(rows[i].to(tl.float32), earlier, K), _pushed(documents[i], owners, K)


@triton.jit
def _conv_forward(
    x, weight, bias, previous, document, y, stride_b, stride_t, length, channels,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_DOCUMENT: tl.constexpr,
    SILU: tl.constexpr, BT: tl.constexpr, STEP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    first, batch, d_mask = tl.program_id(1).to(tl.int64) * BT, tl.program_id(2).to(tl.int64), d < channels
    x += batch * stride_b + d
    y += batch * length * channels + d
    if HAS_PREVIOUS:
        previous += batch * (K - 1) * channels + d
    if HAS_DOCUMENT:
        document += batch * length
    factors, offset = _factors(weight, bias, d, d_mask, K, HAS_BIAS, BD)
    if _uninterrupted(document, first, first + BT - 1, length, K, HAS_DOCUMENT):
        _forward_march(
            x, previous, document, y, stride_t, first, length, channels, d_mask, factors, offset,
            K, HAS_PREVIOUS, SILU, False, HAS_DOCUMENT, BT, STEP, BD,
        )  # fmt: skip
    else:
        _forward_march(
            x, previous, document, y, stride_t, first, length, channels, d_mask, factors, offset,
            K, HAS_PREVIOUS, SILU, True, HAS_DOCUMENT, BT, STEP, BD,
        )  # fmt: skip


@triton.jit
def _backward_step(
    x, document, grad_y, grad_x, grad_previous, stride_t, grad_stride_t, t, first, length, channels, d_mask,
    factors, offset, earlier, owners, pending, sums,
    K: tl.constexpr, HAS_DOCUMENT: tl.constexpr, SILU: tl.constexpr, MASKED: tl.constexpr, WEIGHTS: tl.constexpr,
    HAS_PREVIOUS: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """``COUNT`` tokens from ``t`` on: the gradient of each one before SiLU enters the gradients of the ``K`` inputs it
    saw, which completes the earliest's. ``pending``: what the last ``K - 1`` tokens' gradients are so far; ``sums``:
    the gradients of the factors, then the bias's."""
    APART: tl.constexpr = MASKED and HAS_DOCUMENT
    rows = _tokens(x, stride_t, t, length, d_mask, COUNT, MASKED)
    grads = _tokens(grad_y, grad_stride_t, t, length, d_mask, COUNT, MASKED)
    documents = _documents(document, t, length, COUNT, APART)
    for i in tl.static_range(COUNT):
        value, inputs = _convolve(rows[i], earlier, documents[i], owners, factors, offset, K, APART)
        slope = grads[i].to(tl.float32)
        if SILU:
            sigmoid = _sigmoid(value)
            slope *= sigmoid * tl.fma(value, 1 - sigmoid, 1.0)
        if MASKED:
            slope = tl.where(t + i < length, slope, 0.0)
        if WEIGHTS:
            added = ()
            for lag in tl.static_range(K):
                added += (tl.fma(slope, inputs[lag], sums[lag]),)
            sums = added + (sums[K] + slope,)
        passed = (slope * factors[0],)
        for lag in tl.static_range(1, K):
            if APART:
                seen = tl.where(owners[lag - 1] == documents[i], slope, 0.0)
            else:
                seen = slope
            passed += (tl.fma(seen, factors[lag], pending[lag - 1]),)
        done, mask = t + i - (K - 1), d_mask
        if MASKED:
            mask = mask & (done >= first) & (done < length)
        elif i < K - 1:
            mask = mask & (done >= first)
        tl.store(grad_x + t * channels + (i - (K - 1)) * channels, passed[K - 1], mask=mask)
        if MASKED and HAS_PREVIOUS:
            if done < 0:
                tl.store(grad_previous + (K - 1 + done) * channels, passed[K - 1], mask=d_mask)
        pending = passed[: K - 1]
        earlier, owners = _pushed(rows[i].to(tl.float32), earlier, K), _pushed(documents[i], owners, K)
    return earlier, owners, pending, sums


@triton.jit
def _backward_march(
    x, previous, document, grad_y, grad_x, grad_previous, partial, stride_t, grad_stride_t, first, length, channels,
    d_mask, factors, offset,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_DOCUMENT: tl.constexpr,
    SILU: tl.constexpr, MASKED: tl.constexpr, WEIGHTS: tl.constexpr, BT: tl.constexpr, STEP: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of the inputs from ``first`` on, and these tokens' part of the weight's and the bias's."""
    earlier, owners = _earlier(
        x, stride_t, previous, channels, document, first, length, d_mask,
        K, HAS_PREVIOUS, MASKED and HAS_DOCUMENT, BD,
    )  # fmt: skip
    zero = tl.zeros((BD,), dtype=tl.float32)
    sums, pending = (zero, zero), ()
    for _ in tl.static_range(1, K):
        sums += (zero,)
        pending += (zero,)
    end = min(first + BT, length)
    for t in range(first, end, STEP):
        earlier, owners, pending, sums = _backward_step(
            x, document, grad_y, grad_x, grad_previous, stride_t, grad_stride_t, t, first, length, channels, d_mask,
            factors, offset, earlier, owners, pending, sums,
            K, HAS_DOCUMENT, SILU, MASKED, WEIGHTS, HAS_PREVIOUS, STEP,
        )  # fmt: skip
    # The last inputs are seen by K - 1 tokens more; what these add to the weight's gradient is the next program's.
    after = first + tl.cdiv(end - first, STEP) * STEP
    _backward_step(
        x, document, grad_y, grad_x, grad_previous, stride_t, grad_stride_t, after, first, length, channels, d_mask,
        factors, offset, earlier, owners, pending, sums,
        K, HAS_DOCUMENT, SILU, MASKED, False, HAS_PREVIOUS, K - 1,
    )  # fmt: skip
    if WEIGHTS:
        for row in tl.static_range(K + HAS_BIAS):
            tl.store(partial + row * channels, sums[row], mask=d_mask)


@triton.jit
def _conv_backward(
    x, weight, bias, previous, document, grad_y, grad_x, grad_previous, partial, stride_b, stride_t,
    grad_stride_b, grad_stride_t, length, channels,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_DOCUMENT: tl.constexpr,
    SILU: tl.constexpr, WEIGHTS: tl.constexpr, BT: tl.constexpr, STEP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """All gradients in one pass; ``WEIGHTS``: those of the weight and the bias too."""
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    first, batch, d_mask = tl.program_id(1).to(tl.int64) * BT, tl.program_id(2).to(tl.int64), d < channels
    x += batch * stride_b + d
    grad_y += batch * grad_stride_b + d
    grad_x += batch * length * channels + d
    if HAS_PREVIOUS:
        previous += batch * (K - 1) * channels + d
        grad_previous += batch * (K - 1) * channels + d
    if HAS_DOCUMENT:
        document += batch * length
    if WEIGHTS:
        partial += (batch * tl.num_programs(1) + tl.program_id(1)) * (K + HAS_BIAS) * channels + d
    factors, offset = _factors(weight, bias, d, d_mask, K, HAS_BIAS, BD)
    if (first > 0) & _uninterrupted(document, first, first + BT + K - 2, length, K, HAS_DOCUMENT):
        _backward_march(
            x, previous, document, grad_y, grad_x, grad_previous, partial, stride_t, grad_stride_t, first, length,
            channels, d_mask, factors, offset,
            K, HAS_BIAS, HAS_PREVIOUS, HAS_DOCUMENT, SILU, False, WEIGHTS, BT, STEP, BD,
        )  # fmt: skip
    else:
        _backward_march(
            x, previous, document, grad_y, grad_x, grad_previous, partial, stride_t, grad_stride_t, first, length,
            channels, d_mask, factors, offset,
            K, HAS_BIAS, HAS_PREVIOUS, HAS_DOCUMENT, SILU, True, WEIGHTS, BT, STEP, BD,
        )  # fmt: skip


class CausalConv(torch.autograd.Function):
    """The depthwise causal convolution, document by document, and optionally its SiLU.

    A document's outputs and input gradients have the same bits wherever in a pack it is.
    """

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
        unread = 0
        if previous_BKD is not None:
            unread = previous_BKD.shape[1] - (width - 1)
            previous_BKD = previous_BKD[:, unread:].contiguous()
        if document_BT is not None:
            document_BT = document_BT.int().expand(batch, length).contiguous()
        y_BTD = torch.empty(x_BTD.shape, dtype=x_BTD.dtype, device=x_BTD.device)
        grid = (triton.cdiv(channels, CHANNELS), triton.cdiv(length, FORWARD_TOKENS), batch)
        _conv_forward[grid](
            x_BTD, weight_DK, bias_D, previous_BKD, document_BT, y_BTD, x_BTD.stride(0), x_BTD.stride(1),
            length, channels, width, bias_D is not None, previous_BKD is not None, document_BT is not None,
            silu, FORWARD_TOKENS, STEP, CHANNELS, num_warps=WARPS,
        )  # fmt: skip
        ctx.silu, ctx.unread = silu, unread
        ctx.save_for_backward(x_BTD, weight_DK, bias_D, previous_BKD, document_BT)
        return y_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, weight_DK, bias_D, previous_BKD, document_BT = ctx.saved_tensors
        batch, length, channels = x_BTD.shape
        width = weight_DK.shape[1]
        _, to_weight, to_bias, *_ = ctx.needs_input_grad
        if grad_BTD.stride(2) != 1:
            grad_BTD = grad_BTD.contiguous()
        blocks = triton.cdiv(length, BACKWARD_TOKENS)
        grad_x = torch.empty(x_BTD.shape, dtype=x_BTD.dtype, device=x_BTD.device)
        grad_previous = None if previous_BKD is None else torch.empty_like(previous_BKD)
        partial = None
        if to_weight or to_bias:
            rows = width + (bias_D is not None)
            partial = grad_x.new_empty(batch * blocks, rows, channels, dtype=torch.float32)
        _conv_backward[(triton.cdiv(channels, CHANNELS), blocks, batch)](
            x_BTD, weight_DK, bias_D, previous_BKD, document_BT, grad_BTD, grad_x, grad_previous, partial,
            x_BTD.stride(0), x_BTD.stride(1), grad_BTD.stride(0), grad_BTD.stride(1), length, channels,
            width, bias_D is not None, previous_BKD is not None, document_BT is not None, ctx.silu,
            partial is not None, BACKWARD_TOKENS, STEP, CHANNELS, num_warps=WARPS, maxnreg=REGISTERS,
        )  # fmt: skip
        if ctx.unread:
            grad_previous = F.pad(grad_previous, (0, 0, ctx.unread, 0))
        grad_weight = grad_bias = None
        if partial is not None:
            total = partial.sum(0)  # of the token itself, of those 1 to K - 1 back, of the bias
            grad_weight = total[:width].flip(0).t().to(weight_DK.dtype).contiguous() if to_weight else None
            grad_bias = total[width].to(bias_D.dtype) if to_bias else None
        return grad_x, grad_weight, grad_bias, grad_previous, None, None
