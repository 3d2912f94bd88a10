"""Tables from tokenizers of every kind: newline sets, close sequences, texts that only exist in pieces."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nanoalign.budget_control.rule import BudgetRule
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import ConfigError

CORPUS = [
    "Let us see.\n\nFirst,\n    x = 1\n",
    "<think>\nhm, naïve é\n</think>\n\nanswer 42.\n",
    "日本語 text 🙂\n",
] * 40


def byte_level(added: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False),
    )
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2's kind: a blank before the first word, bytes for what the vocabulary lacks (newlines among them)."""
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "<", "/", ">", "t", "h", "i",
              "n", "k", "a", "▁a", "</", "▁</", "th", "thin", "think", "in"]  # fmt: skip
    merges = [("▁", "a"), ("<", "/"), ("▁", "</"), ("t", "h"), ("i", "n"), ("th", "in"), ("thin", "k")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def characters(text: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(dict.fromkeys(text + "\n"))}, []))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


KINDS = {
    "byte-level": byte_level(),
    "byte-level, tags as tokens": byte_level(("<think>", "</think>")),
    "sentencepiece": sentencepiece(),
    "characters": characters("abcdefghijklmnopqrstuvwxyz</> .,"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_close_reads_as_the_closing_tag_after_a_line_end(kind: str) -> None:
    tokenizer = KINDS[kind]
    tokens = ThinkingTokens.from_tokenizer(tokenizer)
    before = tokenizer.encode("a\n", add_special_tokens=False)
    assert tokenizer.decode([*before, *tokens.close_ids]) == "a\n</think>"
    assert len(tokens.close_ids) == (1 if "as tokens" in kind else 8 if kind == "characters" else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_closing_and_line_ends_as_read_from_whole_texts(kind: str) -> None:
    """However a text falls into tokens, the tables say of each prefix what its decoded text says."""
    tokenizer = KINDS[kind]
    tokens = ThinkingTokens.from_tokenizer(tokenizer)
    for text in [
        "a <think>\nhm.\n\nx\n    y</think>\n\nanswer",
        "<think></think>a<think>b",
        "<thi</thin <think>< /think></think>",
    ]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        place = 0
        for count, token in enumerate(ids, start=1):
            place = tokens.step(place, token)
            read = tokenizer.decode(ids[:count])
            assert (place >= tokens.first_thinking) == (read.count("<think>") > read.count("</think>")), read
            assert tokens.ends_line(token) == (
                read.rstrip(" ").endswith("\n") and "\n" in tokenizer.decode([ids[0], token])
            )


def test_line_ends_are_tokens_after_whose_last_newline_only_blanks_follow() -> None:
    tokenizer = KINDS["byte-level"]
    tokens = ThinkingTokens.from_tokenizer(tokenizer)
    vocabulary = {tokenizer.decode([i]): i for i in range(len(tokenizer))}
    assert {"\n", "\n   "} <= vocabulary.keys()
    for text, token in vocabulary.items():
        assert tokens.ends_line(token) == ("\n" in text and not text[text.rindex("\n") :].strip())


def test_a_close_inside_a_character_leaves_it_broken_and_is_still_a_close() -> None:
    tokenizer = KINDS["byte-level"]
    tokens = ThinkingTokens.from_tokenizer(tokenizer)
    rule = BudgetRule(tokens, 1, grace=0)
    bytes_of_smile = tokenizer.encode("🌶", add_special_tokens=False)
    assert len(bytes_of_smile) > 2
    state, written = rule.start(tokenizer.encode("<think>")), []
    for token in [*bytes_of_smile, *bytes_of_smile]:
        written.append(rule.written(state, token))
        state = rule.advance(state, written[-1])
        if not rule.thinking(state):
            break
    assert tokenizer.decode(written).endswith("\ufffd</think>")


def test_stop_tokens_are_the_formats_and_the_tokenizers_own() -> None:
    tokenizer = byte_level(("<end>",))
    tokens = ThinkingTokens.from_tokenizer(tokenizer, stop=["<end>"])
    assert tokens.stop_ids == {tokenizer.convert_tokens_to_ids("<end>"), tokenizer.eos_token_id}
    with pytest.raises(ConfigError, match="stop text 'Let us' is"):
        ThinkingTokens.from_tokenizer(tokenizer, stop=["Let us"])


def test_a_tokenizer_that_cannot_write_the_close_is_named() -> None:
    with pytest.raises(ConfigError, match="cannot write '</think>'"):
        ThinkingTokens.from_tokenizer(characters("think"))
