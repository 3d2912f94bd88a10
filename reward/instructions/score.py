"""Instructions as a reward: stricter than the benchmark's rule where that rule could be gamed."""

from collections.abc import Mapping
from typing import Any

from common.errors import DataError
from reward.base import Sample
from reward.instructions.checks import BY_OWN_WORDS, CONSTRAINED, follows
from reward.instructions.text import own_words


def score_instructions(sample: Sample, *, share: bool, loose: bool = False) -> float:
    """The share of the task's instructions that the answer follows (``share``), or 1.0 only where it follows all.

    Quoting the request or saying one sentence again and again counts for nothing: what text can fulfil by mere presence
    or number, the answer's own words have to fulfil as well. Where one of three answers is asked for, giving several is
    giving none. Raises DataError for a task without instructions, or with one that is not IFEval's.
    """
    instructions = sample.task["instructions"]
    if not instructions:
        raise DataError("an instruction task without instructions")
    text = sample.answer.content
    own = own_words(text, "\n".join(message.content for message in sample.messages))
    followed = [_follows_honestly(text, own, item["id"], item["kwargs"], loose) for item in instructions]
    return sum(followed) / len(followed) if share else float(all(followed))


def _follows_honestly(text: str, own: str, id: str, kwargs: Mapping[str, Any], loose: bool) -> bool:
    if not follows(text, id, kwargs, loose=loose):
        return False
    if id == "detectable_format:constrained_response":
        return sum(option in text for option in CONSTRAINED) == 1
    return id not in BY_OWN_WORDS or follows(own, id, kwargs, loose=loose)
