"""Documents in a pack: how a model learns their bounds, and attention that isolates them.

transformers isolates packed attention by ``position_ids`` alone, and only where there is neither an attention mask nor
a cache (``use_cache`` is on by default, and then documents leak silently); its mixers use ``seq_idx`` alone. The hook
of :func:`isolate` gives both one view. Attention then runs document by document (CPU) or through torch's varlen kernel
(CUDA): no T x T mask exists, and the cost is that of the documents.

Shapes: B batch, T tokens, H query heads, D head channels, S documents.
"""

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from nanoalign.common.errors import IsolationError
from nanoalign.models.chunks import document_positions, first_tokens

ATTENTION = "nanoalign_documents"
"""The name under which transformers knows :func:`document_attention`."""

SAFE_WITH_MASK = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""cuDNN's kernel, torch's first choice on an H100 from 2.11 on, returns NaN gradients under a mask where T % 128 is 64
and a row's log-sum-exp is below -88 (pytorch#196678), as it is for a query that sees nothing."""


def packed_inputs(lengths: Sequence[int], isolate: bool = True, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a model takes besides ``input_ids`` (1, T) for documents of these lengths laid end to end.

    With ``isolate`` they are invisible to each other: position_ids and seq_idx (1, T), cu_seq_lens_q and _k (S + 1,),
    max_length_q and _k. Without, they are one text (the paper's plain concatenation).
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(f"document lengths must be positive, got {list(lengths)}")
    if not isolate:
        return {"position_ids": torch.arange(sum(lengths), device=device).unsqueeze(0), "use_cache": False}
    sizes = torch.tensor(lengths, device=device)
    bounds = F.pad(sizes.cumsum(0), (1, 0))
    seq_idx = torch.repeat_interleave(sizes)
    position_ids = torch.arange(sum(lengths), device=device) - bounds[seq_idx]
    return {
        "position_ids": position_ids.unsqueeze(0),
        "seq_idx": seq_idx.int().unsqueeze(0),
        "cu_seq_lens_q": bounds.int(),
        "cu_seq_lens_k": bounds.int(),
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "use_cache": False,
    }


def isolate(model: PreTrainedModel) -> None:
    """Lets ``model`` read packs: registers the hook and, where it attends through SDPA, the attention. Idempotent."""
    AttentionInterface.register(ATTENTION, document_attention)
    AttentionMaskInterface.register(ATTENTION, padding_mask)
    if model.config._attn_implementation == "sdpa":
        model.config._attn_implementation = ATTENTION
    if read_documents not in model.base_model._forward_pre_hooks.values():
        model.base_model.register_forward_pre_hook(read_documents, with_kwargs=True)


def unisolate(model: PreTrainedModel) -> None:
    """Undoes :func:`isolate`."""
    if model.config._attn_implementation == ATTENTION:
        model.config._attn_implementation = "sdpa"
    hooks = model.base_model._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is read_documents]:
        del hooks[key]
        del model.base_model._forward_pre_hooks_with_kwargs[key]


def read_documents(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Forward pre-hook of a decoder: passes the bounds of a pack's documents to attention and mixers.

    They are read from ``seq_idx``, else from ``cu_seq_lens_q``, else from restarts in ``position_ids``. A batch whose
    attention mask has zeros is padded, not packed, and is left unchanged.

    Raises:
        IsolationError: several documents come with padding in the attention mask, or with a cache.
    """
    mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
    position_ids, seq_idx, bounds = (kwargs.get(key) for key in ("position_ids", "seq_idx", "cu_seq_lens_q"))
    if isinstance(mask, dict) or (cache is not None and cache.get_seq_length() > 0):
        return None
    padded = mask is not None and (mask.dim() != 2 or not bool(mask.all()))
    if seq_idx is None and bounds is not None:
        tokens = torch.arange(int(bounds[..., -1].max()), device=bounds.device)
        seq_idx = torch.bucketize(tokens, bounds.flatten()[1:].long(), right=True).unsqueeze(0)
    if seq_idx is None and position_ids is not None and position_ids.dim() == 2 and not padded:
        seq_idx = F.pad((position_ids[:, 1:] != position_ids[:, :-1] + 1).cumsum(1), (1, 0))
    if seq_idx is None or bool((seq_idx == seq_idx[:, :1]).all()):
        return args, {key: value for key, value in kwargs.items() if key != "seq_idx"}
    if padded or cache is not None:
        raise IsolationError(
            f"a pack of several documents came with {'padding in attention_mask' if padded else 'a cache'}, where "
            "attention cannot isolate them; pad packs with a document of padding tokens, and use no cache"
        )
    inputs = args[0] if args else kwargs.get("input_ids")
    batch = (kwargs["inputs_embeds"] if inputs is None else inputs).shape[0]
    first = first_tokens(seq_idx).expand(batch, -1)
    if position_ids is None:
        position_ids = document_positions(first)
    kwargs = kwargs | {"seq_idx": seq_idx, "position_ids": position_ids, "attention_mask": None, "use_cache": False}
    if decoder.config._attn_implementation == ATTENTION:
        kwargs["attention_mask"] = bounds_mask(first)
    return args, kwargs


def bounds_mask(first_BT: Tensor) -> Tensor:
    """The bounds of the documents over all rows (1, 1, 1, S + 1), for :func:`document_attention`: transformers passes a
    4-D mask on unchanged. ``first_BT`` marks the first token of each document."""
    end = torch.tensor([first_BT.numel()], device=first_BT.device)
    return torch.cat([first_BT.flatten().nonzero().flatten(), end]).int().view(1, 1, 1, -1)


def padding_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' SDPA mask, but a query that sees nothing (left padding) sees everything.

    What padding computes is never read, while fused kernels may produce NaN for a fully masked row, and its gradient
    corrupts every key.
    """
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    if mask is None or mask.dtype != torch.bool:
        return mask
    return mask | ~mask.any(-1, keepdim=True)


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: SDPA, but document by document where the mask is one of bounds (int32).

    ``query`` (B, H, T, D), ``key`` and ``value`` with their own head counts; returns (B, T, H, D).
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        with nullcontext() if attention_mask is None else sdpa_kernel(SAFE_WITH_MASK):
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
    bounds, (batch, heads, length, _) = attention_mask.flatten(), query.shape
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))  # (B T, heads, D)
    if query.is_cuda and torch.is_autocast_enabled("cuda"):  # rotary embeddings leave queries and keys in fp32
        query, key, value = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (query, key, value))
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        y = _varlen(query, key, value, bounds, length, scaling, sliding_window)
        return y.view(batch, length, heads, -1), None
    rows = []
    places = bounds.tolist()
    for start, end in pairwise(places):
        q, k, v = (tensor[start:end].transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
        k, v = (repeat_kv(tensor, heads // tensor.shape[1]) for tensor in (k, v))
        near = None
        if sliding_window is not None and end - start > sliding_window:
            causal = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).tril()
            near = causal & ~causal.tril(-sliding_window)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=near, dropout_p=dropout, is_causal=near is None, scale=scaling
        )
        rows.append(y.squeeze(0).transpose(0, 1))
    return torch.cat(rows).view(batch, length, heads, -1), None


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float | None, window: int | None
) -> Tensor:
    """torch's variable-length attention on (tokens, heads, channels), causal inside each document of ``longest`` tokens
    at most (an upper bound: the true one would cost a synchronisation).

    torch 2.11 takes ``is_causal`` where later ones take ``window_size``, and has no ``scale`` of its own in 2.10.
    """
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    more: dict[str, Any] = {}
    if "window_size" in known:
        more["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is not None and window < longest:
        raise IsolationError("this torch's varlen_attn has no sliding window; use torch 2.12 or newer")
    else:
        more["is_causal"] = True
    if "enable_gqa" in known:
        more["enable_gqa"] = query.shape[1] != key.shape[1]
    else:
        key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1) for tensor in (key, value))
    if "scale" in known:
        more["scale"] = scale
    elif scale is not None:
        query = query * (scale * query.shape[-1] ** 0.5)
    return varlen_attn(query, key, value, bounds, bounds, longest, longest, **more)
