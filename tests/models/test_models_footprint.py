"""Parameters and memory from a configuration, against transformers' own models and against what was published."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, NemotronHConfig

from nanoalign.common.errors import CheckpointError
from nanoalign.models.footprint import caches, count, memory
from nanoalign.models.known import KNOWN
from nanoalign.models.miniature import miniature_config
from tests.models.small import config as small_config

NANO_12B = KNOWN["nvidia/NVIDIA-Nemotron-Nano-12B-v2-Base"]
NANO_9B = KNOWN["nvidia/NVIDIA-Nemotron-Nano-9B-v2"]
SMALL: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HYBRID = SMALL | {"hybrid_override_pattern": "M-M*M-", "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2}
CONFIGS = {
    "miniature": miniature_config(2048),
    "hybrid": NemotronHConfig(**HYBRID),
    "hybrid with biases": NemotronHConfig(**HYBRID, use_bias=True, attention_bias=True, mlp_bias=True),
    "hybrid without convolution bias": NemotronHConfig(**HYBRID, use_conv_bias=False),
    "hybrid that says it is tied": NemotronHConfig(**HYBRID, tie_word_embeddings=True),
    **{
        f"{name}{more}": getattr(transformers, name)(**SMALL, num_hidden_layers=3, **more)
        for name in ("LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config", "SmolLM3Config")
        for more in ({}, {"tie_word_embeddings": name != "SmolLM3Config"}, {"head_dim": 32})
    },
    "llama with biases": transformers.LlamaConfig(**SMALL, num_hidden_layers=2, attention_bias=True, mlp_bias=True),
    "qwen3 with biases": transformers.Qwen3Config(**SMALL, num_hidden_layers=2, attention_bias=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_are_those_of_the_real_model(name: str):
    config = CONFIGS[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = count(config.to_dict())
    sizes = {weight: tensor.numel() for weight, tensor in model.named_parameters()}
    assert found.total == sum(sizes.values())
    assert found.embedding == model.get_input_embeddings().weight.numel()
    assert found.head == sizes.get("lm_head.weight", 0)
    inside = sum(size for weight, size in sizes.items() if ".layers." in weight)
    assert sum(found.each[kind] * found.blocks[kind] for kind in found.blocks) == inside


@pytest.mark.parametrize(
    "hidden, inner, heads, billions",
    [(4480, 17_920, 112, 8.92), (4480, 15_680, 128, 8.89), (4800, 14_400, 120, 8.97)],
)
def test_the_published_candidates(hidden: int, inner: int, heads: int, billions: float):
    """arXiv 2508.14444, table 10: three shapes of the pruned model's 56 blocks."""
    shape = {"hidden_size": hidden, "intermediate_size": inner, "mamba_num_heads": heads}
    assert round(count(NANO_9B | shape).total / 1e9, 2) == billions


def test_the_published_models():
    assert round(count(NANO_12B).total / 1e9, 2) == 12.31
    assert round(count(NANO_9B).total / 1e9, 2) == 8.89


def test_nano_9b_fits_its_gpu():
    """At 128K in bf16: 16.6 GiB of weights, 2.0 of keys and values, 0.13 of float32 state (arXiv 2508.14444)."""
    found = memory(NANO_9B, 131_072)
    assert [round(part / 2**30, 2) for part in (found.weights, found.kv, found.ssm)] == [16.56, 2.0, 0.13]
    assert found.total / 2**30 == pytest.approx(18.7, abs=0.05)
    assert memory(NANO_9B, 131_072, weights="fp8", cache="fp8").kv == found.kv / 2
    assert memory(NANO_9B, 131_072, batch=4).ssm == 4 * found.ssm


@pytest.mark.parametrize("name", ["nemotron_h", "bamba", "falcon_h1", "llama"])
def test_caches_are_those_of_the_real_model(name: str):
    config = small_config(name)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        cache = model(torch.zeros(1, 7, dtype=torch.long), use_cache=True).past_key_values
    kv, ssm, conv = caches(config.to_dict())
    found = {"kv": 0, "ssm": 0, "conv": 0}
    for layer in cache.layers:
        if getattr(layer, "keys", None) is not None:
            found["kv"] += layer.keys.numel() + layer.values.numel()
        for part, name_ in (("ssm", "recurrent_states"), ("conv", "conv_states")):
            states = getattr(layer, name_, None) or {}
            found[part] += sum(state.numel() for state in states.values() if state is not None)
    assert found == {"kv": 7 * kv, "ssm": ssm, "conv": conv}


def test_what_is_not_counted_is_refused():
    with pytest.raises(CheckpointError, match="model_type 'bamba': parameters are counted for nemotron_h, llama"):
        count(small_config("bamba").to_dict())
    with pytest.raises(CheckpointError, match="experts"):
        count(NANO_9B | {"hybrid_override_pattern": "M-ME*"})


def test_no_torch():
    code = "import sys, nanoalign.models.footprint; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
