"""RULER's metrics: what of the wanted answers a text contains."""

from collections.abc import Sequence

from nanoalign.reward.base import Sample


def score_ruler(sample: Sample) -> float:
    """``{"kind": "ruler", "answers": [...], "match": "all" | "part"}``."""
    return string_match(sample.answer.content, sample.task["answers"], sample.task["match"])


def string_match(text: str, answers: Sequence[str], match: str) -> float:
    """In any case, ``all``: the share of the answers that ``text`` contains; ``part``: 1 where it contains one."""
    text = text.lower()
    found = [answer.lower() in text for answer in answers]
    return float(any(found)) if match == "part" else sum(found) / len(found)
