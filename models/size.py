"""Sizes that follow from a configuration: blocks, parameters, cache. Plain arithmetic on config.json, no torch."""

from typing import Any

LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
WORDS = {
    "mamba": "mamba", "mamba2": "mamba", "linear_attention": "mamba", "attention": "attention", "mlp": "mlp",
    "moe": "moe", "full_attention": "attention", "sliding_attention": "attention",
}  # fmt: skip


def layer_kinds(config: dict[str, Any]) -> list[str]:
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
    mixers = config.get("layer_types") or config.get("layers_block_type") or ["attention"] * layers
    return [kind for word in mixers for kind in (WORDS[word], "mlp")]


def _mamba_sizes(config: dict[str, Any]) -> tuple[int, int, int, int]:
    """Channels inside the block, convolution channels, heads, convolution width of one Mamba-2 block."""
    if config["model_type"] == "nemotron_h":
        heads, width = config["mamba_num_heads"], config["conv_kernel"]
        inner = heads * config["mamba_head_dim"]
        return inner, inner + 2 * config["n_groups"] * config["ssm_state_size"], heads, width
    heads, width = config["mamba_n_heads"], config["mamba_d_conv"]
    inner = config.get("mamba_d_ssm") or int(config["mamba_expand"] * config["hidden_size"])
    return inner, inner + 2 * config["mamba_n_groups"] * config["mamba_d_state"], heads, width


def _head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def parameters(config: dict[str, Any]) -> int:
    """Parameters of a nemotron_h (without experts) or llama model, embeddings included (tied ones once)."""
    hidden, kinds = config["hidden_size"], layer_kinds(config)
    nemotron = config["model_type"] == "nemotron_h"
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    total = (
        config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2) + hidden + len(kinds) * hidden
    )
    total += kinds.count("attention") * 2 * hidden * (heads + kv_heads) * _head_dim(config)
    total += kinds.count("mlp") * (2 if nemotron else 3) * hidden * config["intermediate_size"]
    if "mamba" in kinds:
        inner, channels, mamba_heads, width = _mamba_sizes(config)
        block = (
            hidden * (inner + channels + mamba_heads)
            + inner * hidden
            + channels * (width + 1)
            + 3 * mamba_heads
            + inner
        )
        total += kinds.count("mamba") * block
    return total


def state_bytes(config: dict[str, Any]) -> tuple[int, int]:
    """KV cache bytes of one token (bf16) and Mamba state bytes of one sequence (fp32 state, bf16 convolution)."""
    kinds = layer_kinds(config)
    kv = 0
    if "attention" in kinds:
        kv = kinds.count("attention") * 2 * config["num_key_value_heads"] * _head_dim(config) * 2
    if "mamba" not in kinds:
        return kv, 0
    inner, channels, _, width = _mamba_sizes(config)
    size = config["ssm_state_size"] if config["model_type"] == "nemotron_h" else config["mamba_d_state"]
    return kv, kinds.count("mamba") * (4 * inner * size + 2 * channels * width)


def attention_cost(config: dict[str, Any], parameters: int) -> float:
    """c where L tokens cost as much as L + c L² would in products with weights alone.

    A token takes 2 operations a weight, and in each attention block 2 a channel for every token up to its own (scores
    and values are 4, half of them causal).
    """
    channels = layer_kinds(config).count("attention") * config["num_attention_heads"] * _head_dim(config)
    return channels / parameters
