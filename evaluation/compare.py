"""Two evaluations, task by task: the difference with the interval of paired tasks."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.common.intervals import Estimate, average, mean
from nanoalign.evaluation.records import read_records

Runs = dict[str, dict[tuple[str, str], Path]]
"""Checkpoint to (suite, mode) to its records."""


@dataclass(frozen=True)
class Compared:
    """One suite in one mode: means over the tasks that both have answered, and B's difference from A."""

    a: str
    b: str
    """Checkpoints."""
    suite: str
    mode: str
    scores: tuple[Estimate, Estimate]
    """Of A and of B: the mean over tasks of a task's mean score."""
    difference: Estimate
    """B less A: the mean over tasks of the tasks' differences, with its 95% interval; n is the tasks."""
    better: int
    """Tasks on which B scores more."""
    worse: int
    left_out: int
    """Tasks that only one of them has."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "a": self.a, "b": self.b, "suite": self.suite, "mode": self.mode,
            "score_a": self.scores[0].as_dict(), "score_b": self.scores[1].as_dict(),
            "difference": self.difference.as_dict(), "better": self.better, "worse": self.worse,
            "left_out": self.left_out,
        }  # fmt: skip


def compare(a: Path, b: Path) -> list[Compared]:
    """Compares what two evaluations have in common: checkpoints of the same name, or the only one of each; their suites
    and modes. ``a`` and ``b`` are folders of ``nanoalign evaluate``, of a run or its evaluate stage, or of one
    checkpoint's records.

    Raises:
        ConfigError: no records there, or nothing in common.
        DataError: records of tasks with the same names but other prompts.
    """
    ours, theirs = find_records(a), find_records(b)
    pairs = [(name, name) for name in ours if name in theirs]
    if not pairs and len(ours) == len(theirs) == 1:
        pairs = [(next(iter(ours)), next(iter(theirs)))]
    if not pairs:
        raise ConfigError(
            f"{a} has {', '.join(ours)} and {b} has {', '.join(theirs)}: name a checkpoint of each "
            f"(such as {next(iter(ours[next(iter(ours))].values())).parent})"
        )
    found = [
        _compared(one, two, key, ours[one][key], theirs[two][key])
        for one, two in pairs
        for key in ours[one]
        if key in theirs[two]
    ]
    if not found:
        raise ConfigError(f"{a} and {b} have no suite and mode in common")
    return found


def find_records(run: Path) -> Runs:
    """The records below a folder. Raises ConfigError where there are none."""
    if not run.is_dir():
        raise ConfigError(f"{run}: no such folder")
    for pattern in ("*.jsonl", "records/*/*.jsonl", "*/records/*/*.jsonl"):
        runs: Runs = defaultdict(dict)
        for path in sorted(run.glob(pattern)):
            name, _, mode = path.stem.rpartition(".")
            if name and mode != "completions":
                runs[path.parent.name][name, mode] = path
        if runs:
            return dict(runs)
    raise ConfigError(f"{run}: no records of an evaluation (records/CHECKPOINT/SUITE.MODE.jsonl)")


def _compared(a: str, b: str, key: tuple[str, str], first: Path, second: Path) -> Compared:
    ours, theirs = _by_task(first), _by_task(second)
    common = [task for task in ours if task in theirs]
    for task in common:
        if ours[task][1] != theirs[task][1]:
            raise DataError(f"{second}: task {task} is another one in {first}: they answer different questions")
    pairs = [(ours[task][0], theirs[task][0]) for task in common]
    differences = [two - one for one, two in pairs]
    return Compared(
        a, b, *key, (average([one for one, _ in pairs]), average([two for _, two in pairs])), mean(differences),
        sum(each > 0 for each in differences), sum(each < 0 for each in differences),
        len(ours) + len(theirs) - 2 * len(common),
    )  # fmt: skip


def _by_task(path: Path) -> Mapping[str, tuple[float, str]]:
    """Task to its mean score, and what names its question."""
    scores: dict[str, list[float]] = defaultdict(list)
    questions: dict[str, str] = {}
    for row in read_records(path):
        scores[row["task"]].append(row["score"])
        questions[row["task"]] = row.get("question", "")
    return {task: (sum(each) / len(each), questions[task]) for task, each in scores.items()}
