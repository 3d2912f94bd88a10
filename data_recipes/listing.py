"""The index of a prepared set: what its shards hold, counted exactly, and its examples in training order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanoalign.common.files import sha256_file, whole_file, write_json
from nanoalign.data_recipes import shards
from nanoalign.data_recipes.card import card
from nanoalign.data_recipes.draw import Draw, parts
from nanoalign.data_recipes.mixture import MixtureReport
from nanoalign.data_recipes.shards import read_table, write_table

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = "examples.arrow"


def write_index(
    folder: Path, paths: Sequence[Path], draws: Mapping[str, Draw], report: MixtureReport, made_from: Mapping[str, Any]
) -> None:
    """Counts exactly what the shards hold, and writes the list of examples, the card and the index; removes the shards
    of earlier mixtures."""
    (folder / "index.json").unlink(missing_ok=True)
    listed: list[dict[str, Any]] = []
    columns: dict[str, list[NDArray[Any]]] = {}
    domains: dict[str, int] = {}
    places = (drawn.places[part.places] for drawn in draws.values() for part in parts(drawn))
    for number, (path, here) in enumerate(zip(paths, places, strict=True)):
        table = read_table(path)
        for fate, count in shards.fates(table).items():
            kind, _, reason = fate.partition(" ")
            (report.changed if kind == "changed" else report.dropped)[reason] += count
            report.samples -= count if kind == "dropped" else 0
        lengths, trained = _tokens(table)
        listed.append({"file": path.name, "sha256": sha256_file(path), "examples": table.num_rows,
                       "by": _groups(table, lengths, trained)})  # fmt: skip
        known = table["domain"].unique().to_pylist()
        numbers = np.array([domains.setdefault(domain, len(domains)) for domain in known], np.int16)
        found = {
            "place": here[shards.flat(table, "sample")],
            "shard": np.full(table.num_rows, number, np.int32),
            "row": np.arange(table.num_rows, dtype=np.int32),
            "length": lengths.astype(np.int32),
            "trained": trained.astype(np.int32),
            "said": shards.flat(table, "said").copy(),
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
    with whole_file(folder / "README.md") as temporary:
        temporary.write_text(card(index), encoding="utf-8")
    write_json(folder / "index.json", index)
    for path in set(folder.glob("*.arrow")) - {*paths, folder / EXAMPLES}:
        path.unlink()


def _write_examples(path: Path, columns: dict[str, list[NDArray[Any]]]) -> None:
    """All examples in training order: those of a sample together, samples by their place."""
    import pyarrow as pa

    place = np.concatenate(columns.pop("place"))
    order = np.argsort(place, kind="stable")
    place = place[order]
    sample = np.cumsum(np.diff(place, prepend=place[:1]) > 0, dtype=np.int32)  # by number, where some were dropped
    ordered = {name: np.concatenate(columns.pop(name))[order] for name in [*columns]}
    write_table(path, pa.table({**ordered, "sample": sample}))


def _tokens(table: "pa.Table") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens, and trained tokens, of each example."""
    starts = shards.offsets(table)
    if not table.num_rows:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.diff(starts), np.add.reduceat(shards.flat(table, "loss_mask"), starts[:-1], dtype=np.int64)


def _groups(table: "pa.Table", lengths: NDArray[np.int64], trained: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Examples and tokens of a shard by source, domain, language and licence."""
    keys = ["source", "domain", "language", "licence"]
    counted = table.select(keys).append_column("tokens", [lengths]).append_column("trained_tokens", [trained])
    grouped = counted.group_by(keys, use_threads=False).aggregate(
        [("tokens", "sum"), ("trained_tokens", "sum"), ("tokens", "count")]
    )
    renamed = {"tokens_sum": "tokens", "trained_tokens_sum": "trained_tokens", "tokens_count": "examples"}
    return [{renamed.get(key, key): value for key, value in row.items()} for row in grouped.to_pylist()]
