"""Caps on domains: which of the drawn samples are left out."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nanoalign.data_recipes.rows import digest


def beyond(
    domains: NDArray[np.int16], digests: NDArray[np.uint64], caps: Mapping[str, int], seed: int
) -> NDArray[np.bool_]:
    """Which of N drawn samples, in the order drawn, are beyond the cap of their domain: repetitions go first, the
    others in an order that ``seed`` decides.

    Args:
        domains: (N,) the number of a sample's domain among those of ``caps``; -1 for one without a cap.
        digests: (N,) a hash of each sample; equal ones are repetitions.
    """
    over = np.zeros(len(domains), bool)
    for number, most in enumerate(caps.values()):
        members = np.flatnonzero(domains == number)
        rank = np.fromiter((digest(f"{seed}/{each}".encode()) for each in digests[members]), np.uint64, len(members))
        over[members[np.lexsort((rank, _repetition(digests[members])))[most:]]] = True
    return over


def capped_reason(domain: str) -> str:
    """For counting."""
    return f"domain {domain} is capped"


def _repetition(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How often each value occurred before."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=~values[order][:1]) != 0)
    times = np.empty(len(values), np.int64)
    times[order] = np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))
    return times
