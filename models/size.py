"""Shapes that follow from a configuration. Plain arithmetic on config.json, no torch; see also models/footprint.py."""

from collections.abc import Mapping
from typing import Any

LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
WORDS = {
    "mamba": "mamba", "mamba2": "mamba", "linear_attention": "mamba", "attention": "attention", "mlp": "mlp",
    "moe": "moe", "full_attention": "attention", "sliding_attention": "attention",
}  # fmt: skip


def layer_kinds(config: Mapping[str, Any]) -> list[str]:
    """mamba, attention, mlp or moe for each block of a nemotron_h config.

    Other architectures have one MLP for each layer besides its mixer (falcon_h1 has both mixers in every layer).
    """
    if config["model_type"] == "nemotron_h":
        if "hybrid_override_pattern" in config:
            return [LETTERS[letter] for letter in config["hybrid_override_pattern"]]
        return [WORDS[word] for word in config["layers_block_type"]]
    layers = config["num_hidden_layers"]
    if config["model_type"] == "falcon_h1":
        return ["mamba", "attention", "mlp"] * layers
    if (attends := config.get("attn_layer_indices")) is not None:  # bamba
        return [kind for i in range(layers) for kind in ("attention" if i in attends else "mamba", "mlp")]
    mixers = config.get("layer_types") or config.get("layers_block_type") or ["attention"] * layers
    return [kind for word in mixers for kind in (WORDS[word], "mlp")]


def mamba_sizes(config: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Channels inside the block, convolution channels, heads, convolution width of one Mamba-2 block."""
    if config["model_type"] == "nemotron_h":
        heads, width = config["mamba_num_heads"], config["conv_kernel"]
        inner = heads * config["mamba_head_dim"]
        return inner, inner + 2 * config["n_groups"] * config["ssm_state_size"], heads, width
    heads, width = config["mamba_n_heads"], config["mamba_d_conv"]
    inner = config.get("mamba_d_ssm") or int(config["mamba_expand"] * config["hidden_size"])
    return inner, inner + 2 * config["mamba_n_groups"] * config["mamba_d_state"], heads, width


def head_dim(config: Mapping[str, Any]) -> int:
    """Channels of an attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def attention_cost(config: Mapping[str, Any], parameters: int) -> float:
    """c where L tokens cost as much as L + c L² would in products with weights alone.

    A token takes 2 operations a weight, and in each attention block 2 a channel for every token up to its own (scores
    and values are 4, half of them causal).
    """
    channels = layer_kinds(config).count("attention") * config["num_attention_heads"] * head_dim(config)
    return channels / parameters
