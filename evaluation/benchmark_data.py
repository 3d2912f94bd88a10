"""The rows of a benchmark: below the data root, else from the hub."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.common.files import sha256_file
from nanoalign.data_recipes.catalog import root_of
from nanoalign.data_recipes.chat.render import special_token_in
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.readers import BadRow, Row, RowError, read_rows, without_nulls
from nanoalign.data_recipes.rows import from_row
from nanoalign.evaluation.benchmarks import Benchmark, Data, TaskReading


def files_of(benchmark: Benchmark, data_root: Path | None) -> list[Path]:
    """The mirrored files that its rows are read from; [] where they come from the hub, or are made."""
    root = root_of(data_root)
    return [file for data in benchmark.data for file in _mirrored(data, root)]


def missing(name: str, benchmark: Benchmark, data_root: Path | None) -> str | None:
    """Why a benchmark cannot be read: its data are not mirrored, and not to be loaded from the hub; else None."""
    root = root_of(data_root)
    faults = (_how_to_mirror(data, root) for data in benchmark.data if not data.loads and not _mirrored(data, root))
    return next((f"benchmark {name}: {fault}" for fault in faults), None)


def rows(reading: TaskReading) -> Iterator[Row]:
    """(where it is, row) of all its data, in order.

    Raises DataError where they are neither mirrored nor on the hub, and where a row cannot be read.
    """
    root = root_of(reading.data_root)
    for data in reading.benchmark.data:
        files = _mirrored(data, root)
        if files:
            for file in files:
                yield from rows_of(file, reading.name)
        else:
            yield from _from_hub(reading.name, data, root)


def rows_of(file: Path, name: str) -> Iterator[Row]:
    """(where it is, row) of a file of benchmark ``name``. Raises DataError where a row cannot be read."""
    for origin, row in read_rows(file):
        if isinstance(row, BadRow):
            raise DataError(f"benchmark {name}: {row}")
        yield origin, row


def conversation(reading: TaskReading, origin: str, row: dict[str, Any]) -> Conversation:
    """A task from a row of the normal form. Raises DataError with its place where it is none."""
    try:
        return from_row(
            row, origin, source=reading.name, licence=reading.benchmark.licence, domain=row.get("domain", ""),
            language="en",
        )  # fmt: skip
    except RowError as error:
        raise DataError(f"{origin}: benchmark {reading.name}: {error.reason}") from None


def _mirrored(data: Data, root: Path | None) -> list[Path]:
    if root is not None:
        for pattern in data.files:
            if found := sorted(root.glob(pattern)):
                return found
    return []


def _from_hub(name: str, data: Data, root: Path | None) -> Iterator[Row]:
    if not data.loads:
        raise DataError(f"benchmark {name}: {_how_to_mirror(data, root)}")
    from nanoalign.data_recipes.hub import hub_rows

    number = 0
    try:
        for row in hub_rows(data.hub, data.config, split=data.split, revision=_commit(data)):
            number += 1
            yield f"hub:{data.hub}/{data.split}:{number}", without_nulls(row)
    except Exception as error:  # the libraries' many network errors
        said = str(error).strip().partition("\n")[0][:200]
        raise DataError(
            f"benchmark {name}: {data.hub} cannot be read from the hub ({type(error).__name__}: {said}). "
            f"Offline, {_how_to_mirror(data, root)}"
        ) from error


def provenance(benchmark: Benchmark, data_root: Path | None) -> list[dict[str, str]]:
    """What its tasks were read from: each mirrored file with its sha256, or the hub's data set with its commit."""
    root, found = root_of(data_root), list[dict[str, str]]()
    for data in benchmark.data:
        files = _mirrored(data, root)
        found += [{"file": str(file.relative_to(root or file.anchor)), "sha256": sha256_file(file)} for file in files]
        if not files:
            found.append({"hub": data.hub, "split": data.split, "revision": _commit(data) or "unknown"})
    return found


@cache
def _commit(data: Data) -> str | None:
    """The commit that is read: the one that is asked for, as a full name where the hub answers, else what the hub's
    cache last saw. None: the newest in the cache of ``datasets``, whatever it is."""
    if data.revision is not None and re.fullmatch(r"[0-9a-f]{40}", data.revision):
        return data.revision
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        return HfApi().dataset_info(data.hub, revision=data.revision, timeout=20).sha
    except Exception:  # the libraries' many network errors: what is read says it
        seen = Path(HF_HUB_CACHE) / f"datasets--{data.hub.replace('/', '--')}" / "refs" / (data.revision or "main")
        return seen.read_text(encoding="utf-8").strip() if seen.is_file() else data.revision


def _how_to_mirror(data: Data, root: Path | None) -> str:
    place = str(root) if root else "the data root (--data-root or NANOALIGN_DATA, which is not set)"
    looked = " or ".join(data.files)
    revision = f" --revision {data.revision}" if data.revision else ""
    command = data.fetch or f"hf download {data.hub} --repo-type dataset{revision} --local-dir {{root}}/{data.hub}"
    return f"mirror it below {place}, where {looked} was looked for: {command.format(root=root or 'DATA_ROOT')}"


def checked(reading: TaskReading, made: Iterable[Conversation]) -> list[Conversation]:
    """As many tasks as are wanted. Raises DataError where there are none, or one holds a special token of the chat
    format."""
    tasks = list(islice(made, reading.samples))
    if not tasks:
        raise DataError(f"benchmark {reading.name} has no tasks")
    for task in tasks:
        if reading.chat and (fault := special_token_in(task, reading.chat)):
            raise DataError(f"benchmark {reading.name}, task {task.id}: {fault}")
    return tasks
