"""Tool trajectories by replay: WorkBench's tasks with the reference calls run against its databases.

The reference uses ids that the request does not give; the look-ups that show them are put before it (see lookups.py).
Where the request suggests none that shows them, the task is left out: a model that is taught to write ids it never saw
learns to invent them.
"""

from pathlib import Path

from nanoalign.data_recipes.conversation import Conversation, Message, ToolCall
from nanoalign.data_recipes.workplace.lookups import lookups
from nanoalign.data_recipes.workplace.workbench import SYSTEM, WorkBench
from nanoalign.data_recipes.workplace.workbench_data import WorkBenchTask, load_office, load_tasks
from nanoalign.data_recipes.workplace.workbench_tools import TOOLS


def trajectories(data_root: Path, split: str = "train") -> list[Conversation]:
    """One conversation a task of ``split`` that has calls and whose ids can be looked up: a message for each look-up,
    one for the reference's calls, and a closing one. Raises DataError where WorkBench's files are missing."""
    office = load_office(data_root)
    tasks = [task for task in load_tasks(data_root) if task.split == split and task.calls]
    looked_up = [(task, lookups(task, office)) for task in tasks]
    return [_replayed(task, calls, office) for task, calls in looked_up if calls is not None]


def _replayed(task: WorkBenchTask, looked_up: tuple[ToolCall, ...], office: WorkBench) -> Conversation:
    desk = office.copy()
    messages = [Message("system", SYSTEM), Message("user", task.request)]
    for calls in [*((call,) for call in looked_up), task.calls]:
        messages.append(Message("assistant", "", reasoning="", tool_calls=calls))
        messages += [Message("tool", desk.call(call.name, call.arguments)) for call in calls]
    messages.append(Message("assistant", "Done.", reasoning=""))
    prefixes = ("company_directory", task.domain)
    return Conversation(
        tuple(messages),
        tools=tuple(tool for name, tool in TOOLS.items() if name.startswith(prefixes)),
        domain="tools",
        id=task.id,
    )
