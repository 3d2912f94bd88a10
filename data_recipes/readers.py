"""Rows in files.

Readers never raise for a file's content: what cannot be read comes back as a :class:`BadRow` in its place, so that all
faults of a file are reported together, each with ``file:line`` and the reason.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from nanoalign.common.errors import DataError

LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True)
class BadRow:
    """A row that is not a sample: where it is, the kind of fault (for counting) and the fault in words."""

    origin: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.kind}: {self.reason}"


class RowError(DataError):
    """A row is not a sample. ``kind`` is a short class of faults, for counting."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason


Row = tuple[str, Any]
"""``file:line`` and the row's value, or a BadRow where there is none."""


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a JSONL, JSON (a list of rows, or lines), CSV or Parquet file, the first three also with ``.gz``.

    Streams, except JSON lists. Raises DataError where the file is missing or its name has no known extension.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])
    if kind not in (".jsonl", ".ndjson", ".json", ".csv", ".parquet"):
        raise DataError(f"{path}: not a .jsonl, .json, .csv or .parquet file (.gz allowed except for Parquet)")
    if path.stat().st_size == 0:
        yield _bad(f"{path}:1", "empty file", "the file is empty")
    elif kind == ".parquet":
        yield from _parquet_rows(path)
    elif kind == ".csv":
        yield from _csv_rows(path)
    else:
        yield from _json_rows(path, may_be_list=kind == ".json")


def _bad(origin: str, kind: str, reason: str) -> Row:
    return origin, BadRow(origin, kind, reason)


def _lines(path: Path) -> Iterator[tuple[int, bytes | BadRow]]:
    """Numbered raw lines; a BadRow last where a gzip stream is damaged."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    number = 0
    with cast(BinaryIO, opener(path, "rb")) as file:
        while True:
            number += 1
            try:
                line = file.readline()
            except (EOFError, OSError, zlib.error) as error:
                yield number, BadRow(f"{path}:{number}", "damaged file", str(error))
                return
            if not line:
                return
            yield number, line


def parse_json(text: str) -> Any:
    """The value in JSON text. Raises ValueError or RecursionError where it is not JSON (NaN and Infinity are not)."""

    return _DECODER.decode(text)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _json_rows(path: Path, may_be_list: bool) -> Iterator[Row]:
    seen = False
    for number, line in _lines(path):
        origin = f"{path}:{number}"
        if isinstance(line, BadRow):
            yield origin, line
            return
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield _bad(origin, "not UTF-8", str(error))
            continue
        if not text.strip():
            continue
        if may_be_list and not seen and text.lstrip().startswith("["):
            yield from _json_list(path)
            return
        seen = True
        try:
            yield origin, parse_json(text)
        except (ValueError, RecursionError) as error:
            yield _bad(origin, "bad JSON", str(error))


def _json_list(path: Path) -> Iterator[Row]:
    """The elements of a JSON list, each with the line on which it starts."""
    chunks: list[bytes] = []
    for _, line in _lines(path):
        if isinstance(line, BadRow):
            yield line.origin, line
            break
        chunks.append(line)
    try:
        text = b"".join(chunks).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line_number = error.object[: error.start].count(b"\n") + 1
        yield _bad(f"{path}:{line_number}", "not UTF-8", str(error))
        return
    decoder = json.JSONDecoder()
    position, line_number, counted = text.index("[") + 1, 1, 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        line_number += text.count("\n", counted, position)
        counted = position
        origin = f"{path}:{line_number}"
        if position >= len(text):
            yield _bad(origin, "bad JSON", "the list does not end")
            return
        if text[position] == "]":
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield _bad(origin, "bad JSON", f"{error}; the rows after it were not read")
            return
        yield origin, value


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)
    faults: list[BadRow] = []

    def texts() -> Iterator[str]:
        for number, line in _lines(path):
            if isinstance(line, BadRow):
                faults.append(line)
                return
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                faults.append(BadRow(f"{path}:{number}", "not UTF-8", str(error)))

    reader = csv.DictReader(texts(), strict=True)
    try:
        reader.fieldnames  # noqa: B018 (reads the header, so that line_num counts from the first row)
    except csv.Error as error:
        yield _bad(f"{path}:1", "bad CSV", str(error))
        return
    while True:
        origin = f"{path}:{reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield _bad(origin, "bad CSV", str(error))
            continue
        if None in row or None in row.values():
            yield _bad(origin, "bad CSV", f"{'more' if None in row else 'fewer'} fields than the header")
        else:
            yield origin, row
    yield from ((fault.origin, fault) for fault in faults)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", without_nulls(row)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield _bad(f"{path}:{number + 1}", "damaged file", str(error).splitlines()[0])


def without_nulls(value: Any) -> Any:
    """Arrow gives every struct all keys that any row has, as nulls: those keys are not data (trl#5118)."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
