"""Mathematical equality: an exact fast path, and math-verify in worker processes for the rest.

math-verify arms SIGALRM (main thread only) and SymPy may hang or swallow memory, so it runs in small Python processes
that are killed when they do not answer in time.
"""

from collections.abc import Sequence

from reward.answers import final_answer
from reward.base import Score
from reward.math_answers import equal
from reward.verifier_pool import VerifierPool


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
        answers = [final_answer(text) or "" for _, text in pairs]
        verdicts: dict[tuple[str, str], Score] = {}
        while True:
            needed: dict[tuple[str, str], None] = {}

            def ask(gold: str, answer: str, needed: dict[tuple[str, str], None] = needed) -> bool | None:
                if (gold, answer) in verdicts:
                    return verdicts[gold, answer] >= 1.0
                needed[gold, answer] = None
                return None

            known = [equal(gold, answer, ask) for (gold, _), answer in zip(pairs, answers, strict=True)]
            if not needed:
                break
            verdicts.update(zip(needed, self.pool.ask(list(needed)), strict=True))
        return [Score(float(bool(result))) for result in known]
