"""Cross entropy of a linear head over a long sequence, without its logits.

At 131,072 tokens and a vocabulary of 131,072 the logits alone would take 64 GiB. Tile by tile, logits become loss and
gradients at once, in the forward pass (the idea of Liger-Kernel's fused linear cross entropy), and are dropped.

Shapes: N tokens, D hidden size, V vocabulary, L tokens of a tile.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from nanoalign.common.errors import ConfigError
from nanoalign.models.labels import IGNORED, next_labels

SCALED = ("logits_scaling", "lm_head_multiplier", "final_logit_softcapping", "logit_scale", "output_multiplier")
"""Configuration keys of models that do more to their logits than a linear head."""


Judge = Callable[[slice, Tensor, bool], tuple[Tensor, Tensor]]
"""Of the logits (L, V) of the tokens in a slice: sums over them (K,) in fp32, and, where the flag asks for it, the
gradient (L, V) of the first sum with respect to the logits. It may overwrite the logits."""


class TiledHead(torch.autograd.Function):
    """What a judge says of a linear head's logits, summed over all tokens (K,), tile by tile; the first sum has a
    gradient, which the forward pass computes. Under autocast products run in its dtype.

    ``TiledHead.apply(hidden_ND, weight_VD, judge, tile, exact)``; ``exact`` leaves half precision's logits and
    the head's gradient in fp32, as they are added up, where a GPU can.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, judge: Judge, tile: int, exact: bool = False) -> Tensor:
        # Autocast is applied by hand: it would keep a cast copy of an fp32 head for every tile's product.
        dtype = product_dtype(hidden_ND)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_ND = torch.zeros_like(hidden_ND) if wants_hidden else None
        grad_VD = (
            torch.zeros(weight_VD.shape, dtype=torch.promote_types(dtype, torch.float32), device=weight_VD.device)
            if wants_weight
            else None
        )
        head_VD = weight_VD.to(dtype)
        sums_K: Tensor | None = None
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, max(1, len(hidden_ND)), tile):
                rows = slice(start, start + tile)
                tokens_LD = hidden_ND[rows].to(dtype)
                found_K, grad_LV = judge(rows, product(tokens_LD, head_VD.T, exact), wants_hidden or wants_weight)
                sums_K = found_K if sums_K is None else sums_K + found_K
                if grad_ND is not None:
                    grad_ND[rows] = (grad_LV @ head_VD).to(grad_ND.dtype)
                if grad_VD is not None:
                    add_product(grad_VD, grad_LV.T, tokens_LD, exact)
        ctx.grads = grad_ND, None if grad_VD is None else grad_VD.to(weight_VD.dtype)
        assert sums_K is not None
        return sums_K

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scales_K: Tensor) -> tuple[Tensor | None, ...]:
        (grad_ND, grad_VD), ctx.grads = ctx.grads, None  # scaled in place, so backward runs only once
        for grad in (grad_ND, grad_VD):
            if grad is not None:
                grad.mul_(scales_K[0].to(grad.dtype))
        return grad_ND, grad_VD, None, None, None


def product_dtype(of: Tensor | PreTrainedModel) -> torch.dtype:
    """That of products with a tensor, or of a model's: autocast's where it is on."""
    kind = of.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else of.dtype


def product(a: Tensor, b: Tensor, exact: bool) -> Tensor:
    """``a @ b``; with ``exact`` half precision's sums stay in fp32, where a GPU can."""
    return torch.mm(a, b, out_dtype=torch.float32) if exact and _halves(a) else a @ b


def add_product(total: Tensor, a: Tensor, b: Tensor, exact: bool) -> None:
    """``total += a @ b`` for an fp32 total; with ``exact`` the product is not rounded before it is added: hundreds of
    tiles' roundings would add up."""
    if exact and _halves(a):
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total += a @ b


def _halves(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)


def _losses_and_grads(logits_LV: Tensor, labels_L: Tensor, with_grads: bool) -> tuple[Tensor, Tensor]:
    """Each token's cross entropy in fp32, 0 where it does not count, and, where ``with_grads``, its gradient, in
    the logits' dtype; else a tensor of the logits' shape."""
    if _halves(logits_LV):
        from nanoalign.models.triton_loss import losses_and_grads

        return losses_and_grads(logits_LV, labels_L, IGNORED), logits_LV
    dtype = logits_LV.dtype
    counted_L1 = (labels_L != IGNORED).unsqueeze(1)
    target_L1 = labels_L.unsqueeze(1).masked_fill(~counted_L1, 0)
    logits_LV = logits_LV.float()
    norm_L1 = logits_LV.logsumexp(1, keepdim=True)
    losses_L1 = (norm_L1 - logits_LV.gather(1, target_L1)) * counted_L1
    if not with_grads:
        return losses_L1.squeeze(1), logits_LV
    grad_LV = logits_LV.sub_(norm_L1).exp_()
    grad_LV.scatter_add_(1, target_L1, torch.full_like(norm_L1, -1.0)).mul_(counted_L1)
    return losses_L1.squeeze(1), grad_LV.to(dtype)


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, tile: int = 1024) -> Tensor:
    """The summed cross entropy of ``hidden @ weight.T`` against ``labels`` (-100 does not count), in fp32.

    Equal to ``F.cross_entropy(..., reduction="sum")`` up to rounding; at most ``tile`` tokens' logits exist at a time.
    Under autocast products run in its dtype. Gradients flow to ``hidden`` and ``weight``, once.
    """
    if hidden_ND.shape[:1] != labels_N.shape or hidden_ND.shape[1:] != weight_VD.shape[1:]:
        shapes = f"{tuple(hidden_ND.shape)}, {tuple(weight_VD.shape)}, {tuple(labels_N.shape)}"
        raise ValueError(f"expected hidden (N, D), weight (V, D) and labels (N,), got {shapes}")

    def judge(rows: slice, logits_LV: Tensor, with_grads: bool) -> tuple[Tensor, Tensor]:
        losses_L, grad_LV = _losses_and_grads(logits_LV, labels_N[rows], with_grads)
        return losses_L.sum().unsqueeze(0), grad_LV

    total: Tensor = TiledHead.apply(hidden_ND, weight_VD, judge, tile)[0]
    return total


def causal_loss(
    model: PreTrainedModel, labels: Tensor, num_items: Tensor | int | None = None, tile: int = 1024, **inputs: Any
) -> Tensor:
    """The loss that ``model(labels=labels, **inputs)`` has, without logits: the mean over the next tokens that count.

    ``labels`` (B, T) are not shifted; ``num_items`` replaces their count as the divisor (gradient accumulation).

    Raises:
        ConfigError: the model scales or caps its logits.
    """
    weight_VD = linear_head(model)
    hidden_BTD = model.base_model(**inputs).last_hidden_state
    shifted = next_labels(labels).flatten()
    total = linear_cross_entropy(hidden_BTD.flatten(0, 1), weight_VD, shifted, tile)
    return total / ((shifted != IGNORED).sum() if num_items is None else num_items)


def linear_head(model: PreTrainedModel) -> Tensor:
    """The weight (V, D) of a model's head.

    Raises:
        ConfigError: the model does more to its logits than a linear head.
    """
    config = model.config.get_text_config()
    scaled = [key for key in SCALED if getattr(config, key, None) not in (None, 1, 1.0)]
    head = model.get_output_embeddings()
    if scaled or getattr(head, "bias", None) is not None:
        raise ConfigError(f"{config.model_type}: its head is not purely linear ({', '.join(scaled) or 'bias'})")
    weight: Tensor = head.weight
    return weight
