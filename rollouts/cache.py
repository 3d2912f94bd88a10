"""A decoding cache whose rows come and go: grown in place, compacted when rows finish, refilled with new ones.

Rows are left-padded to a common number of columns. Attention layers keep keys and values [B, heads, columns, dim] in
storage that grows by halves (transformers' own layer copies everything at every token); recurrent layers (Mamba-2)
keep states without columns.
"""

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from nanoalign.common.errors import ConfigError


class GrowingLayer(DynamicLayer):
    """Keys and values in storage with room ahead; ``keys`` and ``values`` are views of what is filled."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends columns [B, heads, new, dim] and returns all filled ones."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.key_storage = self.value_storage = key_states[:, :, :0]
            self.filled = 0
        start, self.filled = self.filled, self.filled + key_states.shape[-2]
        if self.filled > self.key_storage.shape[-2]:
            capacity = self.filled + max(32, self.filled // 2)
            self.key_storage = _resized(self.key_storage, key_states, start, capacity)
            self.value_storage = _resized(self.value_storage, value_states, start, capacity)
        self.key_storage[:, :, start : self.filled] = key_states
        self.value_storage[:, :, start : self.filled] = value_states
        self._point_at_filled()
        return self.keys, self.values

    def take(self, rows: torch.Tensor, first_column: int) -> None:
        """Keeps these rows, in this order, and the columns from ``first_column`` on."""
        self.key_storage = self.key_storage[rows, :, first_column:]
        self.value_storage = self.value_storage[rows, :, first_column:]
        self.filled -= first_column
        self._point_at_filled()

    def extend(self, other: "GrowingLayer") -> None:
        """Appends the other layer's rows; the shorter of the two gets empty columns on the left."""
        filled = max(self.filled, other.filled)
        self.key_storage = torch.cat([_left_padded(self.keys, filled), _left_padded(other.keys, filled)])
        self.value_storage = torch.cat([_left_padded(self.values, filled), _left_padded(other.values, filled)])
        self.filled = filled
        self._point_at_filled()

    def _point_at_filled(self) -> None:
        self.keys = self.key_storage[:, :, : self.filled]
        self.values = self.value_storage[:, :, : self.filled]


def _resized(storage: torch.Tensor, like: torch.Tensor, filled: int, capacity: int) -> torch.Tensor:
    grown = like.new_zeros(*like.shape[:2], capacity, like.shape[-1])
    grown[:, :, :filled] = storage[:, :, :filled]
    return grown


def _left_padded(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, 0, columns - tensor.shape[-2], 0))


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model of full-attention, recurrent and stateless blocks.

    Raises :class:`ConfigError` for other kinds (sliding windows, both kinds in a block): the vllm engine serves those.
    """
    cache = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = GrowingLayer()
        elif type(layer) is not LinearAttentionLayer:
            raise ConfigError(
                f"the hf rollout engine cannot decode {config.model_type}: its block {index} keeps a "
                f"{type(layer).__name__}; set `engine: vllm`"
            )
    return cache


def take_rows(cache: DynamicCache, rows: torch.Tensor, first_column: int) -> None:
    """Keeps these rows (repeats allowed) and, in attention layers, the columns from ``first_column`` on."""
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer) and layer.is_initialized:
            layer.take(rows, first_column)
        elif isinstance(layer, LinearAttentionLayer):
            layer.reorder_cache(rows)


def extend_rows(cache: DynamicCache, other: DynamicCache) -> None:
    """Appends the rows of ``other`` to every layer of ``cache``."""
    for layer, addition in zip(cache.layers, other.layers, strict=True):
        if isinstance(layer, GrowingLayer) and layer.is_initialized:
            layer.extend(addition)
        elif isinstance(layer, LinearAttentionLayer):
            for states, new_states in (
                (layer.conv_states, addition.conv_states),
                (layer.recurrent_states, addition.recurrent_states),
            ):
                for key, state in states.items():
                    if state is not None:
                        states[key] = torch.cat([state, new_states[key]])
