"""A model and a tokenizer small enough to train in a test."""

from typing import Any

import pytest

from tests.tiny import tiny_hybrid, tiny_tokenizer, token_ids


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_tokenizer("nemotron-nano-v2")


@pytest.fixture(scope="session")
def chatml_tokenizer() -> Any:
    return tiny_tokenizer("chatml")


@pytest.fixture
def tiny_model(tokenizer: Any) -> Any:
    return tiny_hybrid(len(tokenizer), **token_ids(tokenizer))
