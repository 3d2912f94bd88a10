"""The divergence of a student's next-token distributions from a teacher's, without either's logits.

Two models' logits at 131,072 tokens and a vocabulary of 131,072 would take 128 GiB. As in :mod:`models.loss`, a tile of
both becomes loss and gradient at once, in the forward pass, and is dropped. What is kept of the teacher is its last
hidden states.

Shapes: B rows, T tokens, N tokens that count, L of a tile, V vocabulary, D and E hidden sizes of student and teacher.
"""

import functools
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from nanoalign.models.labels import IGNORED, next_labels
from nanoalign.models.loss import TiledHead, linear_head, product, product_dtype


@dataclass(frozen=True)
class Divergence:
    """The loss of a token: ``(1 - cross_entropy) temperature² KL + cross_entropy CE``.

    KL is the forward one, KL(teacher || student) of both softmaxes at ``temperature``, whose square keeps gradients as
    large at any temperature (Hinton et al. 2015, arXiv 1503.02531). CE is the label's, at temperature 1.

    With ``top_k`` the teacher's ``top_k`` likeliest tokens are told apart and all others are one outcome, of the mass
    that is left, on both sides: a true divergence, 0 only where the student has the right mass on each and on the tail.
    Renormalizing the teacher over its top k instead gives the student a biased target, which makes it overconfident
    (Anshumann et al. 2025, arXiv 2503.16870).
    """

    temperature: float = 1.0
    top_k: int | None = None
    cross_entropy: float = 0.0


@dataclass
class DivergenceOutput(ModelOutput):
    """Sums over the tokens that count, in fp32."""

    loss: Tensor | None = None
    """Of :class:`Divergence`; the only one with a gradient."""
    kl: Tensor | None = None
    """KL at the temperature, not scaled by its square."""
    nll: Tensor | None = None
    """Cross entropy of the labels at temperature 1."""
    tokens: Tensor | None = None
    """How many count."""


def linear_divergence(
    hidden_ND: Tensor, weight_VD: Tensor, teacher_NE: Tensor, teacher_VE: Tensor, labels_N: Tensor,
    divergence: Divergence, tile: int = 1024,
) -> Tensor:  # fmt: skip
    """Sums (loss, kl, nll) of :class:`DivergenceOutput` over N tokens, all of which count, in fp32.

    Equal to ``F.kl_div`` and ``F.cross_entropy`` on whole logits up to rounding; at most ``tile`` tokens' logits of
    each model exist at a time. Under autocast the student's products run in its dtype, the teacher's in its states'.
    Gradients of the loss flow to ``hidden`` and ``weight``, once.
    """
    shapes = [tuple(each.shape) for each in (hidden_ND, weight_VD, teacher_NE, teacher_VE, labels_N)]
    (n, d), (v, d2), (n2, e), (v2, e2), (n3,) = shapes
    if (n, n, d, v, e) != (n2, n3, d2, v2, e2):
        names = "hidden (N, D), weight (V, D), teacher's (N, E) and (V, E), labels (N,)"
        raise ValueError(f"expected {names}, got {shapes}")

    dtype = product_dtype(hidden_ND)

    def judge(rows: slice, logits_LV: Tensor, with_grads: bool) -> tuple[Tensor, Tensor]:
        teacher_LV = product(teacher_NE[rows], teacher_VE.T, exact=True)
        return _sums_and_grads(logits_LV, teacher_LV, labels_N[rows], divergence, with_grads, dtype)

    sums: Tensor = TiledHead.apply(hidden_ND, weight_VD, judge, tile, True)
    return sums


