"""Long packs in little memory: MLPs and Mamba-2 blocks one segment of tokens at a time.

Inside a block of NemotronH the widest tensor is 4 to 5 times the hidden size; at 131,072 tokens a Mamba block's
projection, states and their gradients would take tens of gigabytes. Here a block runs tile by tile: an MLP's tiles are
independent; a Mamba block's pass on the convolution's last inputs and the state, so that the result is that of one long
sequence, documents isolated, and gradients flow back through them. A Mamba block's tiles end where a chunk of the scan
does (:func:`models.chunks.tile_bounds`): a document is cut into the same chunks wherever it is.

Each tile is its own activation checkpoint: what stays is the block's input. A checkpointed piece ends in a product (see
:mod:`models.lowrank`), which recomputation leaves out, so that ``down_proj`` and ``out_proj`` run once. Blocks that
``keep`` their products save the outputs of ``up_proj``, ``in_proj``, scan and attention too, 4 to 7 times the memory of
the input, and recompute only elementwise operations, norms and the convolution.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHBlock, NemotronHRMSNorm

from nanoalign.models.chunks import PackLayout, cached_per_tensor, document_runs, tile_bounds
from nanoalign.models.hybrid import Mamba2Path
from nanoalign.models.kernels import TORCH, KernelSet
from nanoalign.models.lowrank import project


class TiledLlamaLayer(LlamaDecoderLayer):
    """A layer of Llama that checkpoints itself when gradient checkpointing is on: attention in one piece, the MLP in
    tiles."""

    tile: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._tiles(args[0], **kwargs):
            return nn.Module.__call__(self, *args, **kwargs)
        return super().__call__(*args, **kwargs)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """(B, T, hidden) to (B, T, hidden)."""
        if not self._tiles(hidden_states, **kwargs):
            return super().forward(hidden_states, **kwargs)

        def attend(x: Tensor) -> Tensor:
            return x + self.self_attn(hidden_states=self.input_layernorm(x), **kwargs)[0]

        def feed(x: Tensor) -> Tensor:
            mlp, normed = self.mlp, self.post_attention_layernorm(x)
            wide = mlp.act_fn(project(mlp.gate_proj, normed)) * project(mlp.up_proj, normed)
            return project(mlp.down_proj, wide, plus=x)

        tiles = _checkpointed(attend, hidden_states).split(self.tile, dim=1)
        return torch.cat([_checkpointed(feed, tile) for tile in tiles], dim=1)

    def _tiles(self, hidden_states: Tensor, past_key_values: Any = None, **_: Any) -> bool:
        if torch.is_grad_enabled() and not (self.gradient_checkpointing and self.training):
            return False
        return hidden_states.shape[1] > self.tile and past_key_values is None


class FusedRMSNorm(NemotronHRMSNorm):
    """NemotronH's norm as one kernel, which keeps no fp32 copy; weights are applied before rounding, not after."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


