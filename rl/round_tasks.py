"""Which tasks a round of DPO plays."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def differing(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The tasks whose episodes both succeeded and failed, in order; ``rows`` are those of ``episodes.jsonl``."""
    outcomes: dict[str, set[bool]] = {}
    for row in rows:
        outcomes.setdefault(row["task"], set()).add(row["success"])
    return [task for task, seen in outcomes.items() if len(seen) == 2]


def batches(new: Sequence[int], again: Sequence[int], size: int) -> Iterator[list[int]]:
    """A round's tasks, ``size`` at a time: those of ``again`` (at most ``size``) in the first batch, then new ones."""
    already = set(again)
    rest = [row for row in new if row not in already]
    fill = size - len(again)
    yield [*again, *rest[:fill]]
    for start in range(fill, len(rest), size):
        yield rest[start : start + size]
