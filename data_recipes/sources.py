"""Samples by source name.

Names: one of the catalog (``gsm8k``), ``file:PATH`` (each row in the layout that its keys indicate;
``file:PATH#sharegpt`` names the layout of all; all rows are of the split that a recipe asks for, so test rows belong in
another file), ``miniature:NAME`` (generated) and ``reasoning-gym:DATASET`` (generated, checked by its own verifier).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.common.printable import nearest
from nanoalign.data_recipes.adapters import ADAPTERS, NotASample, conversations_of
from nanoalign.data_recipes.catalog import Source, Split, find_files, root_of, source
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.chat.render import special_token_in
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.generators import check_name, generate, in_test, is_generated
from nanoalign.data_recipes.readers import BadRow, Row, RowError, read_rows, without_nulls
from nanoalign.data_recipes.rows import to_row

LISTED = 25
"""Bad rows that an error message lists; the others are counted."""

OF_ANOTHER_LAYOUT = {"no messages", "missing key", "unknown key", "unknown role", "bad tool", "bad tool call"}
"""Kinds of faults that rows of a layout that was not recognised show."""


@dataclass
class LoadReport:
    """What became of a source's rows."""

    source: str
    split: str
    rows: int = 0
    """Rows read, of both splits where a hash splits them."""
    samples: int = 0
    """Samples that these rows gave to the split, after the filters."""
    taken: int = 0
    epochs: float = 0.0
    """taken / samples; more than 1 where samples are seen again."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Valid rows that give no sample, by reason."""
    parts: Counter[str] = field(default_factory=Counter)
    """What rows contain that is not part of a sample, by name: in how many rows."""
    bad: Counter[str] = field(default_factory=Counter)
    """Bad rows by kind of fault."""
    bad_rows: list[BadRow] = field(default_factory=list)
    """The first ``LISTED`` of them."""

    def count_bad(self, row: BadRow) -> None:
        """Counts a bad row, and keeps it where it is to be listed."""
        self.bad[row.kind] += 1
        if len(self.bad_rows) < LISTED:
            self.bad_rows.append(row)


def read(
    name: str,
    samples: int | None = None,
    split: Split = "train",
    data_root: Path | None = None,
    seed: int = 0,
    report: LoadReport | None = None,
    chat: ChatFormat | None = None,
    look_in: Sequence[str] = (),
) -> Iterator[Conversation | BadRow]:
    """A source's samples in its own order: as many as are asked for of a generated one, else all of the split, one at a
    time, with bad rows in their place; one that contains a special token of ``chat`` is bad.

    What is read and left out is counted in ``report``. ``look_in``: folders in which a ``file:`` with a relative path
    is looked for before the working folder and the data root. Raises ConfigError for a source that is unknown, or
    generated without end, DataError for missing files.
    """
    report = report or LoadReport(name, split)
    if is_generated(name):
        if samples is None:
            raise ConfigError(f"source {name} is unlimited; give a number of samples")
        made = generate(name, samples, split, seed)
        report.rows = len(made)
        yield from made
        return
    entry, rows = _rows(name, split, data_root, look_in)
    for origin, raw in rows:
        report.rows += 1
        for item in _adapted(origin, raw, name, entry, report):
            if isinstance(item, Conversation):
                if "all" in entry.files and in_test(item, entry.test_share) != (split == "test"):
                    continue
                if chat and (fault := special_token_in(item, chat)):
                    item = BadRow(origin, "special token", fault)
            yield item


def _rows(name: str, split: Split, data_root: Path | None, look_in: Sequence[str]) -> tuple[Source, Iterable[Row]]:
    """A source's entry (one made for a local file) and its raw rows."""
    if name.startswith("file:"):
        path, _, adapter = name.removeprefix("file:").partition("#")
        entry = _local_source(name, adapter)
        _checked_part(name, entry, split)
        return entry, read_rows(_local_path(name, path, data_root, look_in))
    entry = source(name)
    part = _checked_part(name, entry, split)
    files = find_files(name, split, data_root)
    if entry.replay:
        rows: Iterable[Row] = _replayed_rows(split, data_root)
    elif files:
        rows = (row for file in files for row in read_rows(file))
    else:
        rows = _hub_rows(name, entry, part, data_root)
    if entry.join:
        rows = _joined(rows, entry, data_root)
    if entry.functions:
        rows = _with_functions(rows, entry.functions, data_root)
    return entry, rows


