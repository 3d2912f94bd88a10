"""A model and a tokenizer small enough to train in a test."""

from typing import Any

import pytest


def trained_tokenizer(chat_name: str) -> Any:
    from data_recipes.chat import chat_format
    from data_recipes.miniature import generate
    from data_recipes.miniature.tokenizer import train_tokenizer

    chat = chat_format(chat_name)
    texts = [
        "".join(span.text for span in spans)
        for conversation in generate("math", 200, "train", 0)
        for spans in chat.examples(conversation)
    ]
    return train_tokenizer(texts, chat.special_tokens, chat.stop[0], vocab_size=512)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return trained_tokenizer("nemotron-nano-v2")


@pytest.fixture(scope="session")
def chatml_tokenizer() -> Any:
    return trained_tokenizer("chatml")


@pytest.fixture
def tiny_model(tokenizer: Any) -> Any:
    """A NemotronH of 60,000 parameters, the same in every test, on this suite's Mamba-2 path."""
    import torch
    from transformers import NemotronHConfig, NemotronHForCausalLM

    from models.hybrid import install

    torch.manual_seed(0)
    model = NemotronHForCausalLM(
        NemotronHConfig(
            vocab_size=len(tokenizer),
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
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
    )
    install(model)
    return model
