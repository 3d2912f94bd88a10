"""Whether a recipe's own training data holds the questions of its benchmarks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nanoalign.common.intervals import Estimate, average
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.filters import Contamination
from nanoalign.data_recipes.sources import read
from nanoalign.evaluation.benchmarks import benchmark
from nanoalign.evaluation.records import task_names
from nanoalign.evaluation.result import SuiteResult, by_task, over_tasks, share_correct
from nanoalign.evaluation.tasks import Tasks


@dataclass
class Found:
    """Tasks of one suite that were met in training data."""

    suite: str
    tasks: int
    met: set[int] = field(default_factory=set)
    """Places of tasks."""
    sources: Counter[str] = field(default_factory=Counter)
    """Training source to how many of its samples hold a task's words."""
    names: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        met = [self.names[place] for place in sorted(self.met)]
        return {"tasks": self.tasks, "met": len(met), "names": met, "sources": dict(self.sources.most_common())}


def training_sources(mixtures: Mapping[str, Mixture]) -> dict[str, int]:
    """The sources that a recipe trains on, and the most samples that a mixture takes of each."""
    taken: dict[str, int] = {}
    for mixture in mixtures.values():
        for name, use in mixture.uses.items():
            if use.split == "train":
                taken[name] = max(taken.get(name, 0), use.samples)
    return taken


def look(
    suites: Sequence[Tasks], mixtures: Mapping[str, Mixture], data_root: Path | None, seed: int = 0
) -> dict[str, Found]:
    """Looks in all rows of the training sources (of a generated one, in as many as are taken) for 13 words in a row of
    a benchmark's question, or for all of a shorter one (see ``data_recipes.filters.Contamination``); words that several
    of a suite's prompts share are its template's. Suites that are no public benchmarks are left out: their tasks are
    test splits, which share no sample with the training splits.

    One pass over each source, whatever the number of suites. Raises as ``data_recipes.sources.read`` does; bad rows are
    passed over, as the stages that train on them judge those.
    """
    found = {
        tasks.name: Found(tasks.name, len(tasks), names=task_names([task.id for task in tasks.conversations]))
        for tasks in suites
        if tasks.config.benchmark is not None and benchmark(tasks.config.benchmark)[0].data  # others are made here
    }
    if not found:
        return {}
    filters = {
        tasks.name: Contamination(_numbered(tasks.conversations), own=True) for tasks in suites if tasks.name in found
    }
    for source, samples in training_sources(mixtures).items():
        for row in read(source, samples if ":" in source and not source.startswith("file:") else None, "train",
                        data_root, seed):  # fmt: skip
            if isinstance(row, Conversation):
                for name, filter_ in filters.items():
                    met = {int(each.rpartition(" ")[2]) for each in filter_.met(row)}
                    found[name].met |= met
                    found[name].sources.update([source] if met else [])
    return found


def _numbered(tasks: Sequence[Conversation]) -> list[Conversation]:
    return [replace(task, id=str(place)) for place, task in enumerate(tasks)]


def clean_score(result: SuiteResult, found: Found) -> Estimate:
    """The score over the tasks that were not met."""
    groups = by_task(result.scores, result.completions)
    kept = [score for place, group in enumerate(groups) if place not in found.met for score in group]
    return over_tasks(kept, result.completions, share_correct if {*kept} <= {0.0, 1.0} else average)
