"""Completions of a step shared out over processes in packs, so that none waits long for another.

Processes meet in every micro-batch under ZeRO-3 and at the end of the step under any other launch, so that both are
evened out: the packs of one round, and the sum of a process's packs. A pack's cost is what its products cost: linear in
tokens for all weights (Mamba's scan too), and quadratic in a completion's length for attention. In a hybrid with four
attention blocks the second part is small; in a transformer of 500 million weights it passes the first at some 10,000
tokens, and packs of as many tokens differ by half.
"""

import heapq
from collections.abc import Sequence

from nanoalign.models.packing import pack


def share_out(lengths: Sequence[int], capacity: int, processes: int, quadratic: float = 0.0) -> list[list[list[int]]]:
    """For each process its packs, as places in ``lengths``; equally many for all, and as few as fit. A pack has at most
    ``capacity`` tokens, or one longer row; packs are empty where there are fewer rows than packs.

    ``quadratic``: a row of L tokens costs L + quadratic x L². Depends on nothing but the arguments.
    """
    costs = [length + quadratic * length**2 for length in lengths]
    full = pack(lengths, capacity, "drop")
    rounds = -(-(len(full) + len(full.dropped)) // processes)
    while (packs := _evenly(lengths, costs, capacity, max(1, rounds) * processes)) is None:
        rounds += 1
    packs.sort(key=lambda places: (-sum(costs[place] for place in places), places))
    shares: list[list[list[int]]] = [[] for _ in range(processes)]
    for start in range(0, len(packs), processes):
        alike = packs[start : start + processes]
        # the one with the most so far gets the round's cheapest
        so_far = [sum(costs[place] for places in share for place in places) for share in shares]
        for process, places in zip(sorted(range(processes), key=lambda one: (so_far[one], one)), alike, strict=True):
            shares[process].append(places)
    return shares


def _evenly(lengths: Sequence[int], costs: Sequence[float], capacity: int, count: int) -> list[list[int]] | None:
    """The rows in ``count`` packs, the costliest first, each into the pack with the least cost that has room (Graham
    1969); None where one finds no room."""
    packs: list[list[int]] = [[] for _ in range(count)]
    room = [capacity] * count
    cheapest = [(0.0, each) for each in range(count)]
    for place in sorted(range(len(lengths)), key=lambda place: (-costs[place], place)):
        passed = []
        while cheapest:
            cost, each = heapq.heappop(cheapest)
            if lengths[place] <= room[each] or not packs[each]:
                break
            passed.append((cost, each))
        else:
            return None
        packs[each].append(place)
        room[each] -= lengths[place]
        for entry in (*passed, (cost + costs[place], each)):
            heapq.heappush(cheapest, entry)
    return packs
