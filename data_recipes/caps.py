"""Caps on domains: which of the drawn samples are left out, the same whether a mixture is built or prepared."""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.rows import to_row


def over_the_caps(drawn: Sequence[Conversation], caps: Mapping[str, int], seed: int) -> dict[int, str]:
    """Places of drawn samples beyond the cap of their domain, with the reason."""
    numbers = {domain: number for number, domain in enumerate(caps)}
    capped = [place for place, each in enumerate(drawn) if each.domain in numbers]
    domains = np.array([numbers[drawn[place].domain] for place in capped], np.int16)
    digests = np.array([digest(as_text(drawn[place])) for place in capped], np.uint64)
    over = np.flatnonzero(beyond(domains, digests, caps, seed)).tolist()
    return {capped[number]: capped_reason(drawn[capped[number]].domain) for number in over}


def beyond(
    domains: NDArray[np.int16], digests: NDArray[np.uint64], caps: Mapping[str, int], seed: int
) -> NDArray[np.bool_]:
    """Which of N drawn samples, in the order drawn, are beyond the cap of their domain: repetitions go first, the
    others in an order that ``seed`` decides.

    Args:
        domains: (N,) the number of a sample's domain among those of ``caps``; -1 for one without a cap.
        digests: (N,) what names a sample; equal ones are repetitions.
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


def as_text(conversation: Conversation) -> bytes:
    """What a sample says and what is known of it, as JSON."""
    return json.dumps(to_row(conversation)).encode()


def digest(text: bytes) -> int:
    """64 bits that name a text."""
    return int.from_bytes(blake2b(text, digest_size=8).digest())


def _repetition(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How often each value stood before it."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=~values[order][:1]) != 0)
    times = np.empty(len(values), np.int64)
    times[order] = np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))
    return times
