"""Which samples a mixture leaves out before any are drawn. Some filters remember what they saw, so each sample is shown
to them once."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation, text_of, words_of
from nanoalign.data_recipes.duplicates import ExactDuplicates, NearDuplicates
from nanoalign.data_recipes.quality import QualityFlags

Filter = Callable[[Conversation], str | None]
"""The reason to leave a sample out, or None to keep it."""


def make_filters(
    mixture: Mixture, benchmarks: Iterable[Conversation]
) -> tuple[list[Filter], "Contamination | None", QualityFlags | None]:
    """The filters that a mixture names, in their order, the one that looks for the prompts of ``benchmarks``, and the
    one that counts quality flags."""
    optional: list[tuple[Any, Callable[[Any], Filter]]] = [
        (mixture.allow_licences, licences),
        (mixture.languages, languages),
        (mixture.max_characters, at_most),
    ]
    filters = [make(value) for value, make in optional if value is not None]
    quality = QualityFlags(mixture.quality) if mixture.quality else None
    contamination = Contamination(benchmarks) if mixture.decontaminate else None
    filters += [each for each in (quality, contamination) if each is not None]
    if mixture.deduplicate:
        filters.append(ExactDuplicates() if mixture.deduplicate == "exact" else NearDuplicates())
    return filters, contamination, quality


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
    """Keeps samples that say at most so many characters, reasoning included."""
    return lambda conversation: (
        None if len(text_of(conversation)) <= characters else f"longer than {characters} characters"
    )


class Contamination:
    """Leaves out samples that hold ``n`` words in a row of a benchmark's prompt, or the whole of a shorter prompt (of
    at least ``SHORTEST`` words). ``hits`` tells which sample met which benchmark. ``own`` looks only for what no two
    prompts share: templates around the questions are in no question's own words."""

    SHORTEST = 5

    def __init__(self, benchmarks: Iterable[Conversation], n: int = 13, *, own: bool = False) -> None:
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
                    runs = self._runs.setdefault(run[: self.SHORTEST], {})
                    if runs.setdefault(run, name) != name and own:
                        runs[run] = ""

    def __call__(self, conversation: Conversation) -> str | None:
        name = next(self.met(conversation), None)
        if name is None:
            return None
        self.hits.append((conversation.origin or conversation.id, name))
        return f"holds a prompt of {name.split(' ')[0] or 'a benchmark'}"

    def met(self, conversation: Conversation) -> Iterator[str]:
        """The prompts that a sample holds, ``<source> <id>``, once for each run of words."""
        words = tuple(words_of(text_of(conversation)))
        for start in range(len(words) - self.SHORTEST + 1):
            for run, name in self._runs.get(words[start : start + self.SHORTEST], {}).items():
                if name and words[start : start + len(run)] == run:
                    yield name
