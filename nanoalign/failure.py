"""Why a stage failed: told by the first of its processes that fails, and read by the runner once all have ended.

A process that fails takes the others with it: they find their connections closed, and may well end before it does. It
tells its error before it ends; theirs are kept apart, and count only where none has told more.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from nanoalign.common.errors import NanoalignError

TOLD, LOST = "failed.json", "lost.json"
"""An error, and one of a process that lost another; the first of each is kept, in the stage's folder."""
LOST_ANOTHER = re.compile(r"connection (was )?(closed|reset|refused)|broken pipe|gloo|nccl|socket", re.IGNORECASE)


@dataclass(frozen=True)
class Failure:
    """An error of one process of a stage."""

    error: str
    """Its message; of several processes with the one that it comes from."""
    by_user: bool
    """The user can fix it; otherwise the log has its traceback."""


def clear(folder: Path) -> None:
    """Forgets what an earlier attempt told."""
    for name in (TOLD, LOST):
        (folder / name).unlink(missing_ok=True)


def tell(folder: Path, error: Exception) -> None:
    """Keeps the error that ends this process, unless another process was first. A crash of a process that is alone is
    in the log."""
    by_user, ranks = isinstance(error, NanoalignError), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1 and not by_user:
        return
    said = str(error) if by_user else f"{type(error).__name__}: {error}"
    if ranks > 1:
        said = f"rank {os.environ['RANK']} of {ranks}: {said}"
    with suppress(OSError), (folder / (LOST if _lost(error) else TOLD)).open("x", encoding="utf-8") as file:
        json.dump(asdict(Failure(said, by_user)), file)


def told(folder: Path) -> Failure | None:
    """The first error of a stage whose processes have ended, if one was told."""
    for name in (TOLD, LOST):
        with suppress(OSError, ValueError):
            return Failure(**json.loads((folder / name).read_text(encoding="utf-8")))
    return None


def _lost(error: Exception) -> bool:
    """It is of a collective, which fails where another process has gone."""
    return any(
        type(each).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
        or (type(each) is RuntimeError and LOST_ANOTHER.search(str(each)))
        for each in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
