"""The miniature's tokenizer: byte-level BPE with single digits, trained on its own world.

Tokens may span words (as in SuperBPE, Liu et al. 2025), up to 24 bytes: the tool instructions of the chat format are
the same few hundred characters in every prompt, and would otherwise be most of what a CPU trains on. A line feed and a
digit are always tokens of their own.
"""

from collections.abc import Iterable, Sequence
from typing import Any

END_OF_DOCUMENT = "</s>"
PAD = "<pad>"


def train_tokenizer(texts: Iterable[str], special_tokens: Sequence[str], stop: str, vocab_size: int = 2048) -> Any:
    """A ``PreTrainedTokenizerFast`` with ``vocab_size`` tokens. ``special_tokens`` are those of the chat format; they
    stay visible when decoding with ``skip_special_tokens`` (thinking and tool tags are part of the text), and ``stop``
    ends a turn (``eos_token``)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\\n| ?[0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    marks = [AddedToken(token, normalized=False, special=False) for token in special_tokens if token != stop]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(marks),
            special_tokens=[PAD, END_OF_DOCUMENT, stop],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
            max_token_length=24,
        ),
    )
    tokenizer.add_tokens(marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=stop,
        bos_token=END_OF_DOCUMENT,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
