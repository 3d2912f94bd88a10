"""Environments by name."""

from dataclasses import dataclass
from pathlib import Path

from nanoalign.common.errors import ConfigError
from nanoalign.common.printable import known
from nanoalign.common.table import Entry
from nanoalign.common.user_code import find, is_user_code, load, parameter_faults
from nanoalign.rollouts.config import EnvironmentUse
from nanoalign.rollouts.environments.base import Environment, Episode, Task


@dataclass(frozen=True)
class EnvironmentEntry(Entry):
    """``code`` makes an environment, from the data root where it needs one and else from nothing."""

    needs_data: bool = False
    params: bool = False
    """It takes keywords: ``params`` of a recipe."""


ENVIRONMENTS = {
    "miniature-workplace": EnvironmentEntry(
        "nanoalign.rollouts.environments.miniature_workplace:MiniatureWorkplace", "a small simulated office"),
    "workbench": EnvironmentEntry(
        "nanoalign.rollouts.environments.workbench:WorkBenchEnvironment", "WorkBench, with a task's own tools",
        needs_data=True),
    "workbench-all-tools": EnvironmentEntry(
        "nanoalign.rollouts.environments.workbench:all_tools", "WorkBench, with all 27 tools", needs_data=True),
    "reasoning-gym": EnvironmentEntry(
        "nanoalign.rollouts.environments.reasoning:ReasoningGym", "a data set of reasoning-gym, one answer a task",
        params=True),
    "openenv": EnvironmentEntry(
        "nanoalign.rollouts.environments.user:openenv_server", "the environment behind an OpenEnv server", params=True),
    "nemo-gym": EnvironmentEntry(
        "nanoalign.rollouts.environments.user:nemo_gym_server", "the environment behind a NeMo Gym resources server",
        params=True),
}  # fmt: skip


def environment(use: str | EnvironmentUse, data_root: Path | None) -> Environment:
    """The environment called by a name, or a user's own, which is made here.

    Raises:
        ConfigError: an unknown name, or mirrored data is needed and ``data_root`` is None.
        UserCodeError: the user's class or function raises or makes no environment.
    """
    use = EnvironmentUse(name=use) if isinstance(use, str) else use
    if is_user_code(use.name):
        return _users(use)
    entry = ENVIRONMENTS[known("environment", use.name, ENVIRONMENTS)]
    if entry.needs_data and data_root is None:
        raise ConfigError(f"environment {use.name!r} needs its data: give --data-root DIR or set NANOALIGN_DATA")
    for _, message in parameter_faults(find(entry.code), use.params, supplied=["data_root"]):
        raise ConfigError(f"environment {use.name!r}: {message}")
    made: Environment = entry.load()(*([data_root] if entry.needs_data else []), **use.params)
    return made


def _users(use: EnvironmentUse) -> Environment:
    from nanoalign.rollouts.environments.mcp_tools import McpServer
    from nanoalign.rollouts.environments.user import open_user_environment

    code = find(use.name)
    tools = [load(find(each)) if isinstance(each, str) else McpServer(each.mcp, each.folder) for each in use.tools]
    return open_user_environment(code, use.params, tools, use.deadline_s)


__all__ = ["ENVIRONMENTS", "Environment", "EnvironmentEntry", "Episode", "Task", "environment"]
