"""Environments by name."""

from dataclasses import dataclass
from pathlib import Path

from nanoalign.common.errors import ConfigError
from nanoalign.common.printable import known
from nanoalign.common.table import Entry
from nanoalign.rollouts.environments.base import Environment, Episode, Task


@dataclass(frozen=True)
class EnvironmentEntry(Entry):
    """``code`` makes an environment, from the data root where it needs one and else from nothing."""

    needs_data: bool = False


ENVIRONMENTS = {
    "miniature-workplace": EnvironmentEntry(
        "nanoalign.rollouts.environments.miniature_workplace:MiniatureWorkplace", "a small simulated office"),
    "workbench": EnvironmentEntry(
        "nanoalign.rollouts.environments.workbench:WorkBenchEnvironment", "WorkBench, with a task's own tools",
        needs_data=True),
    "workbench-all-tools": EnvironmentEntry(
        "nanoalign.rollouts.environments.workbench:all_tools", "WorkBench, with all 27 tools", needs_data=True),
}  # fmt: skip


def environment(name: str, data_root: Path | None) -> Environment:
    """The environment called ``name``. Raises ConfigError for an unknown name, or where it needs mirrored data and
    ``data_root`` is None."""
    entry = ENVIRONMENTS[known("environment", name, ENVIRONMENTS)]
    if entry.needs_data and data_root is None:
        raise ConfigError(f"environment {name!r} needs its data: give --data-root DIR or set NANOALIGN_DATA")
    made: Environment = entry.load()(data_root) if entry.needs_data else entry.load()()
    return made


__all__ = ["ENVIRONMENTS", "Environment", "EnvironmentEntry", "Episode", "Task", "environment"]
