"""From conversations to tokenized documents, with every sample accounted for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random
from typing import Any, Literal

import numpy as np

from common.errors import DataError
from data_recipes.chat.base import ChatFormat
from data_recipes.conversation import Conversation
from data_recipes.tokenize import Example, encode_batch
from sft.documents import Documents, gather
from sft.packing import turn_pieces

AT_ONCE = 1024
"""Conversations that are tokenized together."""
LISTED = 5
"""Faulty samples that an error message names; the others are counted."""


@dataclass(frozen=True)
class Prepared:
    """Documents, the conversation behind each, and what became of every sample."""

    documents: Documents
    origins: Sequence[Conversation]
    """The conversation of each document; one may give several."""
    by_domain: Counter[str] = field(default_factory=Counter)
    """Conversations that gave documents, by domain."""
    changed: Counter[str] = field(default_factory=Counter)
    """Conversations that were cut into pieces, by reason."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Conversations or pieces that are not trained on, by reason."""


def hold_out(
    conversations: Sequence[Conversation], most: int, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Takes at most ``most`` conversations, and at most 2%, out of training: (training, held out).

    Every further copy of a held-out one (a source seen for several epochs) leaves training too.
    """
    count = min(most, len(conversations) // 50)
    chosen = set(Random(f"{seed}/held out").sample(range(len(conversations)), count))
    keys = {repr(conversations[i].messages) for i in chosen}
    training = [each for each in conversations if repr(each.messages) not in keys] if chosen else list(conversations)
    return training, [conversations[i] for i in sorted(chosen)]


def prepare(
    conversations: Sequence[Conversation],
    chat: ChatFormat,
    tokenizer: Any,
    longest: int | None,
    over_long: Literal["error", "drop", "split"],
) -> Prepared:
    """Renders and tokenizes conversations into documents of at most ``longest`` tokens.

    Args:
        over_long: what happens to longer ones; ``split`` cuts at turn boundaries.

    Raises:
        DataError: a conversation has nothing to train on, or is too long and ``over_long`` is "error"; the first few
            are named.
    """
    examples: list[Example] = []
    origins: list[Conversation] = []
    by_domain: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    untrained: list[str] = []
    too_long: list[str] = []
    for start in range(0, len(conversations), AT_ONCE):
        batch = conversations[start : start + AT_ONCE]
        for conversation, rendered in zip(batch, encode_batch(batch, chat, tokenizer), strict=True):
            kept = 0
            for example in rendered:
                if not any(example.loss_mask[1:]):
                    untrained.append(_name(conversation))
                    continue
                pieces = [example]
                if longest is not None and len(example.input_ids) > longest:
                    too_long.append(f"{_name(conversation)} ({len(example.input_ids)} tokens)")
                    pieces = split(example, longest) if over_long == "split" else []
                    lost = len(example.input_ids) - sum(len(piece.input_ids) for piece in pieces)
                    changed["over-long, split at turns"] += bool(pieces)
                    dropped["over-long"] += not pieces
                    dropped["over-long, tokens that fit into no piece"] += lost if pieces else 0
                examples += pieces
                origins += [conversation] * len(pieces)
                kept += len(pieces)
            by_domain[conversation.domain or "unnamed"] += kept > 0
    if untrained:
        raise DataError(_listed(untrained, "without a token to train on (an all-zero loss mask)"))
    if too_long and over_long == "error":
        raise DataError(_listed(too_long, f"longer than {longest} tokens; raise the length or set over_long"))
    return Prepared(gather(examples), origins, +by_domain, +changed, +dropped)


def split(example: Example, longest: int) -> list[Example]:
    """The example cut at turn boundaries, see :func:`sft.packing.turn_pieces`."""
    return [
        replace(example, input_ids=example.input_ids[start:stop], loss_mask=example.loss_mask[start:stop])
        for start, stop in turn_pieces(example.loss_mask, longest)
    ]


def runs(ids: np.ndarray, trained: np.ndarray, tokenizer: Any) -> list[dict[str, Any]]:
    """A document as text, in runs of trained and untrained tokens, for people to read."""
    cuts = [0, *(np.flatnonzero(np.diff(trained.astype(np.int8))) + 1).tolist(), len(ids)]
    return [
        {"text": tokenizer.decode(ids[start:stop].tolist()), "trained": bool(trained[start])}
        for start, stop in pairwise(cuts)
        if stop > start
    ]


def _name(conversation: Conversation) -> str:
    return conversation.origin or f"{conversation.source}:{conversation.id or '?'}"


def _listed(names: Sequence[str], fault: str) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{names[0].split(' ')[0]}: {len(names)} samples {fault}: {', '.join(names[:LISTED])}{more}"
