"""Turns of a round's successful episodes, on which DPO's negative log-likelihood may be taken.

A pair is one turn, at which a success and a failure part; what the successes did right everywhere else is in no pair,
and nothing holds it (docs/results/dpo_learns.md).
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WrittenTurn:
    """What a model was given and what it wrote, as token ids."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    forced: tuple[bool, ...]
    """Written by the budget rule: never trained on."""


def successful_turns(rows: Iterable[Mapping[str, Any]]) -> list[WrittenTurn]:
    """All turns of the episodes that succeeded, each once; ``rows`` are those of ``episodes.jsonl``."""
    found = [
        WrittenTurn(tuple(turn["prompt_ids"]), tuple(turn["token_ids"]), tuple(turn["forced"]))
        for row in rows
        if row["success"]
        for turn in row["turns"]
    ]
    return list(dict.fromkeys(found))


def turns_beside(turns: Sequence[WrittenTurn], pairs: int, most: int, seed: int) -> list[list[WrittenTurn]]:
    """The turns to be trained on beside each of so many pairs: as evenly as may be, ``most`` at most, drawn at random
    where there are more of them."""
    chosen = random.Random(seed).sample(list(turns), min(len(turns), pairs * most))
    return [chosen[place::pairs] for place in range(pairs)]
