"""Small models that can be pruned, with weights far from their tame initial values."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, NemotronHConfig, PreTrainedModel, Qwen3Config

SHARED: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "hybrid": lambda **more: NemotronHConfig(
        **SHARED | {"hybrid_override_pattern": "M-M*-M*-", "head_dim": 8, "mamba_num_heads": 4, "mamba_head_dim": 8,
                    "n_groups": 2, "ssm_state_size": 8, "chunk_size": 8, "conv_kernel": 4} | more),
    "llama": lambda **more: LlamaConfig(**SHARED | {"num_hidden_layers": 4, "tie_word_embeddings": True} | more),
    "qwen3": lambda **more: Qwen3Config(**SHARED | {"num_hidden_layers": 3, "head_dim": 16} | more),
}  # fmt: skip


def small_model(name: str, seed: int = 0, **more: Any) -> PreTrainedModel:
    """Transformers' own model in eval mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](**more))
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if parameter.endswith((".D", "dt_bias", "A_log", "conv1d.bias", "norm.weight", "layernorm.weight")):
                weight.add_(0.3 * torch.randn_like(weight))
            elif weight.dim() == 2:
                weight.mul_(3)
    return model.eval()


def saved(name: str, folder: Path, seed: int = 0, **more: Any) -> Path:
    """:func:`small_model` in a folder."""
    small_model(name, seed, **more).save_pretrained(folder)
    return folder
