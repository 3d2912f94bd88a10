"""Caps on domains: which of the drawn samples are left out, the same whether a mixture is built or prepared."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from data_recipes.conversation import Conversation
from data_recipes.rows import to_row


def over_the_caps(drawn: Sequence[Conversation], caps: Mapping[str, int], seed: int) -> dict[int, str]:
    """Places of drawn samples beyond the cap of their domain, with the reason."""
    seen = ((each.domain, digest(each), (0, place)) for place, each in enumerate(drawn) if each.domain in caps)
    return {place: capped_reason(domain) for domain, (_, place) in _beyond(seen, caps, seed)}


Place = tuple[int, int]
"""A source and a row of it."""


def _beyond(seen: Iterable[tuple[str, int, Place]], caps: Mapping[str, int], seed: int) -> list[tuple[str, Place]]:
    """The drawn samples (domain, place) beyond their domain's cap, of all (domain, digest, place) that have one, in the
    order drawn. Repetitions go first, the others in an order that ``seed`` decides."""
    times: Counter[int] = Counter()
    ranks: dict[str, list[tuple[int, bytes, Place]]] = {domain: [] for domain in caps}
    for domain, number, place in seen:
        ranks[domain].append((times[number], blake2b(f"{seed}/{number}".encode(), digest_size=8).digest(), place))
        times[number] += 1
    return [(domain, place) for domain, most in caps.items() for *_, place in sorted(ranks[domain])[most:]]


def capped_reason(domain: str) -> str:
    """For counting."""
    return f"domain {domain} is capped"


def digest(conversation: Conversation) -> int:
    """64 bits that name a sample by what it says and what is known of it."""
    return int.from_bytes(blake2b(json.dumps(to_row(conversation)).encode(), digest_size=8).digest())


@dataclass(frozen=True)
class Drawn:
    """The drawn samples of a source in its order: positions in its stream, digests, and how often each is taken."""

    positions: "np.ndarray[Any, Any]"
    digests: "np.ndarray[Any, Any]"
    times: "np.ndarray[Any, Any]"
    capped: "np.ndarray[Any, Any]"
    """For each, the place of its domain among those with a cap, -1 for a domain without."""

    def taken(self) -> "Drawn":
        """Those that are taken at all."""
        kept = np.flatnonzero(self.times)
        return Drawn(self.positions[kept], self.digests[kept], self.times[kept], self.capped[kept])


def cap(draws: Sequence[Drawn], caps: Mapping[str, int], seed: int) -> Counter[str]:
    """Lowers ``times`` where a domain is over its cap, as :func:`over_the_caps` leaves samples out."""
    domains = list(caps)
    seen = (
        (domains[drawn.capped[row]], int(drawn.digests[row]), (source, row))
        for source, drawn in enumerate(draws)
        for row in np.flatnonzero(drawn.capped >= 0).tolist()
        for _ in range(drawn.times[row])
    )
    dropped: Counter[str] = Counter()
    for domain, (source, row) in _beyond(seen, caps, seed):
        draws[source].times[row] -= 1
        dropped[capped_reason(domain)] += 1
    return dropped
