"""Perfect matchings: can everything be paired one to one?"""

from collections.abc import Sequence


def perfect_matching(fitting: Sequence[Sequence[int]]) -> bool:
    """Whether each row can have a place of its own among those that fit it; found by augmenting paths, in polynomial
    time."""
    taken_by: dict[int, int] = {}  # place to row

    def pair(row: int, tried: set[int]) -> bool:
        for place in fitting[row]:
            if place not in tried:
                tried.add(place)
                if place not in taken_by or pair(taken_by[place], tried):
                    taken_by[place] = row
                    return True
        return False

    return all(fitting) and all(pair(row, set()) for row in range(len(fitting)))
