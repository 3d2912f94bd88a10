"""How a suite went: scores of completions, estimates over tasks, avg@k and pass@k."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nanoalign.budget_control.measure import Reading
from nanoalign.common.intervals import Estimate, average, proportion
from nanoalign.reward.base import Tally
from nanoalign.rollouts.base import Mode

Enforcement = Literal["rule", "hard", "none"]
"""How a thinking budget is enforced: by the rule; by a close forced at the budget, mid-sentence or not; or not at all,
where a completion ends after as many tokens in total as under the rule."""
CORRECT = 0.5
"""A verifier's score from which a sample counts as correct."""
Estimator = Callable[[Sequence[float]], Estimate]


@dataclass(frozen=True)
class SuiteResult:
    """How one suite went in one mode. Sequences are in the suite's order, task by task, so that results can be compared
    in pairs."""

    suite: str
    mode: Mode
    score: Estimate
    """The share of correct samples (successful episodes), or the mean score where the reward is not a verifier; with
    several completions a task the mean of the tasks' own (avg@k), with the interval between tasks."""
    by_domain: dict[str, Estimate]
    scores: tuple[float, ...]
    readings: tuple[Reading, ...]
    """One per completion; an episode has one per turn."""
    budget: dict[str, Estimate] = field(default_factory=dict)
    """Figures of :func:`budget_control.measure.summary`."""
    enforcement: Enforcement = "rule"
    answers: Tally = field(default_factory=Tally)
    """What was wrong with the completions, and why rewards did not judge some on their merits."""
    completions: int = 1
    """Per task."""
    pass_at: dict[int, Estimate] = field(default_factory=dict)
    """k to the chance that one of k completions is correct; only where there are several and a verifier."""
    more: dict[str, Estimate] = field(default_factory=dict)
    """Further figures of a benchmark."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; figures without samples are left out."""
        several = {
            "completions": self.completions, "pass_at": {str(k): each.as_dict() for k, each in self.pass_at.items()}
        }  # fmt: skip
        return {
            "thinking": self.mode.thinking,
            "budget": self.mode.budget,
            "enforcement": self.enforcement,
            "score": self.score.as_dict(),
            "by_domain": {domain: estimate.as_dict() for domain, estimate in self.by_domain.items()},
            **{name: estimate.as_dict() for name, estimate in self.budget.items() if estimate.n},
            "answers": self.answers.as_dict(),
            **(several if self.completions > 1 else {}),
            **({"more": {name: each.as_dict() for name, each in self.more.items()}} if self.more else {}),
        }


def share_correct(scores: Sequence[float]) -> Estimate:
    """A verifier's estimator: the share of scores from ``CORRECT`` on."""
    return proportion(sum(score >= CORRECT for score in scores), len(scores))


def over_tasks(scores: Sequence[float], completions: int, estimator: Estimator) -> Estimate:
    """What ``estimator`` says of the tasks' scores, ``completions`` of each in a row: with several, the mean of its
    values for each task (avg@k), n being the tasks, as completions of one task are not independent."""
    if completions == 1:
        return estimator(scores)
    return average([estimator(each).value for each in by_task(scores, completions)])


def by_task(scores: Sequence[float], completions: int) -> list[Sequence[float]]:
    """Scores in groups of a task's."""
    return [scores[first : first + completions] for first in range(0, len(scores), completions)]


def pass_at(scores: Sequence[float], completions: int) -> dict[int, Estimate]:
    """pass@k for the powers of two up to ``completions``, and that: the mean over tasks of the unbiased estimate
    1 - C(n - c, k) / C(n, k) with c of n correct (Chen et al. 2021, arXiv 2107.03374), with its interval."""
    if completions == 1:
        return {}
    right = [sum(score >= CORRECT for score in each) for each in by_task(scores, completions)]
    wanted = sorted({2**power for power in range(completions.bit_length()) if 2**power <= completions} | {completions})
    return {k: average([pass_rate(completions, correct, k) for correct in right]) for k in wanted}


def pass_rate(n: int, correct: int, k: int) -> float:
    """The chance that at least one of ``k`` completions drawn from ``n`` without replacement is one of the correct."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)
