"""Small models of every architecture that packs, with weights far from their tame initial values."""

from typing import Any

import torch
from transformers import (
    BambaConfig,
    FalconH1Config,
    GraniteMoeHybridConfig,
    LlamaConfig,
    MistralConfig,
    NemotronHConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB = 61
SHARED: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_chunk_size": 8,
    "mamba_expand": 2,
}  # fmt: skip


def config(name: str) -> PreTrainedConfig:
    match name:
        case "nemotron_h":
            return NemotronHConfig(
                **SHARED, hybrid_override_pattern="M-M*-", head_dim=8, mamba_num_heads=4, mamba_head_dim=16,
                n_groups=2, ssm_state_size=8, chunk_size=8, conv_kernel=4,
            )  # fmt: skip
        case "llama":
            return LlamaConfig(**SHARED, num_hidden_layers=2)
        case "mistral":
            return MistralConfig(**SHARED, num_hidden_layers=2, sliding_window=5, head_dim=8)
        case "bamba":
            return BambaConfig(**SHARED, **MAMBA, num_hidden_layers=3, attn_layer_indices=[1])
        case "granitemoehybrid":
            return GraniteMoeHybridConfig(
                **SHARED, **MAMBA, num_hidden_layers=3, layer_types=["mamba", "attention", "mamba"],
                shared_intermediate_size=48, num_local_experts=0, position_embedding_type="rope",
            )  # fmt: skip
        case "falcon_h1":
            return FalconH1Config(**SHARED, **MAMBA, num_hidden_layers=2, mamba_d_ssm=64, ssm_in_multiplier=0.8)
    raise ValueError(name)


def small_model(name: str, seed: int = 0) -> PreTrainedModel:
    """Transformers' own model, untouched by this suite, in eval mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(name))
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if parameter.endswith((".D", "dt_bias", "A_log", "conv1d.bias")):
                weight.add_(torch.randn_like(weight))
            elif weight.dim() == 2:
                weight.mul_(3)
    return model.eval()
