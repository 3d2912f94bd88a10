"""The catalog of named sources, read from ``catalog.yaml``."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, TypeAdapter

from nanoalign.common.config import Section
from nanoalign.common.errors import ConfigError, DataError
from nanoalign.common.printable import known

Split = Literal["train", "test"]
Part = Literal["train", "test", "all"]
CATALOG = Path(__file__).with_name("catalog.yaml")


class Join(Section):
    """Rows of another file, added to the rows with the same key."""

    file: str
    key: str
    name: str = Field(alias="as")


class Source(Section):
    """One named data set."""

    about: str
    licence: str
    """SPDX identifier."""
    domain: str
    adapter: str
    """Name in data_recipes.adapters.ADAPTERS."""
    hub: str | None = None
    hub_splits: dict[Part, str] | None = None
    """The hub's splits, loaded where no mirrored file is found; None: the hub's layout is another one."""
    languages: list[str] = Field(default=["en"])
    files: dict[Part, str | list[str]]
    """Globs below the data root, by split; `all` is split by a hash of the prompt."""
    rows: dict[Part, int] | None = None
    test_share: float = 0.1
    join: Join | None = None
    functions: dict[str, str] | None = None
    """Class to the file of its functions, below the data root: rows with ``involved_classes`` get their functions."""
    replay: Literal["workbench"] | None = None
    """The rows are trajectories: the files' tasks, run in this workplace (data_recipes.workplace.replay)."""

    def part(self, split: Split) -> Part:
        """The key of ``files`` that holds ``split``. Raises ConfigError where the source has no such split."""
        if "all" in self.files:
            return "all"
        if split not in self.files:
            raise ConfigError(f"the source has no {split} split, only {', '.join(self.files)}")
        return split


@lru_cache(maxsize=1)
def catalog() -> dict[str, Source]:
    """All named sources."""
    return TypeAdapter(dict[str, Source]).validate_python(yaml.safe_load(CATALOG.read_text(encoding="utf-8")))


def source(name: str) -> Source:
    """The source of that name. Raises ConfigError with the nearest valid one."""
    return catalog()[known("source", name, catalog())]


def root_of(data_root: Path | None) -> Path | None:
    """The data root: as given, else NANOALIGN_DATA, else None."""
    return data_root or (Path(os.environ["NANOALIGN_DATA"]) if os.environ.get("NANOALIGN_DATA") else None)


def find_files(name: str, split: Split, data_root: Path | None) -> list[Path]:
    """The mirrored files of a source's split, sorted; [] where there are none but the hub can give them.

    Raises DataError where they are neither mirrored nor on the hub in this layout.
    """
    entry = source(name)
    globs = entry.files[entry.part(split)]
    root = root_of(data_root)
    found: list[Path] = []
    for pattern in [globs] if isinstance(globs, str) else globs:
        matches = sorted(root.glob(pattern)) if root else []
        if not matches and not entry.hub_splits:
            place = f"under {root}" if root else "found: no data root is set (--data-root or NANOALIGN_DATA)"
            origin = f"; it comes from the hub's {entry.hub}" if entry.hub else ""
            raise DataError(f"source {name}: {pattern} is not {place}{origin}")
        found += matches
    return found
