"""Preference pairs out of episodes: a success and a failure at the turn where they part.

Two episodes of one task share their prompts up to some turn: the deepest turn at which both were given the same token
ids. There one answer led on to success and the other to failure, and that turn is the pair: same prompt, two
completions. What came before was the same for both (apart from thoughts that the chat format strips), what came after
had different prompts. The first turn's prompt is always shared, so that a pair never has to fall back on complete
trajectories. Step-wise pairs of this kind: Step-DPO (arXiv 2406.18629).
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from nanoalign.rollouts.base import Completion
from nanoalign.rollouts.episodes import EpisodeRecord

Pairing = Literal["random", "closest_length", "same_prefix"]


@dataclass(frozen=True)
class PreferencePair:
    """Two completions of one prompt, as the engine gave them."""

    task: str
    turn: int
    """The turn at which the two episodes part, from 0."""
    prompt_ids: tuple[int, ...]
    chosen: Completion
    rejected: Completion

    @property
    def length_gap(self) -> int:
        return abs(len(self.chosen.token_ids) - len(self.rejected.token_ids))


def parted(success: EpisodeRecord, failure: EpisodeRecord) -> PreferencePair:
    """The pair at the deepest turn whose prompt the two episodes share.

    Raises:
        ValueError: they do not even share the first prompt.
    """
    shared = 0
    for ours, theirs in zip(success.turns, failure.turns, strict=False):
        if ours.prompt_ids != theirs.prompt_ids:
            break
        shared += 1
    if shared == 0:
        raise ValueError(f"episodes of {success.task.id} and {failure.task.id} share no prompt")
    turn = shared - 1
    return PreferencePair(
        success.task.id, turn, success.turns[turn].prompt_ids,
        success.turns[turn].completion, failure.turns[turn].completion,
    )  # fmt: skip


def pair_up(
    records: Iterable[EpisodeRecord], per_task: int, pairing: Pairing, seed: int, partial: bool = False
) -> list[PreferencePair]:
    """At most ``per_task`` pairs per task; records of one task are adjacent.

    With ``partial``, where all episodes of a task failed, those that came nearest by ``credit`` take the part of
    successes before those that came less near.

    Episodes that are in fewer pairs so far come first. Among these ``random`` draws, ``closest_length`` takes the
    smallest difference in tokens, ``same_prefix`` the pair that parts latest (then the smallest difference). Pairs of
    equal token ids are made once.
    """
    generator = random.Random(seed)
    pairs: list[PreferencePair] = []
    for _, group in groupby(records, key=lambda record: record.task.id):
        pairs += _pairs_of_task(list(group), per_task, pairing, generator, partial)
    return pairs


def _pairs_of_task(
    records: Sequence[EpisodeRecord], per_task: int, pairing: Pairing, generator: random.Random, partial: bool
) -> list[PreferencePair]:
    good = [record.success for record in records]
    if partial and not any(good):
        nearest = max(record.credit for record in records)
        good = [record.credit == nearest for record in records]
    candidates = [
        (success, failure, parted(records[success], records[failure]), generator.random())
        for success in range(len(records))
        for failure in range(len(records))
        if good[success] and not good[failure]
    ]
    uses = [0] * len(records)
    pairs: list[PreferencePair] = []
    made: set[tuple[tuple[int, ...], ...]] = set()

    def rank(candidate: tuple[int, int, PreferencePair, float]) -> tuple[float, ...]:
        success, failure, pair, draw = candidate
        fit = {
            "random": (),
            "closest_length": (pair.length_gap,),
            "same_prefix": (-pair.turn, pair.length_gap),
        }[pairing]
        return (uses[success] + uses[failure], *fit, draw)

    while candidates and len(pairs) < per_task:
        best = min(candidates, key=rank)
        candidates.remove(best)
        success, failure, pair, _ = best
        key = (pair.prompt_ids, pair.chosen.token_ids, pair.rejected.token_ids)
        if key in made or pair.chosen.token_ids == pair.rejected.token_ids:
            continue
        made.add(key)
        pairs.append(pair)
        uses[success] += 1
        uses[failure] += 1
    return pairs
