"""Which layers of a model are trained with FP8 products (:mod:`models.fp8`), and on what; a plan reads it without
torch."""

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from nanoalign.common.errors import ConfigError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

EMULATE = "NANOALIGN_EMULATE_FP8"
"""Set in the tests' environment: products of dequantized tiles on the CPU, slow."""
CARDS = "a Hopper GPU (H100, H200)"
PROJECTIONS = frozenset(
    ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj", "in_proj", "out_proj",
     "input_linear", "output_linear")
)  # fmt: skip
"""Linear layers by the last part of their name: of attention, MLPs (Granite's are the last two) and Mamba mixers."""
FEW = 4
"""Keys and values with fewer outputs than inputs by this factor stay in bf16: rounding the inputs of 5,120 features for
1,024 outputs cost more than the product saved (0.60 times bf16's speed on an H100, docs/results/fp8.md)."""
ENDS = 1
"""Blocks at either end of a model that stay in bf16, as in Nemotron Nano v2's own training."""
DESCRIPTION = (
    "fp8 in projections of attention, MLPs and Mamba mixers; bf16 in the first and the last block, embeddings, head, "
    "few keys and values, norms, attention, convolutions, scans, adapters, and on held-out samples"
)
"""For a plan."""


def fault(device: str, launch: str) -> str | None:
    """Why a stage cannot train in FP8 on a recipe's `device`, or None, as far as this machine knows."""
    if os.environ.get(EMULATE):
        return None
    if device == "cpu":
        return f"fp8 needs {CARDS}, and `device` is cpu"
    if launch != "local":
        return None
    if shutil.which("nvidia-smi") is None:
        away = "; --device cuda plans for another machine"
        return f"fp8 needs {CARDS}, and this machine has none{away}" if device == "auto" else None
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False).stdout.split("\n")
    others = [name.strip() for name, _, capability in (line.rpartition(",") for line in listed)
              if capability.strip() and capability.strip()[:2] != "9."]  # fmt: skip
    return f"fp8 needs {CARDS}; this machine has {others[0]}" if others else None


def use_fp8(model: "PreTrainedModel | PeftModel", always: bool = False, ends: int = ENDS) -> list[str]:
    """Gives the projections of ``model`` FP8 products, in place; parameters and their names stay. Adapters may be on.

    Args:
        always: in eval mode too, for what is compared with a policy in training.
        ends: blocks at either end that stay as they are.

    Returns the names of these layers.

    Raises:
        ConfigError: there are none.
    """
    from torch import nn

    from nanoalign.models.adapters import base_of
    from nanoalign.models.fp8 import Fp8Linear, held

    base = base_of(model)
    blocks = list(getattr(base.base_model, "layers", ()))
    converted = []
    for number, block in enumerate(blocks[ends : len(blocks) - ends], ends):
        for name, module in block.named_modules():
            parts = name.removesuffix(".base_layer").split(".")  # peft's adapters are around it
            if type(module) not in (nn.Linear, Fp8Linear) or parts[-1] not in PROJECTIONS:
                continue
            if parts[-1] in ("k_proj", "v_proj") and module.out_features * FEW < module.in_features:
                continue
            module.__class__, module.always = Fp8Linear, always
            converted.append(f"layers.{number}.{name}")
    if not converted:
        raise ConfigError(
            f"train.precision: fp8 finds no layer for it: of {len(blocks)} blocks, {ends} at either end stay in bf16"
        )
    base.base_model.register_forward_pre_hook(held.clear)
    return converted
