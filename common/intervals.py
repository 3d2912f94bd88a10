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
    share, z2 = successes / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Estimate(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)), n)  # rounding


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