def describe_source(
    name: str, data_root: Path | None = None, split: Split = "train", look_in: Sequence[str] = ()
) -> dict[str, Any]:
    """What a plan shows of a source, without reading its rows: ``rows`` (None: unknown or unlimited), ``licence``,
    ``domain``, ``languages``, ``about``, ``where`` and ``found`` (False: it is loaded from the hub).

    Raises ConfigError for an unknown source with the nearest valid name, DataError for a missing file.
    """
    kind, _, rest = name.partition(":")
    if kind == "file" and rest:
        path, _, adapter = rest.partition("#")
        entry = _local_source(name, adapter)
        _checked_part(name, entry, split)
        where, rows, found = str(_local_path(name, path, data_root, look_in)), None, True
    elif rest:
        check_name(name)
        licence = "Apache-2.0"
        return {"name": name, "rows": None, "licence": licence, "domain": rest, "languages": ["en"],
                "about": "generated", "where": "generated", "found": True}  # fmt: skip
    else:
        entry = source(name)
        part = _checked_part(name, entry, split)
        files = find_files(name, split, data_root)
        found, rows = bool(files), (entry.rows or {}).get(part)
        where = ", ".join(map(str, files)) if files else f"hub: {entry.hub}"
        if rows is not None and part == "all":
            rows = round(rows * (entry.test_share if split == "test" else 1 - entry.test_share))
    return {"name": name, "rows": rows, "licence": entry.licence, "domain": entry.domain,
            "languages": list(entry.languages), "about": entry.about, "where": where, "found": found}  # fmt: skip


def files_of(name: str, split: Split, data_root: Path | None, look_in: Sequence[str] = ()) -> list[Path]:
    """The files on this machine that a source's rows come from. Raises as :func:`describe_source` does."""
    if is_generated(name):
        return []
    if name.startswith("file:"):
        return [_local_path(name, name.removeprefix("file:").partition("#")[0], data_root, look_in)]
    entry, root = source(name), root_of(data_root) or Path()
    beside = [*([entry.join.file] if entry.join else []), *(entry.functions or {}).values()]
    return [*find_files(name, split, data_root), *(root / file for file in beside)]


def _adapted(origin: str, raw: Any, name: str, entry: Source, report: LoadReport) -> Iterator[Conversation | BadRow]:
    if isinstance(raw, BadRow):
        yield raw
        return
    defaults = {"source": name, "licence": entry.licence, "domain": entry.domain, "language": entry.languages[0]}
    try:
        yield from conversations_of(raw, entry.adapter, origin, defaults, report.parts)
    except NotASample as reason:
        report.left_out[str(reason)] += 1
    except RowError as error:
        if error.kind == "thinking tags" and not name.startswith("file:"):  # no user can fix a published row
            report.left_out["thinking tags inside an answer"] += 1
        else:
            yield BadRow(origin, error.kind, error.reason)
    except KeyError as error:
        yield BadRow(origin, "missing key", f"{error} (layout {entry.adapter})")
    except (TypeError, ValueError, IndexError, AttributeError, SyntaxError, RecursionError) as error:
        yield BadRow(origin, "wrong type", f"{error} (layout {entry.adapter})")


def faults(name: str, report: LoadReport) -> str:
    """The message that names a source's bad rows."""
    listed = [str(bad) for bad in report.bad_rows]
    more = report.bad.total() - len(listed)
    counts = ", ".join(f"{count} {kind}" for kind, count in report.bad.most_common())
    head = f"{report.bad_rows[0].origin}: source {name} has {report.bad.total()} bad rows ({counts})"
    tail = [f"... and {more} more"] if more else []
    if name.startswith("file:") and "#" not in name and report.bad.keys() & OF_ANOTHER_LAYOUT:
        tail.append(f"a layout can be named: {name}#openai, #sharegpt, #alpaca, ... (docs/data.md shows each)")
    return "\n".join([head, *listed, *tail, "on_bad_row: skip leaves them out"])


