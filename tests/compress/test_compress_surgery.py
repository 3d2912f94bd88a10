"""A pruned checkpoint computes what the original would with the removed parts silenced, and nothing is left out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from nanoalign.common.errors import CheckpointError
from nanoalign.compress import surgery
from nanoalign.compress.live import pruned_model
from nanoalign.compress.shapes import own_widths
from nanoalign.compress.surgery import Kept, fates, write_pruned
from nanoalign.models.model_folder import read_config, read_tensors
from tests.compress.models import saved

HIDDEN = [channel for channel in range(32) if channel % 4]
NEURONS = list(range(0, 48, 2))
EPSILON = {"hybrid": "layer_norm_epsilon", "llama": "rms_norm_eps", "qwen3": "rms_norm_eps"}


def _logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        return model(torch.arange(3, 40).unsqueeze(0)).logits


def _silenced(folder: Path, kept: Kept, config: dict[str, Any]) -> torch.Tensor:
    """Logits of the original whose removed parts are zeros. An RMSNorm that counts them as zeros divides by less than
    one that lacks them: its weight makes up for it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    layers = model.base_model.layers

    def others(kept_places: Any, size: int) -> list[int]:
        return [place for place in range(size) if place not in set(kept_places)]

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if kept.hidden is not None and "mixer.norm" not in name and weight.dim() == 1 and len(weight) == 32:
                weight.mul_((len(kept.hidden) / 32) ** 0.5)
        if kept.hidden is not None:
            gone = others(kept.hidden, 32)
            model.get_input_embeddings().weight[:, gone] = 0
            for name, weight in model.named_parameters():
                if name.endswith(("out_proj.weight", "down_proj.weight", "o_proj.weight")):
                    weight[gone] = 0
        for number, layer in enumerate(layers):
            parts = dict(layer.named_modules())
            down = parts.get("mixer.down_proj", parts.get("mlp.down_proj"))
            output = parts.get("mixer.o_proj", parts.get("self_attn.o_proj"))
            if number in kept.neurons:
                down.weight[:, others(kept.neurons[number], 48)] = 0
            if number in kept.heads:
                size = output.weight.shape[1] // 4
                for head in others(kept.heads[number], 4):
                    output.weight[:, head * size : (head + 1) * size] = 0
            if number in kept.mamba_heads:
                mixer, heads, channels = layer.mixer, kept.mamba_heads[number], kept.mamba_channels[number]
                places = {head * 8 + channel for head in heads for channel in channels}
                gone = others(places, 32)
                mixer.in_proj.weight[gone] = 0  # the gate: what is gated is nothing, before the norm and after it
                mixer.norm.weight.mul_((len(places) / 32) ** 0.5)
    kept_layers = torch.nn.ModuleList(layers[number] for number in kept.blocks)
    for index, layer in enumerate(kept_layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    model.base_model.layers = kept_layers
    with torch.no_grad():
        model.config.use_cache = False
        if hasattr(model.config, "num_hidden_layers") and config["model_type"] != "nemotron_h":
            model.config.num_hidden_layers = len(kept_layers)
        return model(torch.arange(3, 40).unsqueeze(0), use_cache=False).logits


def _kept(name: str) -> Kept:
    if name == "hybrid":
        whole: dict[str, Any] = {
            "neurons": dict.fromkeys((1, 4, 7), NEURONS), "heads": {3: [0, 2], 6: [1, 3]},
            "mamba_heads": {0: [0, 3], 2: [1, 2], 5: [0, 2]},
            "mamba_channels": {0: range(6), 2: [0, 1, 2, 3, 6, 7], 5: range(1, 7)},
        }  # fmt: skip
        return Kept([0, 1, 2, 4, 5, 6, 7], HIDDEN, **whole)
    layers = 4 if name == "llama" else 3
    return Kept(
        blocks=[0, *range(2, layers)],
        hidden=HIDDEN,
        neurons=dict.fromkeys(range(layers), NEURONS),
        heads={layer: [1, 2] for layer in range(layers)},
    )


@pytest.mark.parametrize("name", ["hybrid", "llama", "qwen3"])
def test_pruned_is_the_original_with_its_removed_parts_silenced(name: str, tmp_path: Path):
    source, kept = saved(name, tmp_path / "whole", **{EPSILON[name]: 1e-12}), _kept(name)
    config = read_config(source)
    sizes = replace(own_widths(config), hidden_size=24, intermediate_size=24, num_attention_heads=2)
    if name == "hybrid":
        sizes = replace(sizes, mamba_num_heads=2, mamba_head_dim=6)
    write_pruned(source, kept, sizes, tmp_path / "pruned")
    torch.testing.assert_close(_logits(tmp_path / "pruned"), _silenced(source, kept, config), rtol=1e-6, atol=1e-6)


def test_nothing_removed_is_a_copy(tmp_path: Path):
    source = saved("hybrid", tmp_path / "whole")
    config = read_config(source)
    table = write_pruned(source, Kept(range(8)), own_widths(config), tmp_path / "copy")
    assert read_config(tmp_path / "copy") == config
    assert torch.equal(_logits(tmp_path / "copy"), _logits(source))
    assert [fate.becomes for fate in table] == [fate.name for fate in table]


def test_every_tensor_is_in_the_table(tmp_path: Path):
    source, kept = saved("hybrid", tmp_path / "whole"), Kept([0, 1, 3, 7])
    table = write_pruned(source, kept, own_widths(read_config(source)), tmp_path / "pruned")
    assert {fate.name for fate in table} == set(read_tensors(source))
    assert {fate.becomes for fate in table if fate.becomes} == set(read_tensors(tmp_path / "pruned"))
    gone = {fate.name.split(".")[2] for fate in table if fate.becomes is None}
    assert gone == {"2", "4", "5", "6"}


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "whole"
    model = AutoModelForCausalLM.from_pretrained(saved("hybrid", tmp_path / "single"))
    model.save_pretrained(source, max_shard_size="20KB")
    monkeypatch.setattr(surgery, "SHARD_BYTES", 16_000)
    kept, sizes = Kept([0, 1, 2, 3, 4]), own_widths(read_config(source))
    write_pruned(source, kept, sizes, tmp_path / "sharded")
    write_pruned(tmp_path / "single", kept, sizes, tmp_path / "other")
    files = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 2
    total = json.loads((tmp_path / "sharded/model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert total == sum(header.nbytes for header in read_tensors(tmp_path / "sharded").values())
    assert torch.equal(_logits(tmp_path / "sharded"), _logits(tmp_path / "other"))


def test_an_unknown_tensor_is_an_error(tmp_path: Path):
    config = read_config(saved("hybrid", tmp_path))
    shapes = {name: header.shape for name, header in read_tensors(tmp_path).items()}
    with pytest.raises(CheckpointError, match=r"layers.0.mixer.adapter.weight: no rule"):
        fates(config, {**shapes, "backbone.layers.0.mixer.adapter.weight": (3, 3)}, Kept(range(8)))
    with pytest.raises(CheckpointError, match="hidden is 32 in"):
        fates(config, {"backbone.norm_f.weight": (31,)}, Kept(range(8), hidden=HIDDEN))


def test_nothing_is_written_where_a_tensor_is_missing(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    source = saved("hybrid", tmp_path / "whole")
    tensors = load_file(source / "model.safetensors")
    del tensors["backbone.layers.1.mixer.up_proj.weight"]
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="a tensor is missing"):
        write_pruned(source, Kept(range(8)), own_widths(read_config(source)), tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize("name", ["hybrid", "llama"])
def test_in_memory_it_is_the_same_model(name: str, tmp_path: Path):
    """Tied heads (llama's here) included."""
    source, kept = saved(name, tmp_path / "whole"), _kept(name)
    config = read_config(source)
    sizes = replace(own_widths(config), hidden_size=24, intermediate_size=24, num_attention_heads=2)
    if name == "hybrid":
        sizes = replace(sizes, mamba_num_heads=2, mamba_head_dim=6)
    write_pruned(source, kept, sizes, tmp_path / "pruned")
    whole = AutoModelForCausalLM.from_pretrained(source)
    there = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").state_dict()
    held = pruned_model(whole, config, kept, sizes).state_dict()
    assert set(held) == set(there)
    assert all(torch.equal(tensor, there[each]) for each, tensor in held.items())
