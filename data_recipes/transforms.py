"""What is done to samples between their source and their tokens.

A transform takes a sample and a random generator of its own and gives ``(sample, None)`` for one left as it was,
``(new sample, reason)`` for a changed one and ``(None, reason)`` for a dropped one. Reasons are counted and shown.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from nanoalign.data_recipes.conversation import Conversation

Transform = Callable[[Conversation, Random], tuple[Conversation | None, str | None]]


@dataclass(frozen=True)
class Teaching:
    """Transforms that a worker process can make anew, and what tells them from others."""

    make: Callable[[], Sequence[Transform]]
    """To be pickled: a function of a module, or a partial of one."""
    settings: Mapping[str, Any]
    """Plain data; with the version of their code, if that lies outside of this room."""


def apply(
    conversations: Iterable[Conversation], transforms: Sequence[Transform], seed: int
) -> tuple[list[Conversation], Counter[str], Counter[str]]:
    """The samples after all transforms, the reasons of changes and the reasons of drops, counted.

    Each sample has a random generator of its own, so that its fate does not hang on the samples before it.
    """
    kept: list[Conversation] = []
    changed: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for number, conversation in enumerate(conversations):
        current, changes, drop = transformed(conversation, transforms, f"{seed}/{number}")
        changed.update(changes)
        dropped.update([drop] if drop else [])
        kept += [current] if current else []
    return kept, changed, dropped


def transformed(
    conversation: Conversation, transforms: Sequence[Transform], seed: str
) -> tuple[Conversation | None, list[str], str | None]:
    """A sample after all transforms (None: dropped), the reasons of its changes, and that of its drop."""
    rng = Random(seed)
    changes: list[str] = []
    for transform in transforms:
        current, reason = transform(conversation, rng)
        if current is None:
            return None, changes, reason
        changes += [reason] if reason else []
        conversation = current
    return conversation, changes, None