class TiledNemotronHBlock(NemotronHBlock):
    """A block of NemotronH that checkpoints itself, tile by tile, when gradient checkpointing is on."""

    tile: int
    keep: bool = False
    kernels: KernelSet = TORCH

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.keep or self._tiles(args[0], **kwargs):
            return nn.Module.__call__(self, *args, **kwargs)  # past transformers' checkpoint around the whole block
        return super().__call__(*args, **kwargs)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """(B, T, hidden) to (B, T, hidden)."""
        if not self._tiles(hidden_states, **kwargs):
            return super().forward(hidden_states, **kwargs)
        if self.block_type == "mlp":
            return torch.cat([self._mlp(tile) for tile in hidden_states.split(self.tile, dim=1)], dim=1)
        return self._mamba(hidden_states, kwargs.get("seq_idx"))

    def _tiles(
        self,
        hidden_states: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = False,
        **_: Any,
    ) -> bool:
        if torch.is_grad_enabled() and not (self.gradient_checkpointing and self.training):
            return False
        if self.block_type == "linear_attention":  # not padded, not cached, not sharded over ranks
            alone = attention_mask is None and past_key_values is None and not use_cache
            return alone and isinstance(self.mixer, Mamba2Path) and type(self.mixer)._scan is Mamba2Path._scan
        return self.block_type == "mlp"

    def _mlp(self, x: Tensor) -> Tensor:
        def wide(x: Tensor) -> Tensor:
            return project(self.mixer.up_proj, self.norm(x.to(self.norm.weight.dtype)))

        def narrow(up: Tensor, x: Tensor) -> Tensor:
            return project(self.mixer.down_proj, self._activate(up), plus=x)

        if self.keep:
            return _checkpointed(narrow, _checkpointed(wide, x), x)
        return _checkpointed(lambda x: narrow(wide(x), x), x)

    def _activate(self, x: Tensor) -> Tensor:
        if self.config.mlp_hidden_act == "relu2" and self.kernels is not TORCH:
            return self.kernels.squared_relu(x)
        return self.mixer.act_fn(x)

    def _mamba(self, hidden_states: Tensor, seq_idx: Tensor | None) -> Tensor:
        mixer = self.mixer

        def wide(x: Tensor) -> Tensor:
            return mixer.project(self.norm(x.to(self.norm.weight.dtype)))

        def narrow(y: Tensor, gate: Tensor, x: Tensor) -> Tensor:
            return project(mixer.out_proj, mixer.gate(y, gate).to(gate.dtype), plus=x)

        def whole(x: Tensor, *carried: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            gate, channels, steps = mixer.parts(wide(x))
            y, previous, state = mixer.segment(channels, steps, *carried)
            return narrow(y, gate, x), previous, state

        previous = state = None
        outputs = []
        segments = _segments(hidden_states.shape[1], seq_idx, self.tile)
        tiles = hidden_states.split([segment.tokens for segment in segments], dim=1)  # one gradient for all of them
        for x, segment in zip(tiles, segments):
            if segment.begins:
                previous = state = None
            elif segment.same_BK is not None and previous is not None:
                same_BK = segment.same_BK[:, -previous.shape[1] :]
                previous = torch.where(same_BK.unsqueeze(-1), previous, 0)
                state = torch.where(same_BK[:, -1, None, None, None], state, 0)
            carried = (previous, state, segment.documents)
            if self.keep:
                gate, channels, steps = mixer.parts(_checkpointed(wide, x))
                y, previous, state = _checkpointed(mixer.segment, channels, steps, *carried)
                outputs.append(_checkpointed(narrow, y, gate, x))
            else:
                y, previous, state = _checkpointed(whole, x, *carried)
                outputs.append(y)
        return torch.cat(outputs, dim=1)


@dataclass(frozen=True)
class _Segment:
    """A tile of a pack."""

    tokens: int
    begins: bool
    """Whether no state is passed on to it: a document begins."""
    documents: PackLayout | None = None
    same_BK: Tensor | None = None
    """Whether the tokens in front of it are of its first document."""


def _segments(tokens: int, seq_idx: Tensor | None, tile: int) -> list[_Segment]:
    if seq_idx is None:
        return [_Segment(min(tile, tokens - start), start == 0) for start in range(0, tokens, tile)]
    return _packed_segments(seq_idx, tile)


@cached_per_tensor
def _packed_segments(seq_idx: Tensor, tile: int) -> list[_Segment]:
    document_BT = document_runs(seq_idx)
    batch, tokens = document_BT.shape
    starts = [0] if batch > 1 else [0, *(document_BT[0].diff().nonzero().flatten() + 1).tolist()]
    found = []
    for start, end in pairwise(tile_bounds(starts, tokens, tile)):
        first_B1 = document_BT[:, start : start + 1]
        before_BK = document_BT[:, max(0, start - tile) : start] == first_B1
        found.append(
            _Segment(end - start, start in starts, PackLayout(document_BT[:, start:end] - first_B1), before_BK)
        )
    return found


def _checkpointed(function: Callable[..., Any], *inputs: Tensor | None) -> Any:
    return checkpoint(function, *inputs, use_reentrant=False)


TILED: dict[type[nn.Module], type[nn.Module]] = {
    LlamaDecoderLayer: TiledLlamaLayer,
    NemotronHBlock: TiledNemotronHBlock,
    NemotronHRMSNorm: FusedRMSNorm,
}


def tile(model: nn.Module, tokens: int = 16384, keep: int = 0) -> int:
    """Tiles every known block of ``model``, in place, with the kernels of its mixers (:mod:`models.hybrid`).

    It takes effect without gradients, and with gradient checkpointing. ``tokens`` is a tile's length; ``keep`` blocks,
    spread evenly so that copies to the host are too, keep their products. Returns how many modules are tiled.
    """
    kernels = next((module.kernels for module in model.modules() if isinstance(module, Mamba2Path)), TORCH)
    for module in model.modules():
        module.__class__ = TILED.get(type(module), type(module))
    tiled: list[Any] = [
        module for module in model.modules() if isinstance(module, TiledLlamaLayer | TiledNemotronHBlock)
    ]
    for place, module in enumerate(tiled):
        module.tile = tokens
        if isinstance(module, TiledNemotronHBlock):
            module.keep = (place + 1) * keep // len(tiled) > place * keep // len(tiled)
            module.kernels = kernels
    return len(tiled)
