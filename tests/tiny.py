"""The models that tests of several rooms train, adapt, merge and serve, and a tokenizer that goes with them."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, NemotronHConfig, NemotronHForCausalLM

from nanoalign.models.hybrid import install


def tiny_hybrid(vocab_size: int = 64, **token_ids: int) -> NemotronHForCausalLM:
    """A NemotronH of 60,000 parameters, the same at every call, on this suite's Mamba-2 path. vLLM's CPU build serves
    no smaller heads. ``token_ids``: pad_token_id, bos_token_id, eos_token_id."""
    torch.manual_seed(0)
    model = NemotronHForCausalLM(
        NemotronHConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            hybrid_override_pattern="M-*-",
            intermediate_size=64,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            mamba_num_heads=2,
            mamba_head_dim=32,
            ssm_state_size=16,
            n_groups=1,
            chunk_size=16,
            **token_ids,
        )
    )
    install(model)
    return model


def tied_llama(vocab_size: int, **ids: int) -> LlamaForCausalLM:
    """A Llama whose head is its embedding, the same at every call."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=True, **ids,
        )
    )  # fmt: skip


def tiny_tokenizer(chat_name: str) -> Any:
    """512 tokens, trained on the miniature's sums, with the special tokens of a chat format."""
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.data_recipes.miniature import generate
    from nanoalign.data_recipes.miniature.tokenizer import train_tokenizer

    chat = chat_format(chat_name)
    texts = [
        "".join(span.text for span in spans)
        for conversation in generate("math", 200, "train", 0)
        for spans in chat.examples(conversation)
    ]
    return train_tokenizer(texts, chat.special_tokens, chat.stop[0], vocab_size=512)


def token_ids(tokenizer: Any) -> dict[str, int]:
    """The ids that :func:`tiny_hybrid` and the configs of other models take."""
    return {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
