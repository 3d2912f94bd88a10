"""KL of two models' rows of logits, with its gradient, in Triton: two reads of each and one write. CUDA only.

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
def _divergence(
    student, teacher, labels, kls, nlls, grads, vocabulary, inv_tau, kl_scale, share,
    PLAIN: tl.constexpr, GRADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    student += row * vocabulary
    teacher += row * vocabulary
    grads += row * vocabulary
    target = tl.load(student + label).to(tl.float32)
    # running maxima and sums: of the student and the teacher at the temperature, of the student at temperature 1
    s_top, s_sum, t_top, t_sum, gap = -float("inf"), 0.0, -float("inf"), 0.0, 0.0
    one_top, one_sum = -float("inf"), 0.0
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < vocabulary
        raw = tl.load(student + at, mask=inside, other=-1e30).to(tl.float32)
        s = raw * inv_tau
        t = tl.load(teacher + at, mask=inside, other=-1e30).to(tl.float32) * inv_tau
        higher = tl.maximum(s_top, tl.max(s, axis=0))
        s_sum = s_sum * tl.exp(s_top - higher) + tl.sum(tl.exp(s - higher), axis=0)
        s_top = higher
        higher = tl.maximum(t_top, tl.max(t, axis=0))
        scale, p = tl.exp(t_top - higher), tl.exp(t - higher)
        t_sum = t_sum * scale + tl.sum(p, axis=0)
        gap = gap * scale + tl.sum(tl.where(inside & (p > 0), p * (t - s), 0.0), axis=0)
        t_top = higher
        if not PLAIN:
            higher = tl.maximum(one_top, tl.max(raw, axis=0))
            one_sum = one_sum * tl.exp(one_top - higher) + tl.sum(tl.exp(raw - higher), axis=0)
            one_top = higher
    s_norm = s_top + tl.log(s_sum)
    t_norm = t_top + tl.log(t_sum)
    if PLAIN:
        one_norm = s_norm
    else:
        one_norm = one_top + tl.log(one_sum)
    tl.store(kls + row, gap / t_sum - t_norm + s_norm)
    tl.store(nlls + row, one_norm - target)
    if GRADS:
        for start in range(0, vocabulary, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < vocabulary
            raw = tl.load(student + at, mask=inside, other=-1e30).to(tl.float32)
            t = tl.load(teacher + at, mask=inside, other=-1e30).to(tl.float32) * inv_tau
            grad = kl_scale * (tl.exp(raw * inv_tau - s_norm) - tl.exp(t - t_norm))
            grad += share * (tl.exp(raw - one_norm) - tl.where(at == label, 1.0, 0.0))
            tl.store(grads + at, grad, mask=inside)


def kl_and_grads(
    student_LV: Tensor, teacher_LV: Tensor, labels_L: Tensor, tau: float, share: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's KL(teacher || student) at temperature ``tau`` and cross entropy at 1, in fp32 (L,), and the gradient
    of ``(1 - share) tau² KL + share CE`` with respect to the student's logits, in ``dtype``; without one the student's
    logits as they are."""
    rows, vocabulary = student_LV.shape
    kl_L, nll_L = (torch.empty(rows, dtype=torch.float32, device=student_LV.device) for _ in range(2))
    grad_LV = student_LV if dtype is None else torch.empty_like(student_LV, dtype=dtype)
    if rows:
        _divergence[(rows,)](
            student_LV, teacher_LV, labels_L.contiguous(), kl_L, nll_L, grad_LV, vocabulary, 1 / tau,
            (1 - share) * tau, share, tau == 1, dtype is not None, BLOCK, num_warps=8,
        )  # fmt: skip
    return kl_L, nll_L, grad_LV
