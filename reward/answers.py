"""Where the final answer stands in an answer's text: one rule for every verifier.

1. the content of the last ``\\boxed{...}`` (an unclosed one is no answer);
2. else what follows the last ``answer is``, ``answer:`` or ``####`` on its line, or stands in the last
   ``<answer>...</answer>``, whichever comes later;
3. else, for mathematics only, the last number.

Only the last place counts, so listing candidates does not help; and only the answer's text is read, never the thinking.
"""

import re

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_STATED = re.compile(
    r"<answer>(?P<tagged>.*?)</answer>"
    r"|(?:\banswer(?: is\b:?|\s*:)|####)\**[ \t]*(?P<stated>(?:(?!<answer>|\banswer(?: is\b|\s*:)|####)[^\n])+)",
    re.IGNORECASE | re.DOTALL,
)
_NUMBER = re.compile(r"(?<![\w.)])-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?|\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")


def stated_answer(text: str) -> str | None:
    """By rules 1 and 2; None where there is no such place."""
    if boxes := list(_BOXED.finditer(text)):
        return _closed_braces(text[boxes[-1].end() :])
    places = list(_STATED.finditer(text))
    if not places:
        return None
    found = places[-1]
    answer = found["tagged"] if found["tagged"] is not None else re.split(r"\.(?:\s|$)", found["stated"], maxsplit=1)[0]
    return answer.strip().strip("*").strip() or None


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
