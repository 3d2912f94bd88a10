"""A pruned model in memory, for a look at its loss before anything is written."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from nanoalign.common.processes import BUILDING
from nanoalign.compress.shapes import Widths, pruned_config
from nanoalign.compress.surgery import Kept, fates, slice_tensor
from nanoalign.models.hybrid import install


@torch.no_grad()
def pruned_model(model: PreTrainedModel, config: dict[str, Any], kept: Kept, sizes: Widths) -> PreTrainedModel:
    """What :func:`compress.surgery.write_pruned` writes of ``model``, beside it on its device, in its dtype.

    ``config`` is its config.json. Raises CheckpointError as :func:`compress.surgery.fates`.
    """
    new = pruned_config(config, kept.blocks, sizes)
    with tempfile.TemporaryDirectory() as folder:  # transformers reads what it wrote, infinities included, from files
        (Path(folder) / "config.json").write_text(json.dumps(new), encoding="utf-8")
        settings = AutoConfig.from_pretrained(folder)
    with BUILDING, torch.device(model.device), no_init_weights():
        pruned = AutoModelForCausalLM.from_config(
            settings, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    pruned.tie_weights()
    own, targets = dict(model.named_parameters()), dict(pruned.named_parameters())
    for fate in fates(config, {name: tuple(tensor.shape) for name, tensor in own.items()}, kept):
        if fate.becomes is not None:
            targets.pop(fate.becomes).copy_(slice_tensor(own[fate.name], fate))
    assert not targets, f"{', '.join(targets)} got no weights"
    install(pruned, "auto" if pruned.device.type == "cuda" else "torch")
    return pruned.eval()
