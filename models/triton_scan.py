"""The state-space scan of Mamba-2 in Triton, forward and backward, in chunks that never cross a document. CUDA only.

The chunked form of structured state-space duality (Dao and Gu 2024, arXiv 2405.21060, section 6). Chunks begin anew at
every document (:mod:`models.chunks`), so that no term of one document enters a sum of another, and a document's values
are the same bits wherever it lies in a pack. The state between chunks stays in registers in fp32 and is stored once for
each chunk, rounded to the inputs' dtype, as the products that read it would round it anyway.

    decays      sums of dt A from a chunk's first token on
    states      the state that enters each chunk, one program for a few channels of a head, chunk after chunk; with
                REVERSE the gradient of the state that leaves it, from the last chunk to the first
    outputs     all of a chunk's tokens for the heads of a group
    gradients   of x and of the decays
    group_gradients   of B and C, summed over the heads of their group
    time_steps  the gradients of dt and A from those of the decays

Shapes: B batch, T tokens, M = B T tokens of all rows, H heads, P channels of a head, G groups of heads, N state size,
D = H P + 2 G N channels, Z chunks, Q tokens of a chunk.
"""

# mypy: disable-error-code="no-untyped-def"
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.chunks import LONGEST, Documents, plain_chunks


class Block(NamedTuple):
    """Channels of a head that a kernel's products take at once, warps of a program, stages of its pipeline, and the
    registers that a thread may have (0: as the compiler likes)."""

    channels: int
    warps: int
    stages: int
    registers: int = 0


BLOCKS = {
    "states": Block(16, 4, 3),
    "outputs": Block(16, 4, 4),
    "gradients": Block(16, 4, 3),
    "group_gradients": Block(32, 8, 3, 128),
}
"""The fastest of some dozen on an H100, for the heads of Nemotron Nano v2."""
HEADS = 16
"""Heads whose gradients of B and C one program adds up, at most."""


def chunk_length(size: int) -> int:
    """Tokens of a chunk for a state of this size: what fits into registers."""
    return LONGEST if size <= 128 else LONGEST // 2


@triton.jit
def _decays(dt, A, begin, steps, decays, tokens, heads, Q: tl.constexpr, BH: tl.constexpr):
    start = tl.load(begin + tl.program_id(0))
    size = tl.load(begin + tl.program_id(0) + 1) - start
    q, h = tl.arange(0, Q), tl.program_id(1) * BH + tl.arange(0, BH)
    mask = (q < size)[:, None] & (h < heads)[None, :]
    at = start.to(tl.int64) + q
    step = tl.load(dt + at[:, None] * heads + h[None, :], mask=mask, other=0.0)
    summed = tl.cumsum(step * tl.load(A + h, mask=h < heads, other=0.0)[None, :], axis=0)
    to = h.to(tl.int64)[None, :] * tokens + at[:, None]
    tl.store(steps + to, step, mask=mask)
    tl.store(decays + to, summed, mask=mask)


