"""Tiny random models over a toy vocabulary: a hybrid and a rotary transformer."""

import pytest
import torch

from nanoalign.budget_control.vocabulary import ThinkingTokens

VOCABULARY = 48
OPEN, CLOSE, END, NEWLINE = 1, 2, 3, 4


def toy_thinking() -> ThinkingTokens:
    pieces = [f" w{token}" for token in range(VOCABULARY)]
    pieces[OPEN], pieces[CLOSE], pieces[END], pieces[NEWLINE] = "<think>", "</think>", "<end>", "\n"
    return ThinkingTokens.from_pieces(pieces, [CLOSE], stop_ids=[END])


def toy_model(kind: str, seed: int = 0) -> torch.nn.Module:
    """``hybrid``: NemotronH on this suite's Mamba-2 path; ``llama``: rotary attention."""
    from transformers import LlamaConfig, LlamaForCausalLM, NemotronHConfig, NemotronHForCausalLM

    from nanoalign.models.hybrid import install

    torch.manual_seed(seed)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, pad_token_id=0, eos_token_id=END,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    else:
        config = NemotronHConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, hybrid_override_pattern="M-*M", chunk_size=8,
            mamba_num_heads=4, mamba_head_dim=8, ssm_state_size=8, n_groups=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=END,
        )  # fmt: skip
        model = NemotronHForCausalLM(config)
        install(model)
    with torch.no_grad():  # larger logits, so that greedy choices are not ties
        model.lm_head.weight.mul_(20)
    return model.eval()


@pytest.fixture(params=["hybrid", "llama"])
def model(request):
    return toy_model(request.param)


@pytest.fixture
def make_model():
    return toy_model


@pytest.fixture
def thinking():
    return toy_thinking()


def toy_tokenizer():
    """A word-level tokenizer whose ids are those of :func:`toy_thinking`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{token}": token for token in range(VOCABULARY)}
    for token, word in ((0, "<pad>"), (OPEN, "<think>"), (CLOSE, "</think>"), (END, "<end>"), (NEWLINE, "<line>")):
        del words[f"w{token}"]
        words[word] = token
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


@pytest.fixture
def tokenizer():
    return toy_tokenizer()


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """A folder with a tiny random hybrid and a byte-level tokenizer of the Nano v2 format."""
    from transformers import NemotronHConfig, NemotronHForCausalLM

    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.data_recipes.miniature.tokenizer import train_tokenizer
    from nanoalign.models.loading import save_model

    chat = chat_format("nemotron-nano-v2")
    special = [*chat.special_tokens, "<think>", "</think>"]
    tokenizer = train_tokenizer(["say some words", "go on and on"] * 50, special, chat.stop[0], 300)
    torch.manual_seed(0)
    config = NemotronHConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, hybrid_override_pattern="M-*-",
        chunk_size=16, mamba_num_heads=4, mamba_head_dim=8, ssm_state_size=8, n_groups=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=64, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    model = NemotronHForCausalLM(config)
    with torch.no_grad():  # turns end after a few tokens
        usual = model.model(torch.randint(3, len(tokenizer), (8, 40))).last_hidden_state.mean((0, 1))
        model.lm_head.weight[tokenizer.eos_token_id] = 5 * usual / usual.square().sum()
    folder = tmp_path_factory.mktemp("base")
    save_model(model, tokenizer, folder / "model")
    return folder / "model"
