"""From conversations to token ids with a loss mask.

Each render is tokenized in one piece, once, and the mask comes from the renderer's spans. There is one exception, so
that training sees the tokens that inference sees: where a token would reach across a place at which generation starts
or a close is forced (``>`` and ``(`` of ``<think></think>(a) ...`` as one token), the text is tokenized in two parts
there, as a prompt and its completion are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nanoalign.common.errors import CheckpointError
from nanoalign.data_recipes.chat.base import ChatFormat, Span
from nanoalign.data_recipes.conversation import Conversation

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


@dataclass(frozen=True)
class Example:
    """A training example: token ids, and for each 1 where the model is to learn to write it, else 0."""

    input_ids: list[int]
    loss_mask: list[int]


class ExampleEncoder:
    """Tokenizes conversations of one chat format with one tokenizer. Build it once: it copies the tokenizer."""

    def __init__(self, chat: ChatFormat, tokenizer: Any) -> None:
        """``tokenizer`` is a fast tokenizer of transformers, or a Rust tokenizer. Raises CheckpointError if it is
        neither, or if one of the format's special tokens is not a single token in it."""
        self.chat = chat
        self._tokenizer = offsets_tokenizer(tokenizer)
        self._tails: dict[str, list[int]] = {}
        for token in chat.special_tokens:
            token_id = self._tokenizer.token_to_id(token)
            if token_id is None or self._ids(f"a{token}a").count(token_id) != 1:
                raise CheckpointError(f"the tokenizer lacks {token!r} as a single token; {chat.name} needs it")

    def encode(self, conversations: Sequence[Conversation]) -> list[list[Example]]:
        """The examples of each conversation, in order; all texts go through the tokenizer in one parallel batch."""
        renders = [self.chat.examples(conversation) for conversation in conversations]
        texts = ["".join(span.text for span in spans) for spans in chain.from_iterable(renders)]
        encodings = iter(self._tokenizer.encode_batch(texts, add_special_tokens=False))
        return [[self._example(spans, next(encodings)) for spans in examples] for examples in renders]

    def encode_spans(self, spans: Sequence[Span]) -> Example:
        """One example from spans of text, for prompts and completions that are not complete conversations."""
        text = "".join(span.text for span in spans)
        return self._example(spans, self._tokenizer.encode(text, add_special_tokens=False))

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _example(self, spans: Sequence[Span], encoding: "Encoding") -> Example:
        ids = encoding.ids
        mask: list[int] = []
        position = 0
        for number, span in enumerate(spans):
            end = position + len(span.text)
            last = number + 1 == len(spans)
            first_after = len(ids) if last else _token_at(encoding, end, len(ids))
            if not last and not self._splits(span, encoding, ids, end, first_after):
                left, right = self.encode_spans(spans[: number + 1]), self.encode_spans(spans[number + 1 :])
                return Example(left.input_ids + right.input_ids, left.loss_mask + right.loss_mask)
            mask += [int(span.trained)] * (first_after - len(mask))
            position = end
        return Example(ids, mask)

    def _splits(self, span: Span, encoding: "Encoding", ids: list[int], boundary: int, token: int) -> bool:
        """Whether the full text's tokens split at ``boundary``, the end of ``span``, as those of two texts would."""
        chars = encoding.token_to_chars(token) if token < len(ids) else None
        if chars and chars[0] < boundary:
            return False
        if span.trained:
            return True
        start = max((span.text.rfind(special) for special in self.chat.special_tokens), default=-1)
        if start < 0:
            return True
        tail = span.text[start:]
        if tail not in self._tails:
            self._tails[tail] = self._ids(tail)
        expected = self._tails[tail]
        return ids[token - len(expected) : token] == expected


def tokenize(conversation: Conversation, chat: ChatFormat, tokenizer: Any) -> list[Example]:
    """The examples of one conversation: one where each turn extends the last, else one a rewritten turn.

    Raises DataError where the chat format cannot render the conversation, CheckpointError where the tokenizer does not
    fit the format.
    """
    return _encoder(chat, tokenizer).encode([conversation])[0]


def encode_batch(conversations: Sequence[Conversation], chat: ChatFormat, tokenizer: Any) -> list[list[Example]]:
    """:func:`tokenize` for many conversations, in parallel inside the tokenizer; the same examples."""
    return _encoder(chat, tokenizer).encode(conversations)


_ENCODERS: "WeakKeyDictionary[Any, dict[str, ExampleEncoder]]" = WeakKeyDictionary()


def _encoder(chat: ChatFormat, tokenizer: Any) -> ExampleEncoder:
    encoders = _ENCODERS.setdefault(tokenizer, {})
    if chat.name not in encoders:
        encoders[chat.name] = ExampleEncoder(chat, tokenizer)
    return encoders[chat.name]


def _token_at(encoding: "Encoding", position: int, end: int) -> int:
    """The first token that holds the character at ``position`` or, if no token does, one after it."""
    token = encoding.char_to_token(position)
    if token is not None:
        return token
    return next((i for i, (_, stop) in enumerate(encoding.offsets) if stop > position), end)


def rust_tokenizer(tokenizer: Any) -> "Tokenizer":
    """The Rust tokenizer inside a fast tokenizer of transformers (or itself). Raises CheckpointError for a slow one."""
    from tokenizers import Tokenizer

    inner = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(inner, Tokenizer):
        raise CheckpointError(f"{type(tokenizer).__name__} is not a fast tokenizer; loss masks need its offsets")
    return inner


def offsets_tokenizer(tokenizer: Any) -> "Tokenizer":
    """A copy of the Rust tokenizer that neither pads nor cuts, whose offsets count every character."""
    from tokenizers import Tokenizer

    state = json.loads(rust_tokenizer(tokenizer).to_str())
    # Post-processors add special tokens and trim spaces from offsets; the chat format writes its own special tokens.
    state |= {"post_processor": None, "padding": None, "truncation": None}
    return Tokenizer.from_str(json.dumps(state))
