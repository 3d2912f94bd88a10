"""Which layers of a model are trained with FP8 products (:mod:`models.fp8`); said without torch, for plans."""

from typing import TYPE_CHECKING

from nanoalign.common.errors import ConfigError
from nanoalign.models.config import LoRA

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

PROJECTIONS: tuple[str, ...] = tuple(LoRA.model_fields["targets"].default)
"""Linear layers by the last part of their name: of attention, MLPs and Mamba mixers."""
ENDS = 1
"""Blocks at either end of a model that stay in bf16, as in Nemotron Nano v2's own training."""
DESCRIPTION = (
    "FP8 products in the projections of attention, MLPs and Mamba mixers; in bf16 stay the first and the last block, "
    "embeddings, head, norms, convolutions, scans, adapters, and evaluation"
)
"""For a plan."""


def use_fp8(model: "PreTrainedModel | PeftModel", always: bool = False, ends: int = ENDS) -> list[str]:
    """Gives the projections of ``model`` FP8 products, in place; parameters and their names stay. Adapters may be on.

    Args:
        always: in eval mode too, for a reference beside a policy in training.
        ends: blocks at either end that stay as they are.

    Returns the names of these layers.

    Raises:
        ConfigError: there are none.
    """
    from torch import nn

    from nanoalign.models.adapters import base_of
    from nanoalign.models.fp8 import Fp8Linear, held

    base = base_of(model)
    blocks = list(base.base_model.layers)
    converted = []
    for number, block in enumerate(blocks[ends : len(blocks) - ends], ends):
        for name, module in block.named_modules():
            parts = name.removesuffix(".base_layer").split(".")  # peft's adapters are around it
            if type(module) not in (nn.Linear, Fp8Linear) or parts[-1] not in PROJECTIONS:
                continue
            module.__class__, module.always = Fp8Linear, always
            converted.append(f"layers.{number}.{name}")
    if not converted:
        raise ConfigError(
            f"train.precision: fp8 finds no layer for it: of {len(blocks)} blocks, {ends} at either end stay in bf16"
        )
    base.base_model.register_forward_pre_hook(held.clear)
    return converted
