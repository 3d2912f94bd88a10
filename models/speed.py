"""Applies a recipe's memory and speed settings (`Training`) to the model on its device."""

import torch
from torch import nn

from nanoalign.models.config import Training
from nanoalign.models.hybrid import use_kernels
from nanoalign.models.offload import offload_activations
from nanoalign.models.tiling import tile


def configure_model(model: nn.Module, train: Training, device: torch.device) -> None:
    """Kernels for ``device``, tiles and offloaded activations, in place, before training. Adapters may be on.

    Raises:
        ConfigError: ``train.kernels`` is triton and it cannot run here.
        IsolationError: it differs from the torch functions, or leaks.
    """
    use_kernels(model, train.kernels, device)
    if train.gradient_checkpointing:
        tile(model, train.tile, train.keep_blocks)
        if train.offload_gb and device.type == "cuda":
            offload_activations(model.get_base_model() if hasattr(model, "peft_config") else model, train.offload_gb)
