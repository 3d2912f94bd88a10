"""The files of a prepared set: shards, and the index of what they hold.

They are Arrow streams of one record batch, so that tokens are flat arrays in a mapped file. A shard's columns:
``input_ids`` and ``loss_mask``; ``sample``, the number of the example's sample in the shard; ``said``, 64 bits that
name what the sample says; ``changed``, what transforms did to it; and ``METADATA``.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanoalign.common.files import atomic_file, sha256_file, write_json
from nanoalign.data_recipes.conversation import Conversation, text_of
from nanoalign.data_recipes.data_card import card
from nanoalign.data_recipes.rows import digest
from nanoalign.data_recipes.selection import MixtureReport, Selected
from nanoalign.data_recipes.tokenize import ExampleEncoder
from nanoalign.data_recipes.transforms import Transform, transformed

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = "examples.arrow"
METADATA = ("source", "domain", "language", "licence", "id", "row")
"""``row`` is the file's name and the line."""
PART = 5_000
"""Most rows of a part."""
ROW = 20_000
"""Bytes that a row counts at least: a part has no more than PART x ROW bytes of text either, give or take one row."""
AT_ONCE = 256
"""Samples that are tokenized together, if they have no more than ``CHARACTERS``."""
CHARACTERS = 2_000_000


@dataclass(frozen=True)
class Part:
    """Rows of a source that go into one shard."""

    rows: slice
    places: slice


def parts(selected: Selected) -> list[Part]:
    """All parts of what is taken of a source, each of about the same size at most."""
    sizes = np.maximum(selected.sizes, ROW) * selected.copies.astype(np.int64)
    number = (np.cumsum(sizes) - sizes) // (PART * ROW)
    rows = np.append(np.flatnonzero(np.diff(number, prepend=-1)), len(number))
    places = np.append(0, np.cumsum(selected.copies))[rows]
    return [Part(slice(*r), slice(*p)) for r, p in zip(pairwise(rows.tolist()), pairwise(places.tolist()))]


@dataclass(frozen=True)
class Shard:
    """What one shard is to hold."""

    path: Path
    samples: Sequence[tuple[Conversation, str]]
    """Each with the seed of its transforms."""


def write_shard(shard: Shard, encoder: ExampleEncoder, transforms: Sequence[Transform]) -> None:
    """Transforms, renders and tokenizes a shard's samples, and writes the file atomically."""
    import pyarrow as pa

    fates: Counter[str] = Counter()
    ids: list[NDArray[np.int32]] = []
    masks: list[NDArray[np.uint8]] = []
    samples: list[int] = []
    said: list[int] = []
    changes: list[str] = []
    metadata: dict[str, list[str]] = {fact: [] for fact in METADATA}
    for batch in _batches(shard.samples, transforms, fates):
        encoded = encoder.encode([conversation for _, conversation, _ in batch])
        for (number, conversation, change), examples in zip(batch, encoded, strict=True):
            name = digest(repr(conversation.messages).encode())
            known = _facts(conversation)
            for example in examples:
                ids.append(np.array(example.input_ids, np.int32))
                masks.append(np.array(example.loss_mask, np.uint8))
                masks[-1][:1] = 0  # nothing in the example predicts its first token
                samples.append(number)
                said.append(name)
                changes.append(change)
                for fact, value in known.items():
                    metadata[fact].append(value)
    offsets = pa.array(np.cumsum([0, *map(len, ids)], dtype=np.int64))
    columns = {
        "input_ids": pa.LargeListArray.from_arrays(offsets, np.concatenate([np.empty(0, np.int32), *ids])),
        "loss_mask": pa.LargeListArray.from_arrays(offsets, np.concatenate([np.empty(0, np.uint8), *masks])),
        "sample": pa.array(samples, pa.int32()),
        "said": pa.array(said, pa.uint64()),
        "changed": pa.array(changes, pa.string()),
        **{fact: pa.array(values, pa.string()) for fact, values in metadata.items()},
    }
    table = pa.table(columns).replace_schema_metadata({"fates": json.dumps(dict(sorted(fates.items())))})
    write_table(shard.path, table)


def write_table(path: Path, table: "pa.Table") -> None:
    """Writes a table as one record batch, atomically."""
    import pyarrow as pa

    with atomic_file(path) as temporary, pa.ipc.new_stream(str(temporary), table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, table.num_rows))


def read_table(path: Path) -> "pa.Table":
    """A table of :func:`write_table`, mapped into memory; the file itself is closed again."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file).read_all()


def flat_values(table: "pa.Table", column: str) -> NDArray[Any]:
    """A column's numbers, as a view; those of all its lists end to end."""
    only = _only_chunk(table, column)
    return getattr(only, "values", only).to_numpy(zero_copy_only=True)


def offsets(table: "pa.Table") -> NDArray[np.int64]:
    """Where examples begin in the flat tokens; one more than there are examples."""
    return _only_chunk(table, "input_ids").offsets.to_numpy(zero_copy_only=True)


def fates(table: "pa.Table") -> dict[str, int]:
    """``changed REASON`` and ``dropped REASON``: how many samples."""
    return json.loads(table.schema.metadata[b"fates"])


