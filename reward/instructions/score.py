"""Instructions as a reward: stricter than the benchmark's rule where that rule could be gamed."""

import re
from collections.abc import Mapping
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.reward.base import Sample
from nanoalign.reward.instructions.checkers import BY_OWN_WORDS, CONSTRAINED, follows
from nanoalign.reward.instructions.text import own_words, plain_letters

EVADABLE = {
    "keywords:forbidden_words", "keywords:frequency", "keywords:letter_frequency", "punctuation:no_comma",
}  # fmt: skip
"""Instructions that look-alike characters could evade: they must also hold for what a reader sees."""


def score_instructions(sample: Sample, *, share: bool, loose: bool = False) -> float:
    """The share of the task's instructions that the answer follows (``share``), or 1.0 only where it follows all.

    Quoting the request or repeating text counts for nothing: what mere presence or repetition could satisfy, the
    answer's own words must satisfy too, and an answer without words of its own follows nothing. Where one of three
    answers is requested, giving several is giving none; two answers differ in more than case and signs; JSON is a
    filled object or list; look-alike letters count as what they look like.

    Raises DataError for a task without instructions, or with one that is not IFEval's.
    """
    instructions = sample.task["instructions"]
    if not instructions:
        raise DataError("an instruction task without instructions")
    text = sample.answer.content
    own = own_words(text, "\n".join(message.content for message in sample.messages))
    followed = [_follows_honestly(text, own, item["id"], item["kwargs"], loose) for item in instructions]
    return sum(followed) / len(followed) if share else float(all(followed))


def share_followed(sample: Sample) -> float:
    """The share of the task's instructions that the answer follows."""
    return score_instructions(sample, share=True)


def all_followed(sample: Sample) -> float:
    """1.0 where it follows all of them, else 0.0."""
    return score_instructions(sample, share=False)


def share_loosely_followed(sample: Sample) -> float:
    """The share that it follows by IFEval's loose rule."""
    return score_instructions(sample, share=True, loose=True)


def followed_by_ifeval(sample: Sample) -> float:
    """1.0 where the benchmark's own strict rule finds every instruction followed, else 0.0: to measure with, not to
    train on."""
    text = sample.answer.content
    return float(all(follows(text, item["id"], item["kwargs"]) for item in sample.task["instructions"]))


def _follows_honestly(text: str, own: str, id: str, kwargs: Mapping[str, Any], loose: bool) -> bool:
    if not follows(text, id, kwargs, loose=loose):
        return False
    if id == "detectable_format:constrained_response":
        return sum(option in text for option in CONSTRAINED) == 1
    if id == "combination:repeat_prompt":
        return bool(re.search(r"\w", text.strip()[len(kwargs["prompt_to_repeat"].strip()) :]))
    if not re.search(r"\w", own):
        return False
    if id == "detectable_format:json_format":
        return _is_filled(text.removeprefix("```json"))
    if id == "combination:two_responses":
        first, second = (" ".join(re.findall(r"\w+", part.lower())) for part in _filled(text))
        return first != second
    if id in EVADABLE and not follows(plain_letters(text), id, kwargs, loose=loose):
        return False
    return id not in BY_OWN_WORDS or follows(own, id, kwargs, loose=loose)


def _is_filled(json: str) -> bool:
    """An object or list with a word in it."""
    opening, word = re.search(r"[\[{]", json), re.search(r"\w", json)
    return bool(opening and word and opening.start() < word.start() < max(json.rfind("]"), json.rfind("}")))


def _filled(text: str) -> list[str]:
    return [part for part in text.split("******") if part.strip()]
