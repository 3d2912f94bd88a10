"""The miniature's tokenizer: byte-level BPE with single digits, trained on its own world."""

from collections.abc import Iterable, Sequence
from typing import Any

END_OF_DOCUMENT = "</s>"
PAD = "<pad>"


def train_tokenizer(texts: Iterable[str], special_tokens: Sequence[str], stop: str, vocab_size: int = 2048) -> Any:
    """A ``PreTrainedTokenizerFast`` with ``vocab_size`` tokens. ``special_tokens`` are those of the chat format; they
    stay visible when decoding with ``skip_special_tokens`` (thinking and tool tags are part of the text), and ``stop``
    ends a turn (``eos_token``)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    marks = [AddedToken(token, normalized=False, special=False) for token in special_tokens if token != stop]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size - len(marks), special_tokens=[PAD, END_OF_DOCUMENT, stop],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_tokens(marks)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=stop, bos_token=END_OF_DOCUMENT,
                                   clean_up_tokenization_spaces=False, model_max_length=4096)
