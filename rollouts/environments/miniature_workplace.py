"""The miniature workplace as an environment: see data_recipes/workplace/office_tasks.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from nanoalign.data_recipes.conversation import Message
from nanoalign.data_recipes.workplace.office import TOOLS, changes, same
from nanoalign.data_recipes.workplace.office_tasks import OfficeTask, expected, tasks
from nanoalign.rollouts.environments.base import Task
from nanoalign.rollouts.environments.episode import ToolEpisode

SIZES = {"train": 6000, "test": 1000}
SEED = 2023


@cache
def _drawn(split: str) -> dict[str, OfficeTask]:
    return {task.id: task for task in tasks(split, SIZES.get(split, 0), SEED)}


@dataclass
class MiniatureWorkplace:
    """The tasks are drawn from a fixed seed: the same in every run, without duplicates."""

    name: str = "miniature-workplace"

    def tasks(self, split: str) -> Sequence[Task]:
        return [
            Task(
                id=task.id,
                prompt=(Message("user", task.request),),
                tools=TOOLS,
                split=split,
                data={"kind": task.kind, "calls": expected(task.calls)},
            )
            for task in _drawn(split).values()
        ]

    def start(self, task: Task) -> ToolEpisode:
        drawn = _drawn(task.split)[task.id]
        office, reference = drawn.office.copy(), drawn.reference()
        return ToolEpisode(
            office.call,
            lambda: same(office, reference),
            lambda: (changes(drawn.office, office), changes(drawn.office, reference)),
        )
