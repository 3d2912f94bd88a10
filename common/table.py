"""A written table of names: where the code of each is, imported only when it is used, and a line about it."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A line of a table."""

    code: str
    """``module:name`` of a class or function."""
    about: str
    """What it is, for the recipe's schema and docs/names.md."""

    def load(self) -> Any:
        """The class or function; imports its module."""
        module, _, name = self.code.partition(":")
        return getattr(import_module(module), name)
