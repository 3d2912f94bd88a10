"""Caps on domains: which of the drawn samples are left out, the same whether a mixture is built or prepared."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from data_recipes.conversation import Conversation
from data_recipes.rows import to_row


def over_the_caps(drawn: Sequence[Conversation], caps: Mapping[str, int], seed: int) -> dict[int, str]:
    """Places of drawn samples beyond the cap of their domain, with the reason."""
    if not caps:
        return {}
    times: Counter[int] = Counter()
    ranks: dict[str, list[tuple[Rank, int]]] = {domain: [] for domain in caps}
    for place, conversation in enumerate(drawn):
        if conversation.domain in caps:
            number = digest(conversation)
            ranks[conversation.domain].append((rank(number, times[number], seed), place))
            times[number] += 1
    return {place: capped_reason(domain) for domain, cap in caps.items() for _, place in sorted(ranks[domain])[cap:]}


Rank = tuple[int, bytes]


def rank(number: int, epoch: int, seed: int) -> Rank:
    """What is left out last where a domain is capped: repetitions go first, the others in an order that ``seed``
    decides. ``number`` is the sample's :func:`digest`, ``epoch`` how often it was drawn before."""
    return epoch, blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()


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
    dropped: Counter[str] = Counter()
    for place, (domain, most) in enumerate(caps.items()):
        times: Counter[int] = Counter()
        ranked = []
        for source, drawn in enumerate(draws):
            for row in np.flatnonzero(drawn.capped == place).tolist():
                number = int(drawn.digests[row])
                for _ in range(drawn.times[row]):
                    ranked.append((rank(number, times[number], seed), source, row))
                    times[number] += 1
        for _, source, row in sorted(ranked)[most:]:
            draws[source].times[row] -= 1
            dropped[capped_reason(domain)] += 1
    return dropped
