"""Tool trajectories by replay: WorkBench's training tasks with the reference calls run against its databases.

Only tasks whose calls name no row id are replayed: an id has to be looked up first, which the reference leaves out, and
a model that is taught to write ids it never saw learns to invent them.
"""

from pathlib import Path

from data_recipes.conversation import Conversation, Message
from data_recipes.workplace.workbench import SYSTEM, WorkBench
from data_recipes.workplace.workbench_data import WorkBenchTask, load_office, load_tasks
from data_recipes.workplace.workbench_tools import TOOLS


def trajectories(data_root: Path, split: str = "train") -> list[Conversation]:
    """One conversation a replayable task of ``split``. Raises DataError where WorkBench's files are missing."""
    office = load_office(data_root)
    return [_replayed(task, office) for task in load_tasks(data_root) if task.split == split and _replayable(task)]


def _replayable(task: WorkBenchTask) -> bool:
    names = {name for call in task.calls for name in call.arguments}
    return bool(task.calls) and not any(name == "id" or name.endswith("_id") for name in names)


def _replayed(task: WorkBenchTask, office: WorkBench) -> Conversation:
    desk = office.copy()
    results = [Message("tool", desk.call(call.name, call.arguments)) for call in task.calls]
    prefixes = ("company_directory", task.domain)
    return Conversation(
        (
            Message("system", SYSTEM),
            Message("user", task.request),
            Message("assistant", "", reasoning="", tool_calls=task.calls),
            *results,
            Message("assistant", "Done.", reasoning=""),
        ),
        tools=tuple(tool for name, tool in TOOLS.items() if name.startswith(prefixes)),
        domain="tools",
        id=task.id,
    )
