"""MLPs computed a stretch of tokens at a time: their inner activations (4 times the hidden size) exist for one only."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMLP


class TiledMLP:
    """Runs the class after it tile by tile; the backward pass recomputes each tile."""

    tile: int

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden) to (B, T, hidden)."""
        whole: Any = super().forward  # type: ignore[misc]
        if x.shape[1] <= self.tile:
            return whole(x)
        pieces = x.split(self.tile, dim=1)
        return torch.cat([checkpoint(whole, piece, use_reentrant=False) for piece in pieces], dim=1)


class TiledNemotronHMLP(TiledMLP, NemotronHMLP):
    """NemotronH's squared-ReLU MLP."""


class TiledLlamaMLP(TiledMLP, LlamaMLP):
    """Llama's gated MLP."""


TILED: dict[type[nn.Module], type[nn.Module]] = {tiled.__bases__[1]: tiled for tiled in TiledMLP.__subclasses__()}


def tile_mlps(model: PreTrainedModel, tokens: int = 8192) -> int:
    """Tiles every known MLP of ``model``, in place; ``tokens`` is a tile's length. Returns how many are tiled."""
    for module in model.modules():
        module.__class__ = TILED.get(type(module), type(module))
        if isinstance(module, TiledMLP):
            module.tile = tokens
    return sum(isinstance(module, TiledMLP) for module in model.modules())
