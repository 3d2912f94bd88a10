"""WorkBench as an environment: see data_recipes/workplace/workbench.py."""

from collections.abc import Sequence
from pathlib import Path

from nanoalign.data_recipes.conversation import Message
from nanoalign.data_recipes.workplace.workbench import SYSTEM, changes, same
from nanoalign.data_recipes.workplace.workbench_data import WorkBenchTask, load_office, load_tasks
from nanoalign.data_recipes.workplace.workbench_tools import TOOLS
from nanoalign.rollouts.environments.base import Task
from nanoalign.rollouts.environments.episode import ToolEpisode


class WorkBenchEnvironment:
    """480 tasks, a quarter held out. With ``all_tools`` a prompt lists all 27 tools (about 11,000 characters), else
    those of the task's database and the company directory: the benchmark reports both settings."""

    def __init__(self, data_root: Path, all_tools: bool = False) -> None:
        """Raises DataError where the data is missing or damaged."""
        self.name = "workbench-all-tools" if all_tools else "workbench"
        self._all_tools = all_tools
        self._office = load_office(data_root)
        self._tasks = {task.id: task for task in load_tasks(data_root)}

    def tasks(self, split: str) -> Sequence[Task]:
        return [self._task(task) for task in self._tasks.values() if task.split == split]

    def _task(self, task: WorkBenchTask) -> Task:
        prefixes = ("company_directory", task.domain)
        return Task(
            id=task.id,
            prompt=(Message("system", SYSTEM), Message("user", task.request)),
            tools=tuple(tool for name, tool in TOOLS.items() if self._all_tools or name.startswith(prefixes)),
            split=task.split,
            data={
                "kind": task.domain,
                "calls": [{"name": call.name, "arguments": dict(call.arguments)} for call in task.calls],
            },
        )

    def start(self, task: Task) -> ToolEpisode:
        office, reference = self._office.copy(), self._office.copy()
        for call in self._tasks[task.id].calls:
            reference.call(call.name, call.arguments)
        return ToolEpisode(
            office.call,
            lambda: same(office, reference),
            lambda: (changes(self._office, office), changes(self._office, reference)),
        )


def all_tools(data_root: Path) -> WorkBenchEnvironment:
    """WorkBench with every tool in every prompt."""
    return WorkBenchEnvironment(data_root, all_tools=True)
