"""What a round of DPO found, on disk: its episodes and its pairs, one JSON object a line."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanoalign.common.files import atomic_file
from nanoalign.reward.base import Tally
from nanoalign.rl.pairs import PreferencePair
from nanoalign.rollouts.base import Completion
from nanoalign.rollouts.episodes import EpisodeRecord


def write_lines(path: Path, items: Sequence[EpisodeRecord] | Sequence[PreferencePair]) -> None:
    """One JSON object a line, token ids and log-probabilities included. Mode, task and messages of an episode follow
    from its seed and ids."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for item in items:
            row = asdict(item) if isinstance(item, PreferencePair) else _episode_row(item)
            file.write(json.dumps(row) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def tally(rows: Sequence[Mapping[str, Any]]) -> Tally:
    """What was wrong with the turns of episodes."""
    faults = [turn["faults"] for row in rows for turn in row["turns"]]
    return Tally(len(faults), Counter(fault for each in faults for fault in each))


def _episode_row(record: EpisodeRecord) -> dict[str, Any]:
    turns = [
        {"prompt_ids": turn.prompt_ids, **asdict(turn.completion), "faults": turn.answer.faults}
        for turn in record.turns
    ]
    return {
        "task": record.task.id,
        "sample": record.sample,
        **asdict(record.mode),
        "success": record.success,
        "ended": record.ended,
        "reward": record.reward,
        "credit": record.credit,
        "faults": record.faults,
        "turns": turns,
    }


def pair_of(row: Mapping[str, Any]) -> PreferencePair:
    chosen, rejected = (_completion(row[side]) for side in ("chosen", "rejected"))
    return PreferencePair(row["task"], row["turn"], tuple(row["prompt_ids"]), chosen, rejected)


def _completion(row: Mapping[str, Any]) -> Completion:
    return Completion(tuple(row["token_ids"]), tuple(row["logprobs"]), tuple(row["forced"]), row["finish"])
