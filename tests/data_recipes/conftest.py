"""Tokenizers for the tests of this room."""

import inspect
from typing import Any

import pytest

from data_recipes.chat import FORMATS

SPECIAL = sorted({token for chat in FORMATS.values() for token in (*chat.special_tokens, *chat.stop)})


def _train(pre_tokenizer: Any, extra: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    texts = [
        inspect.getsource(inspect)[:30_000],
        "<think></think>(a)  [b] yes.\n\n</think>\n\n" * 60,
        '")</tool_call> <x>(y)\n' * 60,
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, special_tokens=[*SPECIAL, *extra])
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def gpt2_like() -> Any:
    """GPT-2's splitting, thinking tags of several tokens (as SmolLM2's and Nano v2's tokenizers)."""
    from tokenizers import pre_tokenizers

    return _train(pre_tokenizers.ByteLevel(add_prefix_space=False), [])


@pytest.fixture(scope="session")
def superword() -> Any:
    """No splitting at all: tokens merge across words and line feeds, the hardest case for boundaries."""
    from tokenizers import pre_tokenizers

    return _train(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), ["<think>", "</think>"])
