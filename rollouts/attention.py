"""Attention of one new token to a cache, for grouped key-value heads, without copying the cache.

transformers' SDPA path repeats keys and values for every query head as soon as there is a mask (padding): at each token
the whole cache is copied. Here the query heads of a group are treated as tokens, which see all columns alike.

Shapes: B rows, K key-value heads, G query heads of a group, C columns, D head dimension.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from nanoalign.models.packed_attention import ATTENTION

NAME = "nanoalign_decode"


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key_BKCD: torch.Tensor,
    value_BKCD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' attention interface; ``query`` is [B, heads, new, D]. More than one new token goes to SDPA."""
    if query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key_BKCD, value_BKCD, attention_mask, scaling=scaling, **kwargs)
    rows, heads, _, size = query.shape
    groups = heads // key_BKCD.shape[1]
    if attention_mask is not None:  # [B, 1, 1, C]
        attention_mask = attention_mask.expand(-1, -1, groups, -1)
    output_BKGD = scaled_dot_product_attention(
        query.view(rows, -1, groups, size), key_BKCD, value_BKCD, attn_mask=attention_mask, scale=scaling
    )
    return output_BKGD.reshape(rows, 1, heads, size), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def decoding_attention(model: PreTrainedModel) -> Iterator[None]:
    """Uses :func:`attend` where the model used SDPA (bare, or by document); other implementations stay."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    if before in ("sdpa", ATTENTION):
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
