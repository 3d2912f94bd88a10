"""Prepared sets: a mixture's tokens with their masks in Arrow shards, made in a streaming way and resumed at the shard.

A first pass over each source applies the filters and notes, for each sample, a random key and a digest: some bytes a
sample. The keys decide which samples are drawn; a second pass renders and tokenizes those, in the source's order, in
parts of ``PART`` samples. A part's file is named by a digest of all that decides its bytes, so that a killed run goes
on where it stopped and a changed mixture makes anew only the parts it changes. ``order.npy`` holds the training order.

Shards are Arrow streams: memory-mapped by :class:`Prepared`, and by ``datasets.Dataset.from_file``.
"""

import json
import re
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import DataError
from common.files import fingerprint, sha256_file, whole_file, write_json
from data_recipes.caps import Drawn, cap, digest
from data_recipes.card import card
from data_recipes.chat.base import ChatFormat
from data_recipes.config import Mixture, SourceUse
from data_recipes.conversation import Conversation
from data_recipes.files import BadRow
from data_recipes.generators import generate, is_generated
from data_recipes.mixture import MixtureReport, make_filters, uses
from data_recipes.sources import LoadReport, faults, stream
from data_recipes.tokenize import Example, ExampleEncoder, rust_tokenizer
from data_recipes.transforms import Filter, Transform

if TYPE_CHECKING:
    import pyarrow as pa

PART = 5_000
VERSION = 1
"""Changes when the same inputs give other bytes."""
_worker_encoder: ExampleEncoder | None = None
FACTS = ("source", "domain", "language", "licence", "id")


@dataclass(frozen=True)
class _Job:
    """What a worker needs to write one shard."""

    path: Path
    samples: list[tuple[Conversation, str]]
    """Each with the seed of its transforms."""


def prepare(
    mixture: Mixture,
    chat: ChatFormat,
    tokenizer: Any,
    folder: Path,
    data_root: Path | None = None,
    seed: int = 0,
    transforms: Mapping[str, Transform] | None = None,
    workers: int = 1,
) -> "Prepared":
    """Writes the tokens of ``mixture`` to ``folder`` and opens them. Shards with the same inputs are not made again.

    ``transforms`` stand under names that tell them and their settings, for the shards' names. The bytes do not depend
    on ``workers``, nor on how often the work was interrupted. Raises as :func:`data_recipes.mixture.build` does.
    """
    transforms, tokenizer = transforms or {}, rust_tokenizer(tokenizer)
    settings = {
        "version": VERSION,
        "chat": chat.name,
        "tokenizer": fingerprint(tokenizer.to_str()),
        "transforms": list(transforms),
    }
    filters, contamination, quality = make_filters(mixture, data_root)
    report = MixtureReport([])
    shards: list[Path] = []
    steps = list(transforms.values())
    working: AbstractContextManager[ProcessPoolExecutor | None]
    if workers > 1:
        work: Callable[[_Job], None] = partial(_write_in_worker, transforms=steps)
        working = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (chat, tokenizer))
    else:
        work = partial(_write_shard, encoder=ExampleEncoder(chat, tokenizer), transforms=steps)
        working = nullcontext()
    draws: dict[str, Drawn] = {}
    for name, use in uses(mixture).items():
        account = LoadReport(name, use.split)
        items = _conversations(name, use, data_root, seed, account, chat)
        draws[name] = _draw(items, use.samples, filters, mixture.domain_caps, f"{seed}/{name}/{use.split}", account)
        if account.bad_rows and mixture.on_bad_row == "stop":
            raise DataError(faults(name, account))
        if not account.samples:
            raise DataError(f"source {name} has no samples in its {use.split} split ({account.rows} rows read)")
        account.taken = int(draws[name].times.sum())
        account.epochs = account.taken / account.samples
        report.sources.append(account)
        report.dropped.update(account.left_out)
        report.dropped.update({f"bad row: {kind}": count for kind, count in account.bad.items()})
    report.dropped.update(cap(list(draws.values()), mixture.domain_caps, seed))
    report.flagged = quality.counted if quality else Counter()
    with working as pool:
        for name, use in uses(mixture).items():
            drawn = draws[name].taken()
            paths = _paths(folder, name, use, drawn, [settings, seed])
            shards += paths
            if not all(path.exists() for path in paths):
                items = _conversations(name, use, data_root, seed, LoadReport(name, use.split))
                _run(work, _jobs(name, use, drawn, items, seed, paths), pool, workers)
    report.contamination = contamination.hits if contamination else []
    _finish(folder, shards, report, settings, seed)
    return Prepared(folder)