def _sums_and_grads(
    logits_LV: Tensor, teacher_LV: Tensor, labels_L: Tensor, divergence: Divergence, with_grads: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A tile's sums (loss, kl, nll), and the loss's gradient with respect to the student's logits, in ``dtype``."""
    top_k = divergence.top_k if divergence.top_k is not None and divergence.top_k < logits_LV.shape[1] else None
    tau, share = divergence.temperature, divergence.cross_entropy
    if logits_LV.is_cuda and top_k is None:
        from nanoalign.models.triton_divergence import kl_and_grads

        kl_L, nll_L, grad_LV = kl_and_grads(logits_LV, teacher_LV, labels_L, tau, share, dtype if with_grads else None)
    else:
        kl_L, nll_L, grad_LV = _plain(logits_LV, teacher_LV, labels_L, tau, top_k, share, with_grads)
    kl, nll = kl_L.sum(), nll_L.sum()
    return torch.stack([(1 - share) * tau**2 * kl + share * nll, kl, nll]), grad_LV.to(dtype)


def _plain(
    logits_LV: Tensor, teacher_LV: Tensor, labels_L: Tensor, tau: float, top_k: int | None, share: float,
    with_grads: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Each token's KL and cross entropy, and their gradient, with torch's own functions."""
    wide = torch.promote_types(logits_LV.dtype, torch.float32)
    logits_LV, target_L1 = logits_LV.to(wide), labels_L.unsqueeze(1)
    log_q_LV, log_p_LV = (logits_LV / tau).log_softmax(1), (teacher_LV.to(wide) / tau).log_softmax(1)
    log_1_LV = log_q_LV if tau == 1 else logits_LV.log_softmax(1)
    nll_L = -log_1_LV.gather(1, target_L1).squeeze(1)
    if top_k is None:
        p_LV, q_LV = log_p_LV.exp(), log_q_LV.exp()
        kl_L, grad_LV = (p_LV * (log_p_LV - log_q_LV)).sum(1), q_LV - p_LV
    else:
        log_p_LK, top_LK = log_p_LV.topk(top_k, 1)
        log_q_LK, p_LK, q_LV = log_q_LV.gather(1, top_LK), log_p_LK.exp(), log_q_LV.exp()
        tail_p_L1, tail_q_L1 = (  # of what is not among the top: no cancellation as in 1 - sum
            log_LV.scatter(1, top_LK, -torch.inf).logsumexp(1, keepdim=True) for log_LV in (log_p_LV, log_q_LV)
        )
        kl_L = (p_LK * (log_p_LK - log_q_LK)).sum(1) + (tail_p_L1.exp() * (tail_p_L1 - tail_q_L1)).squeeze(1)
        grad_LV = q_LV - (log_q_LV + tail_p_L1 - tail_q_L1).exp()  # the tail: q less its share of the teacher's tail
        grad_LV.scatter_(1, top_LK, q_LV.gather(1, top_LK) - p_LK)
    if with_grads:
        grad_LV = grad_LV.mul_((1 - share) * tau)
        if share:
            more_LV = log_1_LV.exp()
            grad_LV += share * more_LV.scatter_add_(1, target_L1, torch.full_like(nll_L, -1.0).unsqueeze(1))
    return kl_L, nll_L, grad_LV


class Teacher:
    """A frozen model, in eval mode, whose distributions a student learns.

    The student may be on another device: the teacher's states go there, and a copy of its head is there.
    """

    def __init__(self, model: PreTrainedModel, student_device: torch.device) -> None:
        """Raises ConfigError where ``model`` does more to its logits than a linear head."""
        self.model: Any = model.eval().requires_grad_(False)
        self.device = student_device
        self.head_VE = linear_head(model).detach().to(student_device)
        """Its head's weight, on the student's device."""

    # Not inference mode: what chunks of a pack are found to be (models.chunks) is kept for the student's gradients.
    @torch.no_grad()
    def states(self, **inputs: Any) -> Tensor:
        """Its last hidden states (B, T, E) for a batch, in its own dtype, on the student's device."""
        with torch.autocast(self.model.device.type, enabled=False):
            states: Tensor = self.model.base_model(**self.here(inputs)).last_hidden_state
        return states.to(self.device)

    def here(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A batch on the teacher's own device."""
        return {name: each.to(self.model.device) if isinstance(each, Tensor) else each for name, each in inputs.items()}


def add_divergence(model: PreTrainedModel, divergence: Divergence, tile: int = 1024) -> None:
    """Makes ``model(**inputs, labels=..., teacher_states=(B, T, E), teacher_head=(V, E))`` return a
    :class:`DivergenceOutput`; other calls are as before. ``labels`` are not shifted, ``shift_labels`` are.

    The loss is computed inside the model's forward, so that what wraps the model (DDP, ZeRO-3, peft, autocast) does its
    part. Call it before peft wraps the model, or with peft's base model; a call may bring a ``divergence`` of its own.

    Raises:
        ConfigError: it does more to its logits than a linear head.
    """
    linear_head(model)
    inner = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel, *args: Any, teacher_states: Tensor | None = None, teacher_head: Tensor | None = None,
        divergence: Divergence = divergence, **kwargs: Any,
    ) -> Any:  # fmt: skip
        if teacher_states is None or teacher_head is None:
            return inner(*args, **kwargs)
        labels, shifted = kwargs.pop("labels", None), kwargs.pop("shift_labels", None)
        if shifted is None:
            shifted = next_labels(labels)
        hidden_BTD = self.base_model(*args, **kwargs).last_hidden_state
        counted = (shifted != IGNORED).flatten().nonzero().flatten()
        loss, kl, nll = linear_divergence(
            hidden_BTD.flatten(0, 1)[counted], linear_head(self), teacher_states.flatten(0, 1)[counted], teacher_head,
            shifted.flatten()[counted], divergence, tile,
        )  # fmt: skip
        tokens = torch.tensor(len(counted), device=loss.device)
        return DivergenceOutput(loss=loss, kl=kl.detach(), nll=nll.detach(), tokens=tokens)

    model.forward = types.MethodType(forward, model)
