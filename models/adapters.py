"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) through peft, on Mamba's projections too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, LoraModel, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType
from torch import nn
from transformers import PreTrainedModel

from nanoalign.common.errors import ConfigError
from nanoalign.common.printable import nearest
from nanoalign.models.config import LoRA
from nanoalign.models.loading import load_model

KNOWN_TARGETS = frozenset(LoRA.model_fields["targets"].default)
"""Projections of attention, MLP and Mamba blocks: a model may lack some of them."""


class _HybridLora(LoraModel):
    """peft refuses Mamba's ``out_proj`` by name, since the fused CUDA kernel reads the bare weight past the adapter.
    This suite's Mamba calls the module; :func:`require_trained` measures that it does."""

    def _check_target_module_compatiblity(self, peft_config: Any, model: nn.Module, target_name: str) -> None:
        if target_name == "conv1d":
            super()._check_target_module_compatiblity(peft_config, model, target_name)


def matching_targets(model: nn.Module, lora: LoRA) -> list[str]:
    """The targets that name linear modules of ``model``.

    Raises:
        ConfigError: a target matches no linear module and is not a projection of a kind of block that this model
            lacks, or none match at all.
    """
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for target in lora.targets:
        if target not in linear and target not in KNOWN_TARGETS:
            hint = nearest(target, linear)
            raise ConfigError(f"train.lora.targets: no linear module of the model is named `{target}`{hint}")
    found = [target for target in lora.targets if target in linear]
    if not found:
        raise ConfigError(f"train.lora.targets: none matches; the model has {', '.join(sorted(linear))}")
    return found


def attach(model: PreTrainedModel, lora: LoRA, seed: int) -> PeftModel:
    """Freezes ``model`` and puts fresh adapters, drawn from ``seed``, on ``lora.targets``.

    Raises:
        ConfigError: as :func:`matching_targets`.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=matching_targets(model, lora),
    )
    torch.manual_seed(seed)
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = _HybridLora  # peft takes the tuner's class from here alone
    try:
        return get_peft_model(model, config)
    finally:
        PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = LoraModel


def load_trainable(
    source: str | Path, lora: LoRA | None, seed: int, device: str = "cpu", dtype: str = "float32"
) -> PreTrainedModel | PeftModel:
    """What a stage trains: the model of ``source``, with fresh adapters where the recipe wants any.

    Raises:
        CheckpointError: as :func:`models.loading.load_model`. ConfigError: as :func:`matching_targets`.
    """
    model = load_model(source, dtype, device)
    return model if lora is None else attach(model, lora, seed)


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model itself, below its adapters where it has some."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """The model with the adapters merged into its weights; ``model`` is consumed."""
    return model.merge_and_unload(safe_merge=True)


def require_trained(model: PeftModel, batch: Mapping[str, torch.Tensor]) -> None:
    """One forward and backward pass on ``batch`` (with labels): every adapter must get a gradient.

    Raises:
        ConfigError: some do not, since a kernel reads the bare weights past them. They would never learn.
    """
    model(**batch).loss.backward()
    idle = [
        name.removeprefix("base_model.model.").split(".lora_")[0]
        for name, weight in model.named_parameters()
        if ".lora_B." in name and (weight.grad is None or not weight.grad.any())
    ]
    model.zero_grad()
    if idle:
        raise ConfigError(
            f"train.lora.targets: {len(idle)} adapters got no gradient, first {idle[0]}: a fused kernel reads the bare "
            "weight; leave the target out or switch the kernel off"
        )
