"""Prepared sets: a mixture's tokens with their masks in Arrow shards, made in a streaming way and resumed at the shard.

A first pass over each source (:mod:`data_recipes.draw`) decides which samples are taken and where they stand; a second
one transforms, renders and tokenizes those, in the source's order, in parts. A part's file is named by a digest of all
that decides its bytes, so that a killed run goes on where it stopped and a changed mixture makes anew only the parts it
changes. ``examples.arrow`` then lists all examples in training order, that of :func:`data_recipes.mixture.build`:
where each lies and what is known of it. ``index.json`` is written last; it tells what the set was made from.

Files are mapped into memory by :class:`Prepared`, and by ``datasets.Dataset.from_file``.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from common.errors import ConfigError, DataError
from common.files import fingerprint, room_version, sha256_file, whole_file, write_json
from data_recipes import shards
from data_recipes.caps import as_text, digest
from data_recipes.card import card
from data_recipes.catalog import CATALOG
from data_recipes.chat.base import ChatFormat
from data_recipes.config import Mixture, SourceUse
from data_recipes.conversation import Conversation
from data_recipes.draw import Draw, Tell, conversations, draw
from data_recipes.files import BadRow
from data_recipes.mixture import MixtureReport, uses
from data_recipes.shards import FACTS, Shard, read_table, write_shard, write_table
from data_recipes.sources import LoadReport, files_of
from data_recipes.tokenize import Example, ExampleEncoder, offsets_tokenizer
from data_recipes.transforms import Teaching, Transform

if TYPE_CHECKING:
    import pyarrow as pa

PART = 5_000
"""Most rows of a part."""
ROW = 20_000
"""Bytes that a row counts at least: a part has no more than PART x ROW bytes of text either, but for one row."""
VERSION = 2
"""Of the layout; what is in the files hangs on the code that is named in index.json."""
EXAMPLES = "examples.arrow"
_worker: tuple[ExampleEncoder, Sequence[Transform]] | None = None


def quiet(doing: str, done: int, total: int | None) -> None:
    """Tells nobody."""


def prepare(
    mixture: Mixture,
    chat: ChatFormat,
    tokenizer: Any,
    folder: Path,
    data_root: Path | None = None,
    seed: int = 0,
    teaching: Teaching | None = None,
    workers: int = 1,
    tell: Tell = quiet,
) -> "Prepared":
    """The tokens of ``mixture``, in ``folder``: as they are if they were made from the same, else made now, with those
    parts that are there already.

    The bytes do not depend on ``workers``, nor on how often the work was interrupted. ``teaching`` transforms each
    sample with a generator seeded by its place in the training order, as :func:`data_recipes.mixture.build` does.

    Raises:
        ConfigError, DataError: as :func:`data_recipes.mixture.build` does.
        ConfigError: another process prepares the set.
    """
    made_from = origin(mixture, chat, tokenizer, data_root, seed, teaching)
    if (found := find(folder, made_from)) is not None:
        return found
    draws, report = draw(mixture, data_root, seed, chat, tell)
    with _lock(folder), _encoding(chat, tokenizer, teaching, workers) as (work, pool):
        paths: list[Path] = []
        done, total = 0, report.samples
        for name, use in uses(mixture).items():
            drawn, cuts = draws[name], _cuts(draws[name])
            files = _files(folder, name, use, drawn, cuts, made_from, teaching)
            paths += files
            tell("tokenizing", done, total)
            if not all(path.exists() for path in files):
                items = conversations(name, use, data_root, seed, LoadReport(name, use.split))
                jobs = _jobs(name, drawn, cuts, items, seed, files)
                for written in _run(work, jobs, pool, workers):
                    tell("tokenizing", done + written, total)
            done += len(drawn.places)
        _finish(folder, paths, draws, report, made_from)
    tell("tokenizing", total, total)
    return Prepared(folder)


def origin(
    mixture: Mixture,
    chat: ChatFormat,
    tokenizer: Any,
    data_root: Path | None,
    seed: int,
    teaching: Teaching | None,
) -> dict[str, Any]:
    """All that decides what a set holds, as plain data. Files count by name, size and time."""
    wanted = [(name, use.split) for name, use in uses(mixture).items()]
    wanted += [(name, "test") for name in mixture.decontaminate]
    files = [file for name, split in wanted for file in files_of(name, split, data_root)]
    return {
        "version": VERSION,
        "code": {room: room_version(room) for room in ("common", "data_recipes")},
        "catalog": sha256_file(CATALOG)[:16],
        "chat": chat.name,
        "template": fingerprint(getattr(getattr(chat, "tokenizer", None), "chat_template", None)),
        "tokenizer": fingerprint(offsets_tokenizer(tokenizer).to_str()),
        "teaching": dict(teaching.settings) if teaching else None,
        "seed": seed,
        "mixture": mixture.model_dump(mode="json"),
        "files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
    }


def find(folder: Path, made_from: Mapping[str, Any]) -> "Prepared | None":
    """The whole set in ``folder``, if there is one and it was made from that."""
    try:
        found = Prepared(folder)
    except DataError:
        return None
    return found if found.index["made_from"] == made_from else None


class Prepared:
    """A prepared set, mapped into memory: its examples by number, in training order."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where ``folder`` holds no whole prepared set of this version."""
        if not (folder / "index.json").is_file():
            raise DataError(f"{folder}: no prepared set (index.json is missing)")
        self.index: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if self.index.get("made_from", {}).get("version") != VERSION:
            raise DataError(f"{folder}: the prepared set was made by another version")
        files = [EXAMPLES, *(shard["file"] for shard in self.index["shards"])]
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise DataError(f"{folder}: the prepared set lacks {', '.join(missing[:5])}")
        self.folder = folder
        self._examples = read_table(folder / EXAMPLES)
        self._shard, self._row = self.column("shard"), self.column("row")
        self._shards: dict[int, pa.Table] = {}

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, number: int) -> Example:
        ids, mask = self.tokens(number)
        return Example(ids.tolist(), mask.astype(int).tolist())

    def column(self, name: str) -> NDArray[Any]:
        """Of all examples: ``length`` and ``trained`` (tokens), ``sample`` (the number of its sample in training order),
        ``said`` (64 bits that name what that sample says), ``domain`` (a number in ``index["domains"]``)."""
        return shards.flat(self._examples, name)

    def tokens(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Token ids, and whether each is trained: views of the mapped file."""
        table, row = self._place(number)
        start, stop = shards.offsets(table)[row : row + 2]
        return shards.flat(table, "input_ids")[start:stop], shards.flat(table, "loss_mask")[start:stop].view(np.bool_)

    def facts(self, number: int) -> dict[str, str]:
        """Source, domain, language, licence and id of an example's sample, and the row that it was read from."""
        table, row = self._place(number)
        return {key: table[key][row].as_py() for key in FACTS}

    def _place(self, number: int) -> "tuple[pa.Table, int]":
        shard = int(self._shard[number])
        if shard not in self._shards:
            self._shards[shard] = read_table(self.folder / self.index["shards"][shard]["file"])
        return self._shards[shard], int(self._row[number])


def _cuts(drawn: Draw) -> NDArray[np.int64]:
    """Where a source's parts begin, in its rows; and where the last ends."""
    sizes = np.maximum(drawn.sizes, ROW) * drawn.copies.astype(np.int64)
    part = (np.cumsum(sizes) - sizes) // (PART * ROW)
    return np.concatenate([np.flatnonzero(np.diff(part, prepend=-1)), [len(part)]])


def _files(
    folder: Path,
    name: str,
    use: SourceUse,
    drawn: Draw,
    cuts: NDArray[np.int64],
    made_from: Mapping[str, Any],
    teaching: Teaching | None,
) -> list[Path]:
    """A shard's name tells all that decides its bytes: of the samples' places only what the transforms' seeds need."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.rpartition("/")[2].lower()).strip("-")
    settings = {key: made_from[key] for key in ("version", "code", "chat", "template", "tokenizer", "teaching")}
    first = np.concatenate([[0], np.cumsum(drawn.copies)])
    paths = []
    for part, (start, stop) in enumerate(zip(cuts[:-1], cuts[1:])):
        content: list[Any] = [settings, name, drawn.digests[start:stop].tolist(), drawn.copies[start:stop].tolist()]
        if teaching:
            content += [made_from["seed"], drawn.places[first[start] : first[stop]].tolist()]
        paths.append(folder / f"{slug}-{use.split}-{part:05d}-{fingerprint(content)}.arrow")
    return paths


def _jobs(
    name: str,
    drawn: Draw,
    cuts: NDArray[np.int64],
    items: Iterable[Conversation | BadRow],
    seed: int,
    paths: Sequence[Path],
) -> Iterator[Shard]:
    """The second pass over a source: the samples taken, by shard. Shards that are there already are passed over."""
    part = row = copy = 0
    samples: list[tuple[Conversation, str]] = []
    for position, item in enumerate(items):
        if row == len(drawn.positions):
            break
        if position != drawn.positions[row]:
            continue
        copies = int(drawn.copies[row])
        if not paths[part].exists():
            if isinstance(item, BadRow) or digest(as_text(item)) != drawn.digests[row]:
                raise DataError(f"source {name} changed while it was read")
            samples += [(item, f"{seed}/{place}") for place in drawn.places[copy : copy + copies].tolist()]
        row, copy = row + 1, copy + copies
        if row == cuts[part + 1]:
            if samples:
                yield Shard(paths[part], samples)
            part, samples = part + 1, []


@contextmanager
def _encoding(
    chat: ChatFormat, tokenizer: Any, teaching: Teaching | None, workers: int
) -> "Iterator[tuple[Callable[[Shard], None], ProcessPoolExecutor | None]]":
    """What writes a shard, and the processes that do it (None: this one)."""
    tokenizer = offsets_tokenizer(tokenizer)
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (chat, tokenizer, teaching)) as pool:
            yield _write_in_worker, pool
    else:
        encoder, transforms = ExampleEncoder(chat, tokenizer), teaching.make() if teaching else ()
        yield partial(write_shard, encoder=encoder, transforms=transforms), None


def _start_worker(chat: ChatFormat, tokenizer: Any, teaching: Teaching | None) -> None:
    """Builds what a worker process needs, once for all of its shards."""
    global _worker
    _worker = ExampleEncoder(chat, tokenizer), teaching.make() if teaching else ()


def _write_in_worker(shard: Shard) -> None:
    assert _worker
    write_shard(shard, *_worker)


def _run(
    work: Callable[[Shard], None], jobs: Iterable[Shard], pool: ProcessPoolExecutor | None, workers: int
) -> Iterator[int]:
    """Does the jobs, at most ``workers`` + 1 of them in memory, and yields how many samples are done."""
    done = 0
    waiting: deque[tuple[Future[None], int]] = deque()
    for job in jobs:
        if pool is None:
            work(job)
            done += len(job.samples)
            yield done
            continue
        waiting.append((pool.submit(work, job), len(job.samples)))
        if len(waiting) > workers:
            done += _result(waiting.popleft())
            yield done
    for each in waiting:
        done += _result(each)
        yield done


def _result(job: tuple[Future[None], int]) -> int:
    job[0].result()
    return job[1]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", blocking=False):
            yield
    except Timeout:
        raise ConfigError(f"{folder}: another process prepares this set (it holds {folder / '.lock'})") from None


def _finish(
    folder: Path, paths: Sequence[Path], draws: Mapping[str, Draw], report: MixtureReport, made_from: Mapping[str, Any]
) -> None:
    """Counts exactly what the shards hold, and writes the list of examples, the card and the index; removes the shards
    of earlier mixtures."""
    (folder / "index.json").unlink(missing_ok=True)
    listed: list[dict[str, Any]] = []
    columns: dict[str, list[NDArray[Any]]] = {}
    domains: dict[str, int] = {}
    places = (drawn.places[first:stop] for drawn in draws.values() for first, stop in _copies(drawn))
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


def _copies(drawn: Draw) -> Iterator[tuple[int, int]]:
    """The copies in each part of a source: the first, and the one after the last."""
    first = np.concatenate([[0], np.cumsum(drawn.copies)])[_cuts(drawn)]
    yield from zip(first[:-1].tolist(), first[1:].tolist())


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
