"""What is done to samples between their source and their tokens.

A transform takes a sample and a random generator of its own and gives ``(sample, None)`` for one left as it was,
``(new sample, reason)`` for a changed one and ``(None, reason)`` for a dropped one. Reasons are counted and shown.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from nanoalign.data_recipes.conversation import Conversation

Transform = Callable[[Conversation, Random], tuple[Conversation | None, str | None]]
Filter = Callable[[Conversation], str | None]
"""The reason to leave a sample out, or None to keep it."""
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Teaching:
    """Transforms that a worker process can recreate, and what identifies them."""

    make: Callable[[], Sequence[Transform]]
    """To be pickled: a function of a module, or a partial of one."""
    settings: Mapping[str, Any]
    """Plain data; with the version of their code, if that is outside this room."""


def apply(
    conversations: Iterable[Conversation], transforms: Sequence[Transform], seed: int
) -> tuple[list[Conversation], Counter[str], Counter[str]]:
    """The samples after all transforms, the reasons of changes and the reasons of drops, counted.

    Each sample has a random generator of its own, so that its result does not depend on the samples before it.
    """
    kept: list[Conversation] = []
    changed: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for number, conversation in enumerate(conversations):
        rng = Random(f"{seed}/{number}")
        current: Conversation | None = conversation
        for transform in transforms:
            assert current is not None
            current, reason = transform(current, rng)
            if reason:
                (dropped if current is None else changed)[reason] += 1
            if current is None:
                break
        if current is not None:
            kept.append(current)
    return kept, changed, dropped


def text_of(conversation: Conversation) -> str:
    """All text of a conversation: contents and reasoning, one per line."""
    return "\n".join(part for message in conversation.messages for part in (message.reasoning, message.content) if part)


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return WORD.findall(text.lower())


def licences(allow: Iterable[str]) -> Filter:
    """Keeps rows under these SPDX identifiers, whatever their case."""
    allowed = {licence.lower() for licence in allow}

    def keep(conversation: Conversation) -> str | None:
        licence = conversation.licence
        return None if licence.lower() in allowed else f"licence {licence or 'unknown'} not allowed"

    return keep


def languages(keep_only: Iterable[str]) -> Filter:
    """Keeps these language codes."""
    wanted = set(keep_only)
    return lambda conversation: None if conversation.language in wanted else f"language {conversation.language}"


def at_most(characters: int) -> Filter:
    """Keeps samples of at most this many characters, including reasoning."""
    return lambda conversation: (
        None if len(text_of(conversation)) <= characters else f"longer than {characters} characters"
    )


class Contamination:
    """Leaves out samples that contain ``n`` consecutive words of a benchmark's prompt, or a complete shorter prompt (of
    at least ``SHORTEST`` words). ``hits`` records which sample met which benchmark."""

    SHORTEST = 5

    def __init__(self, benchmarks: Iterable[Conversation], n: int = 13) -> None:
        self.hits: list[tuple[str, str]] = []
        # Runs of words by their first few, so that a text is walked once, whatever the runs' lengths.
        self._runs: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}
        for benchmark in benchmarks:
            prompt = "\n".join(message.content for message in benchmark.messages if message.role == "user")
            words = tuple(words_of(prompt))
            size = min(n, len(words))
            if size >= self.SHORTEST:
                for start in range(len(words) - size + 1):
                    run = words[start : start + size]
                    name = f"{benchmark.source} {benchmark.id}"
                    self._runs.setdefault(run[: self.SHORTEST], {}).setdefault(run, name)

    def __call__(self, conversation: Conversation) -> str | None:
        words = tuple(words_of(text_of(conversation)))
        for start in range(len(words) - self.SHORTEST + 1):
            for run, name in self._runs.get(words[start : start + self.SHORTEST], {}).items():
                if words[start : start + len(run)] == run:
                    self.hits.append((conversation.origin or conversation.id, name))
                    return f"holds a prompt of {name.split(' ')[0] or 'a benchmark'}"
        return None
