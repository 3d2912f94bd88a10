"""Mathematical equality: an exact fast path, and math-verify in worker processes for the rest.

math-verify arms SIGALRM (main thread only) and SymPy may hang or swallow memory, so it runs in small Python processes
that are killed when they do not answer in time.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from reward.answers import final_number, stated_answer
from reward.base import Score
from reward.verifier_pool import VerifierPool

LONGEST = 400
"""Characters: a longer answer is no answer."""
_NOISE = re.compile(
    r"\\(?:left|right|displaystyle|mathrm|mathbf|[,!;: ])|[$\s]|\^\{?\\circ\}?|\\?%|\\text\{\s*\w*\s*\}"
)
_VARIABLE = re.compile(r"[a-zA-Z](?:_\{?\w+\}?)?(?:\([a-zA-Z]\))?=")
_RELATION = re.compile(r"[<>=≈≠≤≥≡~∼≃]|\\(?:approx|neq?|leq?|geq?|lt|gt|sim|simeq|equiv|cong)(?![a-z])")
_NUMBER = re.compile(r"(-?)(?:\\frac\{(-?\d+)\}\{(-?\d+)\}|(\d+(?:\.\d*)?|\.\d+)(?:/(\d+))?)")


class MathVerifier:
    """Compares answers; holds up to ``workers`` processes, started when first needed. Results do not depend on it."""

    def __init__(self, workers: int | None = None, timeout_s: float = 60.0) -> None:
        self.pool = VerifierPool("math", workers, timeout_s)

    @property
    def started(self) -> bool:
        """Whether any question has needed a process."""
        return self.pool.started

    def score(self, gold: str, text: str) -> Score:
        """1.0 where the final answer in ``text`` (see reward/answers.py) equals ``gold``, else 0.0."""
        return self.scores([(gold, text)])[0]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """:meth:`score` of each (gold, text), the slow ones in parallel."""
        answers = [stated_answer(text) or final_number(text) for _, text in pairs]
        known = [_equal_fast(gold, answer) for (gold, _), answer in zip(pairs, answers)]
        slow = [place for place, result in enumerate(known) if result is None]
        verdicts = self.pool.ask([(pairs[place][0], answers[place] or "") for place in slow])
        scores = [Score(float(bool(result))) for result in known]
        for place, verdict in zip(slow, verdicts):
            scores[place] = verdict
        return scores


def _plain(text: str) -> str:
    text = _NOISE.sub("", text).replace("dfrac", "frac").replace("tfrac", "frac")
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).rstrip(".")


def _number(text: str) -> Fraction | None:
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    sign, over, under, decimal, divisor = found.groups()
    if int(under or divisor or 1) == 0:
        return None
    value = Fraction(int(over), int(under)) if over else Fraction(decimal) / int(divisor or 1)
    return -value if sign else value


def _equal_fast(gold: str, answer: str | None) -> bool | None:
    """Whether two answers are equal, or None where it takes algebra. ``x = 5`` answers ``5``, but no other relation
    does: a chain such as ``41 = 42`` would else pass by its last link, ``42 \\approx 43`` by its first."""
    if not answer or len(answer) > LONGEST:
        return False
    right, left = _plain(gold), _plain(answer)
    if not _RELATION.search(right):
        left = _VARIABLE.sub("", left, count=1) if _VARIABLE.match(left) else left
        if _RELATION.search(left):
            return False
    if left == right:
        return True
    numbers = _number(left), _number(right)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return None if left else False