def _only_chunk(table: "pa.Table", column: str) -> Any:
    import pyarrow as pa

    chunks = table[column].chunks
    return chunks[0] if chunks else pa.array([], table.schema.field(column).type)


def _batches(
    samples: Sequence[tuple[Conversation, str]], transforms: Sequence[Transform], fates: Counter[str]
) -> Iterator[list[tuple[int, Conversation, str]]]:
    """The samples that transforms leave, with their numbers and what was changed, some at a time."""
    batch: list[tuple[int, Conversation, str]] = []
    characters = 0
    for number, (conversation, seed) in enumerate(samples):
        current, changes, drop = transformed(conversation, transforms, seed)
        fates.update(f"changed {reason}" for reason in changes)
        if current is not None:
            batch.append((number, current, "; ".join(changes)))
            characters += len(text_of(current))
        elif drop:
            fates[f"dropped {drop}"] += 1
        if len(batch) == AT_ONCE or characters > CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _facts(conversation: Conversation) -> dict[str, str]:
    values = {fact: getattr(conversation, fact) for fact in METADATA[:-1]}
    return values | {"row": conversation.origin.rpartition("/")[2] or conversation.id}


def write_index(
    folder: Path,
    paths: Sequence[Path],
    selected: Mapping[str, Selected],
    report: MixtureReport,
    made_from: Mapping[str, Any],
) -> None:
    """Counts exactly what the shards hold, and writes the list of examples, the card and the index; removes the shards
    of earlier mixtures."""
    (folder / "index.json").unlink(missing_ok=True)
    listed: list[dict[str, Any]] = []
    columns: dict[str, list[NDArray[Any]]] = {}
    domains: dict[str, int] = {}
    places = (each.places[part.places] for each in selected.values() for part in parts(each))
    for number, (path, here) in enumerate(zip(paths, places, strict=True)):
        table = read_table(path)
        for fate, count in fates(table).items():
            kind, _, reason = fate.partition(" ")
            (report.changed if kind == "changed" else report.dropped)[reason] += count
            report.samples -= count if kind == "dropped" else 0
        lengths, trained = _tokens(table)
        listed.append({"file": path.name, "sha256": sha256_file(path), "examples": table.num_rows,
                       "by": _groups(table, lengths, trained)})  # fmt: skip
        known = table["domain"].unique().to_pylist()
        numbers = np.array([domains.setdefault(domain, len(domains)) for domain in known], np.int16)
        found = {
            "place": here[flat_values(table, "sample")],
            "shard": np.full(table.num_rows, number, np.int32),
            "row": np.arange(table.num_rows, dtype=np.int32),
            "length": lengths.astype(np.int32),
            "trained": trained.astype(np.int32),
            "said": flat_values(table, "said").copy(),
            "domain": numbers[table["domain"].combine_chunks().dictionary_encode().indices.to_numpy()],
        }
        for name, column in found.items():
            columns.setdefault(name, []).append(column)
    _write_examples(folder / EXAMPLES, columns)
    index = {
        "examples": sum(shard["examples"] for shard in listed),
        "tokens": sum(group["tokens"] for shard in listed for group in shard["by"]),
        "trained_tokens": sum(group["trained_tokens"] for shard in listed for group in shard["by"]),
        "domains": list(domains),
        "made_from": made_from,
        "shards": listed,
        "report": report.as_dict(),
    }
    with atomic_file(folder / "README.md") as temporary:
        temporary.write_text(card(index), encoding="utf-8")
    write_json(folder / "index.json", index)
    for path in set(folder.glob("*.arrow")) - {*paths, folder / EXAMPLES}:
        path.unlink()


def _write_examples(path: Path, columns: dict[str, list[NDArray[Any]]]) -> None:
    """All examples in training order: those of a sample together, samples by their position."""
    import pyarrow as pa

    place = np.concatenate(columns.pop("place"))
    order = np.argsort(place, kind="stable")
    place = place[order]
    sample = np.cumsum(np.diff(place, prepend=place[:1]) > 0, dtype=np.int32)  # by number, where some were dropped
    ordered = {name: np.concatenate(columns.pop(name))[order] for name in [*columns]}
    write_table(path, pa.table({**ordered, "sample": sample}))


def _tokens(table: "pa.Table") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens, and trained tokens, of each example."""
    starts = offsets(table)
    if not table.num_rows:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.diff(starts), np.add.reduceat(flat_values(table, "loss_mask"), starts[:-1], dtype=np.int64)


def _groups(table: "pa.Table", lengths: NDArray[np.int64], trained: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Examples and tokens of a shard by source, domain, language and licence."""
    keys = ["source", "domain", "language", "licence"]
    counted = table.select(keys).append_column("tokens", [lengths]).append_column("trained_tokens", [trained])
    grouped = counted.group_by(keys, use_threads=False).aggregate(
        [("tokens", "sum"), ("trained_tokens", "sum"), ("tokens", "count")]
    )
    renamed = {"tokens_sum": "tokens", "trained_tokens_sum": "trained_tokens", "tokens_count": "examples"}
    return [{renamed.get(key, key): value for key, value in row.items()} for row in grouped.to_pylist()]
