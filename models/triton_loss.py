"""Cross entropy of a row of logits and its gradient, in place: two reads and one write, in Triton. CUDA only.

Shapes: L rows (tokens), V vocabulary.
"""

# mypy: disable-error-code="no-untyped-def"
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Logits of a row held at once."""


@triton.jit
def _grads(logits, labels, losses, vocabulary, IGNORED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    counted = label != IGNORED
    logits += row * vocabulary
    target = tl.load(logits + tl.where(counted, label, 0)).to(tl.float32)  # before anything is overwritten
    peak, total = -float("inf"), 0.0
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(logits + at, mask=at < vocabulary, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(value, axis=0))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(value - higher), axis=0)
        peak = higher
    norm = peak + tl.log(total)
    tl.store(losses + row, tl.where(counted, norm - target, 0.0))
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(logits + at, mask=at < vocabulary, other=-float("inf")).to(tl.float32)
        grad = tl.exp(value - norm)
        grad = tl.where(at == label, grad - 1.0, grad)
        tl.store(logits + at, tl.where(counted, grad, 0.0), mask=at < vocabulary)


def losses_and_grads(logits_LV: Tensor, labels_L: Tensor, ignored: int) -> Tensor:
    """Each row's cross entropy in fp32 (L,), 0 where the label is ``ignored``; ``logits_LV`` become their gradient."""
    losses_L = torch.empty(len(labels_L), dtype=torch.float32, device=logits_LV.device)
    _grads[(len(labels_L),)](
        logits_LV, labels_L.contiguous(), losses_L, logits_LV.shape[1], ignored, BLOCK, num_warps=8
    )
    return losses_L