class Prepared:
    """A prepared set, memory-mapped: ``len``, and examples by number in training order."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where ``folder`` holds no whole prepared set."""
        if not (folder / "index.json").is_file():
            raise DataError(f"{folder}: no prepared set (index.json is missing)")
        self.index: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        missing = [shard["file"] for shard in self.index["shards"] if not (folder / shard["file"]).is_file()]
        if missing:
            raise DataError(f"{folder}: the prepared set lacks {', '.join(missing[:5])}")
        self._tables = [read_shard(folder / shard["file"]) for shard in self.index["shards"]]
        self._ends = np.cumsum([table.num_rows for table in self._tables], dtype=np.int64)
        self._order = np.load(folder / "order.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, number: int) -> Example:
        table, row = self._place(number)
        return Example(table["input_ids"][row].as_py(), table["loss_mask"][row].as_py())

    def facts(self, number: int) -> dict[str, str]:
        """Source, domain, language, licence and id of an example's sample."""
        table, row = self._place(number)
        return {key: table[key][row].as_py() for key in FACTS}

    def _place(self, number: int) -> "tuple[pa.Table, int]":
        place = int(self._order[number])
        shard = int(np.searchsorted(self._ends, place, side="right"))
        return self._tables[shard], place - (int(self._ends[shard - 1]) if shard else 0)


def read_shard(path: Path) -> "pa.Table":
    """A shard's table, memory-mapped."""
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _conversations(
    name: str, use: SourceUse, data_root: Path | None, seed: int, report: LoadReport, chat: ChatFormat | None = None
) -> Iterator[Conversation | BadRow]:
    if is_generated(name):
        report.rows = use.samples
        return iter(generate(name, use.samples, use.split, seed))
    return stream(name, use.split, data_root, report, chat)


def _draw(
    items: Iterable[Conversation | BadRow],
    samples: int,
    filters: Sequence[Filter],
    caps: Mapping[str, int],
    seed: str,
    report: LoadReport,
) -> Drawn:
    """The first pass over a source: what passes the filters, and which of it is drawn how often."""
    keys, digests, positions, capped = array("d"), array("Q"), array("q"), array("h")
    places = {domain: place for place, domain in enumerate(caps)}
    rng = Random(seed)
    for position, item in enumerate(items):
        if isinstance(item, BadRow):
            report.bad[item.kind] += 1
            report.bad_rows.append(item)
        elif reason := next((reason for check in filters if (reason := check(item))), None):
            report.left_out[reason] += 1
        else:
            positions.append(position)
            keys.append(rng.random())
            digests.append(digest(item))
            capped.append(places.get(item.domain, -1))
    report.samples = len(keys)
    order = np.argsort(np.array(keys), kind="stable")
    whole, rest = divmod(samples, len(keys)) if keys and not is_generated(report.source) else (0, samples)
    times = np.full(len(keys), whole)
    times[order[:rest]] += 1
    return Drawn(np.array(positions), np.array(digests), times, np.array(capped)).taken()


def _jobs(
    name: str, use: SourceUse, drawn: Drawn, items: Iterable[Conversation | BadRow], seed: int, paths: Sequence[Path]
) -> Iterator[_Job]:
    """The second pass over a source: the drawn samples, by shard. Shards that are there already are passed over."""
    place = 0
    samples: list[tuple[Conversation, str]] = []
    for position, item in enumerate(items):
        if place == len(drawn.positions):
            break
        if position != drawn.positions[place]:
            continue
        path = paths[place // PART]
        if not path.exists():
            if isinstance(item, BadRow) or digest(item) != drawn.digests[place]:
                raise DataError(f"source {name} changed while it was read")
            samples += [(item, f"{seed}/{drawn.digests[place]}/{epoch}") for epoch in range(drawn.times[place])]
        place += 1
        if samples and (place % PART == 0 or place == len(drawn.positions)):
            yield _Job(path, samples)
            samples = []


def _paths(folder: Path, name: str, use: SourceUse, drawn: Drawn, identity: Any) -> list[Path]:
    """A shard's name tells all that decides its bytes."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.rpartition("/")[2].lower()).strip("-")
    paths = []
    for part, start in enumerate(range(0, len(drawn.positions), PART)):
        content = [drawn.digests[start : start + PART].tolist(), drawn.times[start : start + PART].tolist()]
        paths.append(folder / f"{slug}-{use.split}-{part:05d}-{fingerprint([identity, name, content])}.arrow")
    return paths


def _run(work: Callable[[_Job], None], jobs: Iterable[_Job], pool: ProcessPoolExecutor | None, workers: int) -> None:
    """Does the jobs, at most ``workers`` + 1 of them in memory."""
    waiting: deque[Future[None]] = deque()
    for job in jobs:
        if pool is None:
            work(job)
            continue
        waiting.append(pool.submit(work, job))
        if len(waiting) > workers:
            waiting.popleft().result()
    for future in waiting:
        future.result()


def _start_worker(chat: ChatFormat, tokenizer: Any) -> None:
    """Builds a worker process's encoder, once for all of its shards."""
    global _worker_encoder
    _worker_encoder = ExampleEncoder(chat, tokenizer)


def _write_in_worker(job: _Job, transforms: Sequence[Transform]) -> None:
    assert _worker_encoder
    _write_shard(job, _worker_encoder, transforms)


def _write_shard(job: _Job, encoder: ExampleEncoder, transforms: Sequence[Transform]) -> None:
    import pyarrow as pa

    samples: list[Conversation] = []
    reasons: list[str] = []
    fates: Counter[str] = Counter()
    for conversation, seed in job.samples:
        rng, current, changes = Random(seed), conversation, []
        for transform in transforms:
            changed, reason = transform(current, rng)
            if reason:
                changes.append(reason)
                fates[("changed " if changed else "dropped ") + reason] += 1
            if changed is None:
                break
            current = changed
        else:
            samples.append(current)
            reasons.append("; ".join(changes))
    encoded = encoder.encode(samples)
    pairs = [(c, reason, e) for c, reason, each in zip(samples, reasons, encoded, strict=True) for e in each]
    columns = {
        "input_ids": pa.array([e.input_ids for _, _, e in pairs], pa.list_(pa.int32())),
        "loss_mask": pa.array([e.loss_mask for _, _, e in pairs], pa.list_(pa.uint8())),
        **{key: pa.array([getattr(c, key) for c, _, _ in pairs], pa.string()) for key in FACTS},
        "changed": pa.array([reason for _, reason, _ in pairs], pa.string()),
    }
    table = pa.table(columns).replace_schema_metadata({"fates": json.dumps(dict(sorted(fates.items())))})
    with whole_file(job.path) as temporary, pa.ipc.new_stream(str(temporary), table.schema) as writer:
        writer.write_table(table, max_chunksize=1_000)


def _finish(folder: Path, shards: list[Path], report: MixtureReport, settings: dict[str, Any], seed: int) -> None:
    """Counts exactly what the shards hold, and writes order, index and card; removes shards of earlier mixtures."""
    listed = []
    for path in shards:
        table = read_shard(path)
        fates = json.loads(table.schema.metadata[b"fates"])
        for fate, count in fates.items():
            kind, _, reason = fate.partition(" ")
            (report.changed if kind == "changed" else report.dropped)[reason] += count
        tokens = _groups(table)
        listed.append({"file": path.name, "sha256": sha256_file(path), "examples": table.num_rows, "by": tokens})
    examples = sum(shard["examples"] for shard in listed)
    report.samples = sum(each.taken for each in report.sources) - sum(
        count for reason, count in report.dropped.items() if reason not in _before_drawing(report)
    )
    with whole_file(folder / "order.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.random.default_rng(seed).permutation(examples))
    index = {
        **settings,
        "seed": seed,
        "examples": examples,
        "tokens": sum(group["tokens"] for shard in listed for group in shard["by"]),
        "trained_tokens": sum(group["trained_tokens"] for shard in listed for group in shard["by"]),
        "shards": listed,
        "report": report.as_dict(),
    }
    write_json(folder / "index.json", index)
    with whole_file(folder / "README.md") as temporary:
        temporary.write_text(card(index), encoding="utf-8")
    for path in folder.glob("*.arrow"):
        if path not in shards:
            path.unlink()


def _before_drawing(report: MixtureReport) -> set[str]:
    """Reasons of drops that happened before samples were drawn."""
    bad = {f"bad row: {kind}" for each in report.sources for kind in each.bad}
    return bad | {reason for each in report.sources for reason in each.left_out}


def _groups(table: "pa.Table") -> list[dict[str, Any]]:
    """Examples and tokens of a shard by domain, language and licence."""
    import pyarrow.compute as pc

    keys = ["source", "domain", "language", "licence"]
    trained = [int(np.sum(mask.values.to_numpy())) for mask in table["loss_mask"]]
    counted = table.select(keys).append_column("tokens", pc.list_value_length(table["input_ids"]))
    counted = counted.append_column("trained_tokens", [trained])
    grouped = counted.group_by(keys, use_threads=False).aggregate(
        [("tokens", "sum"), ("trained_tokens", "sum"), ("tokens", "count")]
    )
    renamed = {"tokens_sum": "tokens", "trained_tokens_sum": "trained_tokens", "tokens_count": "examples"}
    return [{renamed.get(key, key): value for key, value in row.items()} for row in grouped.to_pylist()]
