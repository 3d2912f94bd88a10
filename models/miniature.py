"""The miniature: a hybrid of the Nemotron Nano shape, a few million parameters, for the CPU."""

from transformers import NemotronHConfig

PATTERN = "M-M-*-M-M-*-"
"""M Mamba-2, - MLP, * attention."""


def miniature_config(vocab_size: int, **special_token_ids: int | list[int]) -> NemotronHConfig:
    """The miniature's configuration; ``special_token_ids`` are bos_token_id, eos_token_id and pad_token_id.

    Embeddings are untied, as in Nano v2: transformers 5.17 reads no ``tie_word_embeddings`` for this class. vLLM
    needs an attention head_dim of 32 or more. ``time_step_min`` initialises dt (and is its lower limit in transformers'
    own forward, not in ours); positions are encoded nowhere, so ``max_position_embeddings`` only limits serving.
    """
    unknown = set(special_token_ids) - {"bos_token_id", "eos_token_id", "pad_token_id"}
    if unknown:
        raise TypeError(f"not a special token id: {', '.join(sorted(unknown))}")
    return NemotronHConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        hybrid_override_pattern=PATTERN,
        intermediate_size=768,
        mlp_hidden_act="relu2",
        mamba_num_heads=6,
        mamba_head_dim=64,
        ssm_state_size=32,
        n_groups=1,
        conv_kernel=4,
        chunk_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
        **special_token_ids,
    )
