"""Shards of a prepared set: Arrow streams of one record batch, so that tokens are flat arrays in a mapped file.

Columns: ``input_ids`` and ``loss_mask``; ``sample``, the number of the example's sample in the shard; ``said``, 64 bits
that identify the sample's content; ``changed``, what transforms did to it; and ``FACTS``.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanoalign.common.files import whole_file
from nanoalign.data_recipes.caps import digest
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.tokenize import ExampleEncoder
from nanoalign.data_recipes.transforms import Transform, text_of

if TYPE_CHECKING:
    import pyarrow as pa

FACTS = ("source", "domain", "language", "licence", "id", "row")
"""``row`` is the file's name and the line."""
AT_ONCE = 256
"""Samples that are tokenized together, if they have no more than ``CHARACTERS``."""
CHARACTERS = 2_000_000


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
    facts: dict[str, list[str]] = {fact: [] for fact in FACTS}
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
                    facts[fact].append(value)
    offsets = pa.array(np.cumsum([0, *map(len, ids)], dtype=np.int64))
    columns = {
        "input_ids": pa.LargeListArray.from_arrays(offsets, np.concatenate([np.empty(0, np.int32), *ids])),
        "loss_mask": pa.LargeListArray.from_arrays(offsets, np.concatenate([np.empty(0, np.uint8), *masks])),
        "sample": pa.array(samples, pa.int32()),
        "said": pa.array(said, pa.uint64()),
        "changed": pa.array(changes, pa.string()),
        **{fact: pa.array(values, pa.string()) for fact, values in facts.items()},
    }
    table = pa.table(columns).replace_schema_metadata({"fates": json.dumps(dict(sorted(fates.items())))})
    write_table(shard.path, table)


def write_table(path: Path, table: "pa.Table") -> None:
    """Writes a table as one record batch, atomically."""
    import pyarrow as pa

    with whole_file(path) as temporary, pa.ipc.new_stream(str(temporary), table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, table.num_rows))


def read_table(path: Path) -> "pa.Table":
    """A table of :func:`write_table`, mapped into memory; the file itself is closed again."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file).read_all()


def flat(table: "pa.Table", column: str) -> NDArray[Any]:
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
        rng, current, reasons = Random(seed), conversation, []
        for transform in transforms:
            changed, reason = transform(current, rng)
            if reason:
                reasons.append(reason)
                fates[("changed " if changed else "dropped ") + reason] += 1
            if changed is None:
                break
            current = changed
        else:
            batch.append((number, current, "; ".join(reasons)))
            characters += len(text_of(current))
        if len(batch) == AT_ONCE or characters > CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _facts(conversation: Conversation) -> dict[str, str]:
    values = {fact: getattr(conversation, fact) for fact in FACTS[:-1]}
    return values | {"row": conversation.origin.rpartition("/")[2] or conversation.id}
