"""Finds the final answer in an answer's text: one rule for every verifier.

1. the content of the last ``\\boxed{...}`` (an unclosed one is not an answer);
2. else what follows the last ``answer is``, ``answer:`` or ``####`` on its line, or is in the last
   ``<answer>...</answer>``, whichever comes later;
3. else, for mathematics only, the last number.

Only the last place counts, so listing candidates does not help; and only the answer's text is read, never the thinking.
"""

import re
from collections import deque

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_TAG, _END_TAG = re.compile("<answer>", re.IGNORECASE), re.compile("</answer>", re.IGNORECASE)
_STATED = re.compile(
    r"(?:\banswer(?: is\b:?|\s{0,3}:)|####)\**[ \t]*(?P<stated>(?:(?!<answer>|\banswer(?: is\b|\s{0,3}:)|####)[^\n])+)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.)])-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?|\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")


def stated_answer(text: str) -> str | None:
    """By rules 1 and 2; None where neither applies."""
    if boxes := list(_BOXED.finditer(text)):
        return _closed_braces(text[boxes[-1].end() :])
    stated = next(iter(deque(_STATED.finditer(text), maxlen=1)), None)
    start, tagged = _last_tagged(text)
    if tagged is not None and (stated is None or stated.end() <= start or stated.start() < start + len(tagged)):
        answer = tagged
    elif stated is not None:
        answer = re.split(r"\.(?:\s|$)", stated["stated"], maxsplit=1)[0]
    else:
        return None
    return answer.strip().strip("*").strip() or None


def final_answer(text: str) -> str | None:
    """By all three rules, as mathematics has it; None also where the last box is empty or not closed, or the last tag
    is empty."""
    if (stated := stated_answer(text)) or _BOXED.search(text) or _last_tagged(text)[1] is not None:
        return stated
    return final_number(text)


def _last_tagged(text: str) -> tuple[int, str | None]:
    """Where the content of the last ``<answer>...</answer>`` starts, and the content."""
    ends = list(_END_TAG.finditer(text))
    starts = list(_TAG.finditer(text, 0, ends[-1].start())) if ends else []
    return (starts[-1].end(), text[starts[-1].end() : ends[-1].start()]) if starts else (-1, None)


def final_number(text: str) -> str | None:
    """The last number in the text, by rule 3."""
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _closed_braces(text: str) -> str | None:
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return text[:place].strip() or None
    return None