@triton.jit
def _states(
    value, key, steps, decays, begin, fresh, rows, initial, states, final, stride_value, stride_key, tokens, heads,
    share, P: tl.constexpr, N: tl.constexpr, HAS_INITIAL: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
    Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """``value`` is x and ``key`` B, or with REVERSE y's gradient and C; ``share`` heads have a group in common."""
    h, row = tl.program_id(0), tl.program_id(2)
    q, n, p = tl.arange(0, Q), tl.arange(0, BN), tl.program_id(1) * BP + tl.arange(0, BP)
    n_mask, p_mask = n < N, p < P
    cell, inside = p[None, :] * N + n[:, None], n_mask[:, None] & p_mask[None, :]
    of_row = (row * heads + h).to(tl.int64) * P * N
    value += h * P
    key += (h // share) * N
    steps += h.to(tl.int64) * tokens
    decays += h.to(tl.int64) * tokens
    state = tl.zeros((BN, BP), dtype=tl.float32)
    if HAS_INITIAL:
        state = tl.load(initial + of_row + cell, mask=inside, other=0.0)
    first, last = tl.load(rows + row), tl.load(rows + row + 1)
    for turn in range(last - first):
        chunk = first + turn
        if REVERSE:
            chunk = last - 1 - turn
        start = tl.load(begin + chunk).to(tl.int64)
        size = (tl.load(begin + chunk + 1) - start).to(tl.int32)
        begins = tl.load(fresh + chunk) != 0
        if not REVERSE:
            state = tl.where(begins, 0.0, state)
        at = states + (chunk.to(tl.int64) * heads + h) * P * N
        tl.store(at + cell, state.to(states.dtype.element_ty), mask=inside)
        mask = q < size
        decay = tl.load(decays + start + q, mask=mask, other=0.0)
        total = tl.load(decays + start + size - 1)
        if REVERSE:
            weight = tl.where(mask, tl.exp(decay), 0.0)
        else:
            weight = tl.exp(total - decay) * tl.load(steps + start + q, mask=mask, other=0.0)
        keys = tl.load(
            key + start * stride_key + q[:, None] * stride_key + n[None, :],
            mask=mask[:, None] & n_mask[None, :], other=0.0,
        )  # fmt: skip
        values = tl.load(
            value + start * stride_value + q[:, None] * stride_value + p[None, :],
            mask=mask[:, None] & p_mask[None, :], other=0.0,
        )  # fmt: skip
        values = (values.to(tl.float32) * weight[:, None]).to(keys.dtype)
        state = state * tl.exp(total) + tl.dot(tl.trans(keys), values, input_precision=PRECISION)
        if REVERSE:
            state = tl.where(begins, 0.0, state)
    tl.store(final + of_row + cell, state, mask=inside)


@triton.jit
def _outputs(
    x, key, query, steps, decays, begin, states, D, y, stride, tokens, heads, share,
    P: tl.constexpr, N: tl.constexpr, HAS_D: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    chunk, h0 = tl.program_id(0), tl.program_id(1) * HEADS
    start = tl.load(begin + chunk).to(tl.int64)
    size = (tl.load(begin + chunk + 1) - start).to(tl.int32)
    q, n = tl.arange(0, Q), tl.arange(0, BN)
    mask, n_mask = q < size, n < N
    group = start * stride + (h0 // share) * N + q[:, None] * stride + n[None, :]
    keys = tl.load(key + group, mask=mask[:, None] & n_mask[None, :], other=0.0)
    queries = tl.load(query + group, mask=mask[:, None] & n_mask[None, :], other=0.0)
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    causal = q[:, None] >= q[None, :]
    for turn in range(HEADS):
        h = h0 + turn
        of_head = h.to(tl.int64) * tokens + start + q
        end = tl.load(decays + h.to(tl.int64) * tokens + start + size - 1)
        decay = tl.where(mask, tl.load(decays + of_head, mask=mask, other=0.0), end)  # no exponent above 0
        step = tl.load(steps + of_head, mask=mask, other=0.0)
        between = tl.exp(tl.where(causal, decay[:, None] - decay[None, :], float("-inf")))
        weights = (scores * between * step[None, :]).to(keys.dtype)
        from_start = tl.exp(decay)
        skip = 0.0
        if HAS_D:
            skip = tl.load(D + h)
        at = states + (chunk.to(tl.int64) * heads + h) * P * N
        for first in range(0, P, BP):
            p = first + tl.arange(0, BP)
            here = mask[:, None] & (p < P)[None, :]
            values = tl.load(x + start * stride + q[:, None] * stride + (h * P + p)[None, :], mask=here, other=0.0)
            state = tl.load(at + p[:, None] * N + n[None, :], mask=(p < P)[:, None] & n_mask[None, :], other=0.0)
            total = tl.dot(queries, tl.trans(state), input_precision=PRECISION) * from_start[:, None]
            total = tl.dot(weights, values, total, input_precision=PRECISION)
            if HAS_D:
                total += values.to(tl.float32) * skip
            out = (start + q)[:, None] * heads * P + (h * P + p)[None, :]
            tl.store(y + out, total.to(y.dtype.element_ty), mask=here)


@triton.jit
def _gradients(
    x, key, query, grad_y, steps, decays, begin, states, grads, D, grad_x, grad_scores, grad_steps, grad_decays,
    grad_D, stride, stride_grad_y, stride_out, tokens, heads, share,
    P: tl.constexpr, N: tl.constexpr, HAS_D: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """``grads`` are the gradients of the states that leave the chunks; ``grad_scores`` (Z, H / HEADS, Q, Q) those of
    C B summed over a part of a group's heads."""
    chunk, h0 = tl.program_id(0), tl.program_id(1) * HEADS
    start = tl.load(begin + chunk).to(tl.int64)
    size = (tl.load(begin + chunk + 1) - start).to(tl.int32)
    q, n = tl.arange(0, Q), tl.arange(0, BN)
    mask, n_mask = q < size, n < N
    in_group = mask[:, None] & n_mask[None, :]
    group = start * stride + (h0 // share) * N + q[:, None] * stride + n[None, :]
    keys = tl.load(key + group, mask=in_group, other=0.0)
    queries = tl.load(query + group, mask=in_group, other=0.0)
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    causal = q[:, None] >= q[None, :]
    of_scores = tl.zeros((Q, Q), dtype=tl.float32)
    for turn in range(HEADS):
        h = h0 + turn
        of_head = h.to(tl.int64) * tokens + start
        end = tl.load(decays + of_head + size - 1)
        decay = tl.where(mask, tl.load(decays + of_head + q, mask=mask, other=0.0), end)  # no exponent above 0
        step = tl.load(steps + of_head + q, mask=mask, other=0.0)
        between = tl.exp(tl.where(causal, decay[:, None] - decay[None, :], float("-inf")))
        weights = (scores * between).to(keys.dtype)
        from_start, to_end = tl.exp(decay), tl.where(mask, tl.exp(end - decay), 0.0)
        products = tl.zeros((Q, Q), dtype=tl.float32)  # y's gradient at t times x at s
        of_read = tl.zeros((Q,), dtype=tl.float32)
        of_left = tl.zeros((Q,), dtype=tl.float32)
        of_step = tl.zeros((Q,), dtype=tl.float32)
        of_total, of_skip, skip = 0.0, 0.0, 0.0
        if HAS_D:
            skip = tl.load(D + h)
        at = (chunk.to(tl.int64) * heads + h) * P * N
        for first in range(0, P, BP):
            p = first + tl.arange(0, BP)
            here, cells = mask[:, None] & (p < P)[None, :], (p < P)[:, None] & n_mask[None, :]
            channel = (h * P + p)[None, :]
            values = tl.load(x + start * stride + q[:, None] * stride + channel, mask=here, other=0.0)
            slopes = tl.load(
                grad_y + start * stride_grad_y + q[:, None] * stride_grad_y + channel, mask=here, other=0.0
            )
            entered = tl.load(states + at + p[:, None] * N + n[None, :], mask=cells, other=0.0)
            left = tl.load(grads + at + p[:, None] * N + n[None, :], mask=cells, other=0.0)
            wide_values, wide_slopes = values.to(tl.float32), slopes.to(tl.float32)
            products = tl.dot(slopes, tl.trans(values), products, input_precision=PRECISION)
            read = tl.dot(queries, tl.trans(entered), input_precision=PRECISION)
            of_read += tl.sum(wide_slopes * read, axis=1)
            back = tl.dot(keys, tl.trans(left), input_precision=PRECISION) * to_end[:, None]
            of_left += tl.sum(wide_values * back, axis=1)
            slope = tl.dot(tl.trans(weights), slopes, back, input_precision=PRECISION)
            of_step += tl.sum(wide_values * slope, axis=1)
            slope *= step[:, None]
            if HAS_D:
                slope += wide_slopes * skip
                of_skip += tl.sum(wide_slopes * wide_values)
            out = start * stride_out + q[:, None] * stride_out + channel
            tl.store(grad_x + out, slope.to(grad_x.dtype.element_ty), mask=here)
            of_total += tl.sum(entered.to(tl.float32) * left.to(tl.float32))
        of_left *= step
        products *= between * step[None, :]
        of_scores += products
        products *= scores
        of_decay = tl.sum(products, axis=1) - tl.sum(products, axis=0) + of_read * from_start - of_left
        of_decay += tl.where(q == size - 1, tl.sum(of_left) + tl.exp(end) * of_total, 0.0)
        tl.store(grad_steps + of_head + q, of_step, mask=mask)
        tl.store(grad_decays + of_head + q, of_decay, mask=mask)
        if HAS_D:
            tl.store(grad_D + chunk * heads + h, of_skip)
    part = chunk.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    to = grad_scores + part * Q * Q + q[:, None] * Q + q[None, :]
    tl.store(to, of_scores.to(grad_scores.dtype.element_ty))


@triton.jit
def _group_gradients(
    x, key, query, grad_y, steps, decays, begin, states, grads, grad_scores, grad_key, grad_query,
    stride, stride_grad_y, stride_group, of_split, tokens, heads, share,
    P: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The gradients of B and C go where ``stride_group`` (from token to token) and ``of_split`` (from one part of a
    group's heads to the next) say."""
    chunk, h0 = tl.program_id(0), tl.program_id(1) * HEADS
    start = tl.load(begin + chunk).to(tl.int64)
    size = (tl.load(begin + chunk + 1) - start).to(tl.int32)
    q, n = tl.arange(0, Q), tl.arange(0, BN)
    mask, n_mask = q < size, n < N
    of_keys = tl.zeros((Q, BN), dtype=tl.float32)
    of_queries = tl.zeros((Q, BN), dtype=tl.float32)
    for turn in range(HEADS):
        h = h0 + turn
        of_head = h.to(tl.int64) * tokens + start
        end = tl.load(decays + of_head + size - 1)
        decay = tl.load(decays + of_head + q, mask=mask, other=0.0)
        from_start = tl.exp(decay)
        to_end = tl.exp(end - decay) * tl.load(steps + of_head + q, mask=mask, other=0.0)
        at = (chunk.to(tl.int64) * heads + h) * P * N
        for first in range(0, P, BP):
            p = first + tl.arange(0, BP)
            here, cells = mask[:, None] & (p < P)[None, :], (p < P)[:, None] & n_mask[None, :]
            channel = (h * P + p)[None, :]
            values = tl.load(x + start * stride + q[:, None] * stride + channel, mask=here, other=0.0)
            slopes = tl.load(
                grad_y + start * stride_grad_y + q[:, None] * stride_grad_y + channel, mask=here, other=0.0
            )
            entered = tl.load(states + at + p[:, None] * N + n[None, :], mask=cells, other=0.0)
            left = tl.load(grads + at + p[:, None] * N + n[None, :], mask=cells, other=0.0)
            scaled = (slopes.to(tl.float32) * from_start[:, None]).to(entered.dtype)
            of_queries = tl.dot(scaled, entered, of_queries, input_precision=PRECISION)
            scaled = (values.to(tl.float32) * to_end[:, None]).to(entered.dtype)
            of_keys = tl.dot(scaled, left, of_keys, input_precision=PRECISION)
    in_group = mask[:, None] & n_mask[None, :]
    group = start * stride + (h0 // share) * N + q[:, None] * stride + n[None, :]
    keys = tl.load(key + group, mask=in_group, other=0.0)
    queries = tl.load(query + group, mask=in_group, other=0.0)
    part = chunk.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    of_scores = tl.load(grad_scores + part * Q * Q + q[:, None] * Q + q[None, :])
    of_queries = tl.dot(of_scores, keys, of_queries, input_precision=PRECISION)
    of_keys = tl.dot(tl.trans(of_scores), queries, of_keys, input_precision=PRECISION)
    to = start * stride_group + (h0 // share) * N + q[:, None] * stride_group + n[None, :]
    to += (h0 % share // HEADS).to(tl.int64) * of_split
    tl.store(grad_key + to, of_keys.to(grad_key.dtype.element_ty), mask=in_group)
    tl.store(grad_query + to, of_queries.to(grad_query.dtype.element_ty), mask=in_group)


@triton.jit
def _time_steps(
    A, begin, steps, grad_steps, grad_decays, grad_dt, grad_A, tokens, heads, Q: tl.constexpr, BH: tl.constexpr
):
    chunk = tl.program_id(0)
    start = tl.load(begin + chunk)
    size = tl.load(begin + chunk + 1) - start
    q, h = tl.arange(0, Q), tl.program_id(1) * BH + tl.arange(0, BH)
    mask = (q < size)[:, None] & (h < heads)[None, :]
    at = start.to(tl.int64) + q
    source = h.to(tl.int64)[None, :] * tokens + at[:, None]
    of_decay = tl.load(grad_decays + source, mask=mask, other=0.0)
    later = tl.sum(of_decay, axis=0)[None, :] - tl.cumsum(of_decay, axis=0) + of_decay
    step = tl.load(steps + source, mask=mask, other=0.0)
    of_step = tl.load(grad_steps + source, mask=mask, other=0.0)
    of_step += later * tl.load(A + h, mask=h < heads, other=0.0)[None, :]
    tl.store(grad_dt + at[:, None] * heads + h[None, :], of_step, mask=mask)
    tl.store(grad_A + chunk * heads + h, tl.sum(later * step, axis=0), mask=h < heads)


class _Plan:
    """The launches of one scan: shapes, chunks and the blocks of programs."""

    def __init__(self, channels: Tensor, heads: int, head_dim: int, size: int, documents: Documents | None) -> None:
        batch, length, width = channels.shape
        self.batch, self.length, self.heads, self.P, self.N = batch, length, heads, head_dim, size
        self.inner, self.tokens = heads * head_dim, batch * length
        self.channels = _flat(channels)
        self.stride = self.channels.stride(0)
        self.groups = (width - self.inner) // 2 // size
        self.share = heads // self.groups
        self.part = math.gcd(self.share, HEADS)
        self.Q = chunk_length(size)
        if documents is None:
            self.chunks = plain_chunks(self.Q, batch, length, channels.device)
        else:
            self.chunks = documents.chunks(self.Q, batch)
        self.precision = "tf32x3" if channels.dtype == torch.float32 else "tf32"
        self.dtype, self.device = channels.dtype, channels.device

    def block(self, kernel: str) -> dict[str, int]:
        """Constants of a launch."""
        block = BLOCKS[kernel]
        found = {"Q": self.Q, "BP": block.channels, "BN": max(16, triton.next_power_of_2(self.N))}
        found |= {"num_warps": block.warps, "num_stages": block.stages}
        return found | ({"maxnreg": block.registers} if block.registers else {})

    def split(self, channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, B and C as views."""
        x, key, query = channels.split([self.inner, self.groups * self.N, self.groups * self.N], dim=-1)
        return x, key, query

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def decays(self, dt_BTH: Tensor, A_H: Tensor) -> tuple[Tensor, Tensor]:
        """Time steps and summed decays, both (H, M)."""
        steps, decays = self.empty(self.heads, self.tokens), self.empty(self.heads, self.tokens)
        _decays[(self.chunks.count, triton.cdiv(self.heads, 32))](
            dt_BTH, A_H, self.chunks.begin, steps, decays, self.tokens, self.heads, self.Q, 32
        )
        return steps, decays

    def states(
        self, value: Tensor, key: Tensor, decays: tuple[Tensor, Tensor], initial: Tensor | None, reverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The states between chunks (Z, H, P, N) in the inputs' dtype, and the last one (B, H, P, N) in fp32."""
        states = self.empty(self.chunks.count, self.heads, self.P, self.N, dtype=self.dtype)
        final = self.empty(self.batch, self.heads, self.P, self.N)
        _states[(self.heads, triton.cdiv(self.P, BLOCKS["states"].channels), self.batch)](
            value, key, *decays, self.chunks.begin, self.chunks.fresh, self.chunks.rows, initial, states, final,
            value.stride(0), key.stride(0), self.tokens, self.heads, self.share, self.P, self.N,
            initial is not None, reverse, self.precision, **self.block("states"),
        )  # fmt: skip
        return states, final


def _flat(tensor: Tensor) -> Tensor:
    """(B, T, D) as (M, D) with adjacent channels, without a copy where strides allow."""
    flat = tensor.flatten(0, 1)
    return flat if flat.stride(1) == 1 else flat.contiguous()


def forward(
    channels: Tensor, dt_BTH: Tensor, A_H: Tensor, D_H: Tensor | None, initial: Tensor | None,
    documents: Documents | None, head_dim: int, size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B, T, H P) in the channels' dtype and the last state (B, H, P, N) in fp32 from ``channels`` (B, T, D): x, B
    and C side by side. ``dt``, ``A``, ``D`` and ``initial`` are fp32 and contiguous."""
    plan = _Plan(channels, len(A_H), head_dim, size, documents)
    x, key, query = plan.split(plan.channels)
    decays = plan.decays(dt_BTH, A_H)
    states, final = plan.states(x, key, decays, initial)
    y = plan.empty(plan.batch, plan.length, plan.inner, dtype=plan.dtype)
    _outputs[(plan.chunks.count, plan.heads // plan.part)](
        x, key, query, *decays, plan.chunks.begin, states, D_H, y, plan.stride, plan.tokens, plan.heads, plan.share,
        plan.P, plan.N, D_H is not None, plan.precision, plan.part, **plan.block("outputs"),
    )  # fmt: skip
    return y, final


def backward(
    grad_y: Tensor, grad_final: Tensor, channels: Tensor, dt_BTH: Tensor, A_H: Tensor, D_H: Tensor | None,
    initial: Tensor | None, documents: Documents | None, head_dim: int, size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Gradients of :func:`forward`'s channels, dt, A, D and initial state. States are computed again."""
    plan, grad_y = _Plan(channels, len(A_H), head_dim, size, documents), _flat(grad_y)
    x, key, query = plan.split(plan.channels)
    decays = plan.decays(dt_BTH, A_H)
    states, _ = plan.states(x, key, decays, initial)
    grads, grad_initial = plan.states(grad_y, query, decays, grad_final.contiguous(), reverse=True)
    out = plan.empty(*channels.shape, dtype=plan.dtype)
    grad_x, grad_key, grad_query = plan.split(out)
    splits = plan.share // plan.part
    if splits > 1:
        parts = plan.empty(2, splits, plan.tokens, plan.groups * plan.N)
        grad_key, grad_query = parts
    grad_steps, grad_decays = plan.empty(plan.heads, plan.tokens), plan.empty(plan.heads, plan.tokens)
    by_chunk = plan.empty(2, plan.chunks.count, plan.heads)
    grid = (plan.chunks.count, plan.heads // plan.part)
    grad_scores = plan.empty(*grid, plan.Q, plan.Q, dtype=plan.dtype)
    _gradients[grid](
        x, key, query, grad_y, *decays, plan.chunks.begin, states, grads, D_H, grad_x, grad_scores, grad_steps,
        grad_decays, by_chunk[0], plan.stride, grad_y.stride(0), out.stride(1), plan.tokens, plan.heads, plan.share,
        plan.P, plan.N, D_H is not None, plan.precision, plan.part, **plan.block("gradients"),
    )  # fmt: skip
    _group_gradients[grid](
        x, key, query, grad_y, *decays, plan.chunks.begin, states, grads, grad_scores, grad_key, grad_query,
        plan.stride, grad_y.stride(0), grad_key.stride(-2), grad_key.stride(0) if splits > 1 else 0, plan.tokens,
        plan.heads, plan.share, plan.P, plan.N, plan.precision, plan.part, **plan.block("group_gradients"),
    )  # fmt: skip
    if splits > 1:
        out[..., plan.inner :] = parts.sum(1).movedim(0, 1).reshape(plan.batch, plan.length, -1)
    grad_dt = torch.empty_like(dt_BTH)
    _time_steps[(plan.chunks.count, triton.cdiv(plan.heads, 32))](
        A_H, plan.chunks.begin, decays[0], grad_steps, grad_decays, grad_dt, by_chunk[1], plan.tokens, plan.heads,
        plan.Q, 32,
    )  # fmt: skip
    grad_D, grad_A = by_chunk.sum(1)
    return out, grad_dt, grad_A, None if D_H is None else grad_D, grad_initial


class SavedScan(torch.autograd.Function):
    """Saves what the scan's backward pass reads, before the scan runs, so that a checkpoint's recomputation ends here.

    Returns two tensors without memory, which stand for the scan's outputs until :class:`Scan` computes them.
    """

    @staticmethod
    def forward(
        ctx: Any, channels: Tensor, dt_BTH: Tensor, A_H: Tensor, D_H: Tensor | None, initial: Tensor | None,
        documents: Documents | None, head_dim: int, size: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.others = (documents, head_dim, size)
        ctx.save_for_backward(channels, dt_BTH, A_H, D_H, initial)
        batch, length, _ = channels.shape
        state = dt_BTH.new_empty(()).expand(batch, len(A_H), head_dim, size)
        return channels.new_empty(()).expand(batch, length, len(A_H) * head_dim), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint gives them no second time
        grads = backward(grad_y, grad_state, *saved, *ctx.others)
        return *grads[:4], None if saved[4] is None else grads[4], None, None, None


class Scan(torch.autograd.Function):
    """Computes what :class:`SavedScan` promised; its gradients pass through to it."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, state: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
        ctx.inputs = len(inputs)
        return forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        return grad_y, grad_state, *[None] * ctx.inputs
