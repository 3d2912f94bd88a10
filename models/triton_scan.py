"""The state-space scan of Mamba-2 in Triton, forward and backward, in chunks that never cross a document. CUDA only.

The chunked form of structured state-space duality (Dao and Gu 2024, arXiv 2405.21060, section 6). Chunks restart at
every document (:mod:`models.chunks`), so that no term of one document enters a sum of another, and a document's values
are the same bits wherever it is in a pack. The state between chunks stays in registers in fp32 and is stored once for
each chunk, rounded to the inputs' dtype, as the products that read it would round it anyway.

Shapes: B batch, T tokens, M = B T tokens of all rows, H heads, P channels of a head, G groups of heads, N state size,
D = H P + 2 G N channels, Z chunks, Q tokens of a chunk.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanoalign.models import triton_scan_kernels as kernels
from nanoalign.models.chunks import LONGEST, PackLayout, plain_chunks
from nanoalign.models.deferred import placeholder


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


class _Plan:
    """The launches of one scan: shapes, chunks and the blocks of programs."""

    def __init__(self, channels: Tensor, heads: int, head_dim: int, size: int, documents: PackLayout | None) -> None:
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
        stages = 1 if self.dtype == torch.float32 else block.stages  # its operands take twice the shared memory
        found |= {"num_warps": block.warps, "num_stages": stages}
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
        kernels.decays[(self.chunks.count, triton.cdiv(self.heads, 32))](
            dt_BTH, A_H, self.chunks.begin, steps, decays, self.tokens, self.heads, self.Q, 32
        )
        return steps, decays

    def states(
        self, value: Tensor, key: Tensor, decays: tuple[Tensor, Tensor], initial: Tensor | None, reverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The states between chunks (Z, H, P, N) in the inputs' dtype, and the last one (B, H, P, N) in fp32."""
        states = self.empty(self.chunks.count, self.heads, self.P, self.N, dtype=self.dtype)
        final = self.empty(self.batch, self.heads, self.P, self.N)
        kernels.states[(self.heads, triton.cdiv(self.P, BLOCKS["states"].channels), self.batch)](
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
    documents: PackLayout | None, head_dim: int, size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B, T, H P) in the channels' dtype and the last state (B, H, P, N) in fp32 from ``channels`` (B, T, D): x, B
    and C side by side. ``dt``, ``A``, ``D`` and ``initial`` are fp32 and contiguous."""
    plan = _Plan(channels, len(A_H), head_dim, size, documents)
    x, key, query = plan.split(plan.channels)
    decays = plan.decays(dt_BTH, A_H)
    states, final = plan.states(x, key, decays, initial)
    y = plan.empty(plan.batch, plan.length, plan.inner, dtype=plan.dtype)
    kernels.outputs[(plan.chunks.count, plan.heads // plan.part)](
        x, key, query, *decays, plan.chunks.begin, states, D_H, y, plan.stride, plan.tokens, plan.heads, plan.share,
        plan.P, plan.N, D_H is not None, plan.precision, plan.part, **plan.block("outputs"),
    )  # fmt: skip
    return y, final


def backward(
    grad_y: Tensor, grad_final: Tensor, channels: Tensor, dt_BTH: Tensor, A_H: Tensor, D_H: Tensor | None,
    initial: Tensor | None, documents: PackLayout | None, head_dim: int, size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Gradients of :func:`forward`'s channels, dt, A, D and initial state. States are recomputed."""
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
    kernels.gradients[grid](
        x, key, query, grad_y, *decays, plan.chunks.begin, states, grads, D_H, grad_x, grad_scores, grad_steps,
        grad_decays, by_chunk[0], plan.stride, grad_y.stride(0), out.stride(1), plan.tokens, plan.heads, plan.share,
        plan.P, plan.N, D_H is not None, plan.precision, plan.part, **plan.block("gradients"),
    )  # fmt: skip
    kernels.group_gradients[grid](
        x, key, query, grad_y, *decays, plan.chunks.begin, states, grads, grad_scores, grad_key, grad_query,
        plan.stride, grad_y.stride(0), grad_key.stride(-2), grad_key.stride(0) if splits > 1 else 0, plan.tokens,
        plan.heads, plan.share, plan.P, plan.N, plan.precision, plan.part, **plan.block("group_gradients"),
    )  # fmt: skip
    if splits > 1:
        out[..., plan.inner :] = parts.sum(1).movedim(0, 1).reshape(plan.batch, plan.length, -1)
    grad_dt = torch.empty_like(dt_BTH)
    kernels.time_steps[(plan.chunks.count, triton.cdiv(plan.heads, 32))](
        A_H, plan.chunks.begin, decays[0], grad_steps, grad_decays, grad_dt, by_chunk[1], plan.tokens, plan.heads,
        plan.Q, 32,
    )  # fmt: skip
    grad_D, grad_A = by_chunk.sum(1)
    return out, grad_dt, grad_A, None if D_H is None else grad_D, grad_initial


class Scan(torch.autograd.Function):
    """:func:`forward`'s results as placeholders (:mod:`models.deferred`), and their gradients."""

    @staticmethod
    def forward(
        ctx: Any, channels: Tensor, dt_BTH: Tensor, A_H: Tensor, D_H: Tensor | None, initial: Tensor | None,
        documents: PackLayout | None, head_dim: int, size: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.others = (documents, head_dim, size)
        ctx.save_for_backward(channels, dt_BTH, A_H, D_H, initial)
        batch, length, _ = channels.shape
        y = placeholder(channels, batch, length, len(A_H) * head_dim)
        return y, placeholder(dt_BTH, batch, len(A_H), head_dim, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpointing does not return them a second time
        grads = backward(grad_y, grad_state, *saved, *ctx.others)
        return *grads[:4], None if saved[4] is None else grads[4], None, None, None
