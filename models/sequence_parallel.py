"""Packs whose tokens are sharded over ranks, with documents still isolated.

Embeddings, norms, projections, MLPs and the loss see a rank's own shard of the pack. What looks along the sequence gets
all of it for a share of the heads, by one all-to-all in and one back: attention (DeepSpeed-Ulysses, Jacobs et al.
2023, arXiv 2309.14509) and Mamba-2's convolution and scan, whose gate and norm stay with the shard.

Every rank's gradients are those of its part of the work: their sum over the group is the gradient of the pack. Trainers
that average over all ranks scale the loss by their number, as for data parallelism.

Shapes: B batch, T tokens of the pack, L = T / R tokens of a rank, R ranks, H query heads, D channels of a head or of
the convolution, G groups of Mamba heads, N state size, K convolution width.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache

from nanoalign.common.errors import ConfigError, IsolationError
from nanoalign.models.chunks import document_runs, first_tokens, pack_layout
from nanoalign.models.hybrid import Mamba2Path
from nanoalign.models.packed_attention import (
    ATTENTION,
    bounds_mask,
    document_attention,
    padding_mask,
    read_documents,
    unisolate,
)

ULYSSES = "nanoalign_ulysses"
"""The name under which transformers knows :func:`ulysses_attention`."""


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scatter: int, gather: int, group: dist.ProcessGroup) -> Tensor:
        ctx.back = (gather, scatter, group)
        pieces = torch.stack(x.chunk(group.size(), scatter))
        received = torch.empty_like(pieces)
        dist.all_to_all_single(received, pieces, group=group)
        return torch.cat(received.unbind(0), gather)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _Exchange.apply(grads[0], *ctx.back), None, None, None


def exchange(x: Tensor, scatter: int, gather: int, group: dist.ProcessGroup) -> Tensor:
    """Cuts ``x`` along dimension ``scatter`` into a piece for every rank, and joins the pieces that the ranks send to
    this one along ``gather``. The backward pass is the exchange the other way."""
    return _Exchange.apply(x, scatter, gather, group)


class _GatherSequence(torch.autograd.Function):
    """(B, L, ...) of every rank to (B, T, ...) on all. All ranks continue alike, so each takes its own part back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        pieces = [torch.empty_like(x) for _ in range(group.size())]
        dist.all_gather(pieces, x.contiguous(), group=group)
        return torch.cat(pieces, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].chunk(ctx.group.size(), 1)[ctx.group.rank()], None


