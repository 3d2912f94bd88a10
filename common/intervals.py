"""Figures with their uncertainty. No figure of this suite is shown without its sample count and a 95% interval."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A measured figure: the value, its 95% interval and the number of samples behind it."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def proportion(successes: int, n: int) -> Estimate:
    """A share of successes with Wilson's 95% interval; NaN value and [0, 1] where n is 0."""
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    return _wilson(successes / n, n, n)


def _wilson(share: float, trials: float, n: int) -> Estimate:
    z2 = Z95 * Z95
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials)) / (1 + z2 / trials)
    return Estimate(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)), n)  # rounding


def bounded(value: float, variance: float, n: int) -> Estimate:
    """A mean of shares with this variance: Wilson's interval, which stays in [0, 1], of as many trials as have that
    variance; of ``n``, the fewest possible, where there is none."""
    value = min(1.0, max(0.0, value))
    spread = value * (1 - value)
    return _wilson(value, spread / variance if variance > 0 and spread > 0 else n, n)


def average(values: Sequence[float]) -> Estimate:
    """A mean of scores: of shares (all of them in [0, 1]) with an interval that stays there, which is
    :func:`proportion`'s where all are 0 or 1; of others as :func:`mean`."""
    n = len(values)
    if n == 0 or min(values) < 0 or max(values) > 1:
        return mean(values)
    centre = math.fsum(values) / n
    return bounded(centre, math.fsum((value - centre) ** 2 for value in values) / (n * n), n)


def mean(values: Sequence[float]) -> Estimate:
    """A mean with its normal 95% interval (half-width 0 for a single value; NaN where there is none)."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    centre = math.fsum(values) / n
    if n == 1:
        return Estimate(centre, centre, centre, 1)
    deviation = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1))
    half = Z95 * deviation / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half, n)
