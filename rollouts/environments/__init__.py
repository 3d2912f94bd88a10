"""Environments by name."""

from pathlib import Path

from nanoalign.common.errors import ConfigError
from nanoalign.common.text import nearest
from nanoalign.rollouts.environments.base import Environment, Episode, Task

NAMES = ("miniature-workplace", "workbench", "workbench-all-tools")


def environment(name: str, data_root: Path | None) -> Environment:
    """The environment called ``name``. Raises ConfigError for an unknown name, or where it needs mirrored data and
    ``data_root`` is None."""
    if name not in NAMES:
        raise ConfigError(f"unknown environment `{name}`{nearest(name, NAMES)}")
    if name == "miniature-workplace":
        from nanoalign.rollouts.environments.miniature_workplace import MiniatureWorkplace

        return MiniatureWorkplace()
    if data_root is None:
        raise ConfigError(f"environment {name!r} needs its data: give --data-root DIR or set NANOALIGN_DATA")
    from nanoalign.rollouts.environments.workbench import WorkBenchEnvironment

    return WorkBenchEnvironment(data_root, all_tools=name == "workbench-all-tools")


__all__ = ["NAMES", "Environment", "Episode", "Task", "environment"]