def ulysses_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    group: dist.ProcessGroup,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: :func:`models.packed_attention.document_attention` of a share of the heads.

    ``query`` (B, H, L, D), ``key`` and ``value`` with their own head counts, repeated where the ranks do not divide
    them; ``attention_mask`` holds the bounds of the documents in the whole pack. Returns (B, L, H, D).
    """
    repeats = math.lcm(key.shape[1], group.size()) // key.shape[1]
    if repeats > 1:
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    query, key, value = (exchange(tensor, 1, 2, group) for tensor in (query, key, value))
    y, _ = document_attention(module, query, key, value, attention_mask, **kwargs)
    return exchange(y, 1, 2, group), None


class SequenceParallelMamba2(Mamba2Path):
    """A mixer's convolution and scan, over the whole pack for this rank's heads; the rest stays with its shard."""

    group: dist.ProcessGroup

    def _scan(
        self,
        x_BTD: Tensor,
        dt_BTH: Tensor,
        cache: Cache | None,
        layer: Any,
        mask_BT: Tensor | None,
        seq_idx_BT: Tensor | None,
    ) -> Tensor:
        """(B, L, D) and (B, L, H) to (B, L, H P); ``seq_idx_BT`` is that of the whole pack."""
        if cache is not None:
            raise IsolationError("sequence parallelism does not support a cache")
        ranks, rank = self.group.size(), self.group.rank()
        x_BTD = exchange(self._shares(x_BTD), 2, 1, self.group).squeeze(2)
        dt_BTH = exchange(dt_BTH, 2, 1, self.group)
        documents = None if seq_idx_BT is None else pack_layout(seq_idx_BT)
        runs_BT = None if documents is None else documents.runs_BT
        weight_DK = self._shares(self.conv1d.weight.squeeze(1).T)[:, rank].T.contiguous()
        bias_D = None if self.conv1d.bias is None else self._shares(self.conv1d.bias)[rank].contiguous()
        x_BTD = self.kernels.conv(x_BTD, weight_DK, bias_D, None, runs_BT, silu=True)
        heads = self.num_heads // ranks
        mine = slice(rank * heads, (rank + 1) * heads)
        y, _ = self._recur(x_BTD, dt_BTH, None, documents, None, mine)
        return exchange(y, 1, 2, self.group)

    def _shares(self, channels: Tensor) -> Tensor:
        """The convolution's channels (..., D) by rank (..., R, D'): its x heads, then its groups of inputs and outputs.
        A group whose heads are on several ranks goes to all of them."""
        ranks, state = self.group.size(), self.n_groups * self.ssm_state_size
        x, inputs, outputs = channels.split([self.intermediate_size, state, state], dim=-1)
        repeats = math.lcm(self.n_groups, ranks) // self.n_groups
        parts = [x.unflatten(-1, (ranks, -1))]
        for tensor in (inputs, outputs):
            by_group = tensor.unflatten(-1, (self.n_groups, -1)).repeat_interleave(repeats, dim=-2)
            parts.append(by_group.flatten(-2).unflatten(-1, (ranks, -1)))
        return torch.cat(parts, dim=-1)


class _Shards:
    """The hooks around a decoder. A full pack goes in and comes out in full (every rank passes the same one); where
    ``seq_idx`` is longer than the inputs, these are already this rank's shard, and so is the output."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.whole: int | None = None
        """Tokens to give back, or None for a shard."""

    def enter(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if args:
            raise ConfigError("sequence parallelism: name the decoder's inputs (input_ids=...)")
        name = "input_ids" if kwargs.get("input_ids") is not None else "inputs_embeds"
        inputs, seq_idx = kwargs[name], kwargs.get("seq_idx")
        length = inputs.shape[1]
        self.whole = None if seq_idx is not None and seq_idx.shape[1] > length else length
        if self.whole is not None:
            kwargs = self._cut(decoder, name, kwargs)
        seq_idx = kwargs["seq_idx"].expand(inputs.shape[0], -1)
        mask = bounds_mask(first_tokens(seq_idx))
        return args, kwargs | {"seq_idx": seq_idx, "attention_mask": mask, "use_cache": False}

    def _cut(self, decoder: nn.Module, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        """This rank's shard of a full pack, filled up with one more document to a multiple of the ranks."""
        _, kwargs = read_documents(decoder, (), kwargs) or ((), kwargs)
        inputs, mask = kwargs[name], kwargs.get("attention_mask")
        batch, length = inputs.shape[:2]
        more = -length % self.group.size()
        seq_idx, positions = kwargs.get("seq_idx"), kwargs.get("position_ids")
        if kwargs.get("past_key_values") is not None:
            raise IsolationError("sequence parallelism does not support a cache")
        if seq_idx is None:  # one document in each row, and its padding
            real = torch.ones(batch, length, device=inputs.device) if mask is None else mask
            seq_idx = 1 - real.long()
        if positions is None:
            positions = torch.arange(length, device=inputs.device).expand(batch, -1)
        seq_idx = F.pad(document_runs(seq_idx), (0, more), value=length)
        return kwargs | {
            name: self._mine(F.pad(inputs, (0, 0) * (inputs.dim() - 2) + (0, more))),
            "position_ids": self._mine(F.pad(positions, (0, more))),
            "seq_idx": seq_idx,
        }

    def _mine(self, whole: Tensor) -> Tensor:
        return whole.chunk(self.group.size(), 1)[self.group.rank()]

    def leave(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if self.whole is not None:
            output.last_hidden_state = _GatherSequence.apply(output.last_hidden_state, self.group)[:, : self.whole]
        return output


def sequence_group(ranks: int) -> dist.ProcessGroup:
    """This process's group of ``ranks`` neighbours; every process of the launch calls it at the same point."""
    return dist.new_subgroups(ranks)[0]


def parallelize(model: PreTrainedModel, group: dist.ProcessGroup) -> None:
    """Shards every pack that ``model`` (loaded by :mod:`models.loading`) reads over the ranks of ``group``, in place.

    All ranks call it together. ``model(input_ids=...)`` with a full pack gives the same full result on every rank. With
    this rank's shard (B, T / R) and a ``seq_idx`` (B, T) of the full pack, the result is the shard's, and
    ``position_ids`` must be given.

    Raises:
        ConfigError: heads do not divide by the ranks, or attention is of a kind that cannot be parallelized.
    """
    ranks, config = group.size(), model.config
    if config._attn_implementation != ATTENTION:
        raise ConfigError(
            f"sequence_parallel: cannot spread attention {config._attn_implementation!r}; load it as sdpa"
        )
    mixers: list[Any] = [module for module in model.modules() if isinstance(module, Mamba2Path)]
    kinds = [("attention", config.num_attention_heads), *(("Mamba", mixer.num_heads) for mixer in mixers)]
    for kind, heads in kinds:
        if heads % ranks:
            raise ConfigError(f"sequence_parallel: {ranks} ranks do not divide the model's {heads} {kind} heads")
    for mixer in mixers:
        mixer.__class__ = type(f"Spread{type(mixer).__name__}", (SequenceParallelMamba2, type(mixer)), {})
        mixer.group = group
    AttentionInterface.register(ULYSSES, partial(ulysses_attention, group=group))
    AttentionMaskInterface.register(ULYSSES, padding_mask)
    unisolate(model)
    config._attn_implementation = ULYSSES
    decoder, shards = model.base_model, _Shards(group)
    decoder.register_forward_pre_hook(shards.enter, with_kwargs=True)
    decoder.register_forward_hook(shards.leave, with_kwargs=True)