def _checked_part(name: str, entry: Source, split: Split) -> Literal["train", "test", "all"]:
    try:
        return entry.part(split)
    except ConfigError as error:
        raise ConfigError(f"source {name}: {error}") from None


def _joined(rows: Iterable[Row], entry: Source, data_root: Path | None) -> Iterator[Row]:
    assert entry.join
    root = root_of(data_root)
    other = (root or Path()) / entry.join.file
    by_key = {row[entry.join.key]: row for _, row in read_rows(other) if isinstance(row, Mapping)}
    for origin, row in rows:
        if isinstance(row, Mapping):
            key = row.get(entry.join.key)
            if key not in by_key:
                row = BadRow(origin, "missing key", f"{other} has no row for {entry.join.key} {key!r}")
            else:
                row = {**row, entry.join.name: by_key[key]}
        yield origin, row


def _with_functions(rows: Iterable[Row], files: Mapping[str, str], data_root: Path | None) -> Iterator[Row]:
    root = root_of(data_root) or Path()
    known = {name: [function for _, function in read_rows(root / file)] for name, file in files.items()}
    for origin, row in rows:
        if isinstance(row, Mapping):
            classes = row.get("involved_classes") or []
            unknown = [name for name in classes if name not in known]
            without = row.get("excluded_function") or []
            listed = [each for name in classes if name in known for each in known[name] if each["name"] not in without]
            row = BadRow(origin, "unknown class", f"{unknown[0]!r}") if unknown else {**row, "functions": listed}
        yield origin, row


def _replayed_rows(split: Split, data_root: Path | None) -> Iterator[Row]:
    from nanoalign.data_recipes.workplace.replay import trajectories

    for conversation in trajectories(root_of(data_root) or Path(), split):
        yield f"workbench:{conversation.id}", to_row(conversation)


def _hub_rows(name: str, entry: Source, part: str, data_root: Path | None) -> Iterator[Row]:
    """Rows streamed from the hub, one at a time. Raises DataError that says where a mirror would have to be."""
    from nanoalign.data_recipes.hub import hub_rows

    assert entry.hub and entry.hub_splits
    split, number = entry.hub_splits[part], 0  # type: ignore[index]
    try:
        for row in hub_rows(entry.hub, split=split, streaming=True):
            number += 1
            yield f"hub:{entry.hub}/{split}:{number}", without_nulls(row)
    except Exception as error:  # the libraries' many network errors, also in the middle of a stream
        wanted = entry.files[part]  # type: ignore[index]
        mirror = ", ".join([wanted] if isinstance(wanted, str) else wanted)
        raise DataError(
            f"hub:{entry.hub}/{split}:{number + 1}: source {name} cannot be read from the hub "
            f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}). Offline, "
            f"mirror its files as {mirror} under --data-root or NANOALIGN_DATA ({root_of(data_root) or 'not set'})"
        ) from error


def _local_source(name: str, adapter: str) -> Source:
    if adapter and adapter not in ADAPTERS:
        raise ConfigError(f"source {name}: unknown layout `{adapter}`{nearest(adapter, ADAPTERS)}")
    return Source(
        about="a local file",
        licence="",
        domain="",
        adapter=adapter or "recognised",
        files={"train": name, "test": name},
    )


def _local_path(name: str, path: str, data_root: Path | None, look_in: Sequence[str]) -> Path:
    folders = [*map(Path, look_in), Path(), *([root] if (root := root_of(data_root)) else [])]
    candidates = [folder / path for folder in folders]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    beside = [found.name for each in candidates for found in each.parent.glob(f"*{Path(path).suffix}")]
    places = dict.fromkeys(str(folder.absolute()) for folder in folders)
    looked = "" if Path(path).is_absolute() else f" in {' or '.join(places)}"
    meant = nearest(Path(path).name, beside) if beside else ""
    raise DataError(f"source {name}: no such file {path}{looked}{meant}")
