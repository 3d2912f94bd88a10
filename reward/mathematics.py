"""Mathematical equality: numbers, words and lists here, exactly, and algebra in sandboxed worker processes.

Algebra on model output may hang or exhaust memory (and math-verify arms SIGALRM, in the main thread only), so its
processes are killed when they do not answer in time.
"""

from collections.abc import Sequence

from nanoalign.reward.base import Score
from nanoalign.reward.final_answer import final_answer
from nanoalign.reward.math_answers import equal
from nanoalign.reward.verifier_pool import VerifierPool


class MathVerifier:
    """Compares answers; holds up to ``workers`` processes, started when first needed. Results do not depend on it."""

    def __init__(self, workers: int | None = None, timeout_s: float = 60.0) -> None:
        self.pool = VerifierPool("math", workers, timeout_s)

    @property
    def started(self) -> bool:
        """Whether any question has needed a process."""
        return self.pool.started

    def score(self, gold: str, text: str) -> Score:
        """1.0 where the final answer in ``text`` (see reward/final_answer.py) equals ``gold``, else 0.0."""
        return self.scores([(gold, text)])[0]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """:meth:`score` of each (gold, text), the slow ones in parallel."""
        answers = [final_answer(text) or "" for _, text in pairs]
        verdicts: dict[tuple[str, str], Score] = {}
        while True:
            needed: dict[tuple[str, str], None] = {}
            scores = [_score(gold, answer, verdicts, needed) for (gold, _), answer in zip(pairs, answers, strict=True)]
            if not needed:
                return scores
            verdicts.update(zip(needed, self.pool.ask(list(needed)), strict=True))


def _score(
    gold: str, answer: str, verdicts: dict[tuple[str, str], Score], needed: dict[tuple[str, str], None]
) -> Score:
    """By the pool's verdicts so far; the questions that it must answer first go into ``needed``. A wrong answer of
    which a part could not be judged carries the reason."""
    wanted: list[tuple[str, str]] = []
    reasons: list[str] = []

    def ask(gold: str, answer: str) -> bool | None:
        verdict = verdicts.get((gold, answer))
        if verdict is None:
            wanted.append((gold, answer))
        elif verdict.reason:
            reasons.append(verdict.reason)
        return verdict >= 1.0 if verdict is not None and not verdict.reason else None

    right = equal(gold, answer, ask)
    if right is None:
        needed.update(dict.fromkeys(wanted))
    return Score(float(right or False), reasons[0] if right is None and reasons else "")
