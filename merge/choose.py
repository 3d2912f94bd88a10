"""Which point of a sweep is best: pure functions of alphas and scores."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nanoalign.common.errors import ConfigError
from nanoalign.common.intervals import Estimate

Method = Literal["pareto", "weighted", "constraint"]
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Point:
    """One evaluated merge. ``scores`` holds every suite that was measured, higher is better."""

    alpha: float
    scores: dict[str, Estimate]

    def as_dict(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "scores": {name: score.as_dict() for name, score in self.scores.items()}}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Point":
        return cls(value["alpha"], {name: Estimate(**score) for name, score in value["scores"].items()})


@dataclass(frozen=True)
class Choice:
    """How the best point is found; the fields are those of ``merge.config.MergeStage``."""

    reasoning: str
    """Suite that alpha 0 is good at."""
    chat: str
    """Suite that alpha 1 is good at."""
    method: Method = "pareto"
    weights: tuple[float, float] = (0.5, 0.5)
    max_reasoning_loss: float = 0.01

    def values(self, point: Point) -> tuple[float, float]:
        """Reasoning and chat.

        Raises:
            ConfigError: a suite gave no figure at this alpha (no samples).
        """
        values = point.scores[self.reasoning].value, point.scores[self.chat].value
        for suite, value in zip((self.reasoning, self.chat), values, strict=True):
            if math.isnan(value):
                raise ConfigError(f"merge: suite {suite} has no figure at alpha {point.alpha:g} (no samples?)")
        return values


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other point equals or beats in both coordinates and beats in one."""
    return [
        place for place, (x, y) in enumerate(points)
        if not any(u >= x and v >= y and (u > x or v > y) for u, v in points)
    ]  # fmt: skip


def on_front(point: Point, points: Sequence[Point], choice: Choice) -> bool:
    """Whether no other point is as good in both suites and better in one."""
    places = pareto_front([choice.values(other) for other in points])
    return any(points[place].alpha == point.alpha for place in places)


def ranking(points: Sequence[Point], choice: Choice) -> Callable[[Point], tuple[float, ...]]:
    """A key by which a better point is greater. Scales and the constraint's floor come from ``points``, which include
    the ends. The point with the best key is always on the Pareto front.

    - pareto: the sum of both scores, each scaled to [0, 1] over ``points``;
    - weighted: the weighted sum of raw scores, then the plain sum;
    - constraint: chat where reasoning is at most ``max_reasoning_loss`` below the better end; else nearest to that.

    Ties go to the alpha nearest to 0.5.
    """
    values = [choice.values(point) for point in points]
    (low_x, high_x), (low_y, high_y) = ((min(axis), max(axis)) for axis in zip(*values, strict=True))
    ends = sorted(points, key=lambda point: point.alpha)
    floor = max(choice.values(ends[0])[0], choice.values(ends[-1])[0]) - choice.max_reasoning_loss

    def key(point: Point) -> tuple[float, ...]:
        x, y = choice.values(point)
        centre = -abs(point.alpha - 0.5)
        if choice.method == "weighted":
            return choice.weights[0] * x + choice.weights[1] * y, x + y, centre
        if choice.method == "constraint":
            allowed = x >= floor - 1e-12  # 0.8 - 0.01 is not 0.79 in floating point
            return float(allowed), y if allowed else x, x if allowed else y, centre
        return _scaled(x, low_x, high_x) + _scaled(y, low_y, high_y), centre

    return key


def best(points: Sequence[Point], choice: Choice) -> Point:
    """The point with the greatest :func:`ranking` key."""
    return max(points, key=ranking(points, choice))


def neighbours(points: Sequence[Point], centre: Point) -> tuple[float, float]:
    """The alphas next to ``centre`` on both sides (its own at an end): the bracket of a golden-section search."""
    below = [point.alpha for point in points if point.alpha < centre.alpha]
    above = [point.alpha for point in points if point.alpha > centre.alpha]
    return max(below, default=centre.alpha), min(above, default=centre.alpha)


def golden_section(key: Callable[[float], tuple[float, ...]], low: float, high: float, evaluations: int) -> list[float]:
    """Alphas tried in search of the greatest key between ``low`` and ``high``, each once, to 4 decimals (Kiefer 1953).

    Exact for a unimodal key; with noise it still only narrows a bracket. ``key`` is called ``evaluations`` times.
    """
    tried: dict[float, tuple[float, ...]] = {}

    def at(alpha: float) -> tuple[float, ...]:
        if alpha not in tried:
            tried[alpha] = key(alpha)
        return tried[alpha]

    def between(share: float) -> float:
        return round(low + share * (high - low), 4)

    left, right = between(1 - GOLDEN), between(GOLDEN)
    while len(tried) < evaluations and low < left < right < high:
        at(left)
        if len(tried) < evaluations:
            at(right)
        if right not in tried:
            break
        if at(left) >= at(right):
            high, right = right, left
            left = between(1 - GOLDEN)
        else:
            low, left = left, right
            right = between(GOLDEN)
    return list(tried)


def _scaled(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.0
