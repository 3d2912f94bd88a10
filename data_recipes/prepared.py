"""Prepared sets: a mixture's tokens with their masks in Arrow shards, built by streaming and resumable by shard.

A first pass over each source (:mod:`data_recipes.selection`) decides which samples are taken and where they go; a
second one transforms, renders and tokenizes those, in the source's order, in parts. A part's file is named by a hash of
everything that decides its bytes, so that a killed run resumes where it stopped and a changed mixture remakes only the
parts it changes. ``examples.arrow`` then lists all examples in training order: where each is and its metadata.
``index.json`` is written last; it records what the set was made from.

Files are mapped into memory by :class:`Prepared`, and by ``datasets.Dataset.from_file``.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanoalign.common.errors import DataError
from nanoalign.common.files import content_hash, exclusive_lock, sha256_file, source_hash
from nanoalign.data_recipes import shards
from nanoalign.data_recipes.catalog import CATALOG
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.config import Mixture, SourceUse
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.readers import BadRow
from nanoalign.data_recipes.rows import name_of
from nanoalign.data_recipes.selection import ProgressFn, Selected, no_progress, select
from nanoalign.data_recipes.shards import EXAMPLES, METADATA, Shard, parts, read_table, write_index, write_shard
from nanoalign.data_recipes.sources import LoadReport, files_of, read
from nanoalign.data_recipes.tokenize import Example, ExampleEncoder, offsets_tokenizer
from nanoalign.data_recipes.transforms import Teaching, Transform

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 2
"""Of the layout; the files' content depends on the code that is named in index.json."""
_worker: tuple[ExampleEncoder, Sequence[Transform]] | None = None


def prepare(
    mixture: Mixture,
    chat: ChatFormat,
    tokenizer: Any,
    folder: Path,
    data_root: Path | None = None,
    seed: int = 0,
    teaching: Teaching | None = None,
    workers: int = 1,
    progress: ProgressFn = no_progress,
) -> "Prepared":
    """The tokens of ``mixture``, in ``folder``: reused if they were made from the same inputs, else made now, reusing
    the parts that exist.

    The bytes do not depend on ``workers``, nor on how often the work was interrupted. ``teaching`` transforms each
    sample with a generator seeded by its place in the training order, as :func:`data_recipes.selection.build` does.

    Raises:
        ConfigError, DataError: as :func:`data_recipes.selection.select` does.
        ConfigError: another process prepares the set.
    """
    made_from = origin(mixture, chat, tokenizer, data_root, seed, teaching)
    if (found := find(folder, made_from)) is not None:
        return found
    tokenizer = offsets_tokenizer(tokenizer)
    encoder, transforms = ExampleEncoder(chat, tokenizer), teaching.make() if teaching else ()
    selected, report = select(mixture, data_root, seed, chat, progress)
    busy = "another process prepares this set"
    with exclusive_lock(folder, busy), _workers(chat, tokenizer, teaching, workers) as pool:
        work = partial(write_shard, encoder=encoder, transforms=transforms)
        paths: list[Path] = []
        done, total = 0, report.samples
        for name, use in mixture.uses.items():
            taken = selected[name]
            files = _files(folder, name, use, taken, made_from, teaching)
            paths += files
            progress("tokenizing", done, total)
            if not all(path.exists() for path in files):
                items = read(name, use.samples, use.split, data_root, seed, LoadReport(name, use.split),
                             look_in=mixture.look_in)  # fmt: skip
                jobs = _jobs(name, taken, items, seed, files)
                for written in _run(work, jobs, pool, workers):
                    progress("tokenizing", done + written, total)
            done += len(taken.places)
        write_index(folder, paths, selected, report, made_from)
    progress("tokenizing", total, total)
    return Prepared(folder)


def origin(
    mixture: Mixture,
    chat: ChatFormat,
    tokenizer: Any,
    data_root: Path | None,
    seed: int,
    teaching: Teaching | None,
) -> dict[str, Any]:
    """Everything that determines a set's content, as plain data. Files on this machine count by name, size and time."""
    wanted = [(name, use.split) for name, use in mixture.uses.items()]
    wanted += [(name, "test") for name in mixture.decontaminate]
    files = [file for name, split in wanted for file in files_of(name, split, data_root, mixture.look_in)]
    return {
        "version": VERSION,
        "code": {room: source_hash(room) for room in ("common", "data_recipes")},
        "catalog": sha256_file(CATALOG)[:16],
        "chat": chat.name,
        "template": content_hash(getattr(getattr(chat, "tokenizer", None), "chat_template", None)),
        "tokenizer": content_hash(offsets_tokenizer(tokenizer).to_str()),
        "teaching": dict(teaching.settings) if teaching else None,
        "seed": seed,
        "mixture": mixture.model_dump_json(exclude={"look_in"}),  # as text, for the order of sources counts
        "files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()],
    }


def find(folder: Path, made_from: Mapping[str, Any]) -> "Prepared | None":
    """The complete set in ``folder``, if there is one and it was made from that."""
    try:
        found = Prepared(folder)
    except DataError:
        return None
    return found if found.index["made_from"] == made_from else None


class _Mapped(NamedTuple):
    """A shard, mapped into memory: its table, and views of the tokens of all its examples."""

    table: "pa.Table"
    offsets: NDArray[np.int64]
    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]


class Prepared:
    """A prepared set, mapped into memory: its examples by number, in training order."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where ``folder`` holds no complete prepared set of this version."""
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
        self._shards: dict[int, _Mapped] = {}

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, number: int) -> Example:
        ids, mask = self.tokens(number)
        return Example(ids.tolist(), mask.astype(int).tolist())

    def column(self, name: str) -> NDArray[Any]:
        """Of all examples: ``length`` and ``trained`` (tokens), ``sample`` (the number of their sample, in training
        order), ``said`` (64 bits that identify that sample's content), ``domain`` (a number in
        ``index["domains"]``)."""
        return shards.flat_values(self._examples, name)

    def tokens(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Token ids, and whether each is trained: views of the mapped file."""
        shard, row = self._place(number)
        tokens = slice(shard.offsets[row], shard.offsets[row + 1])
        return shard.ids[tokens], shard.trained[tokens]

    def metadata(self, number: int) -> dict[str, str]:
        """Source, domain, language, licence and id of an example's sample, and the row that it was read from."""
        shard, row = self._place(number)
        return {key: shard.table[key][row].as_py() for key in METADATA}

    def _place(self, number: int) -> tuple[_Mapped, int]:
        shard = int(self._shard[number])
        if shard not in self._shards:
            table = read_table(self.folder / self.index["shards"][shard]["file"])
            trained = shards.flat_values(table, "loss_mask").view(np.bool_)
            self._shards[shard] = _Mapped(table, shards.offsets(table), shards.flat_values(table, "input_ids"), trained)
        return self._shards[shard], int(self._row[number])


def _files(
    folder: Path,
    name: str,
    use: SourceUse,
    taken: Selected,
    made_from: Mapping[str, Any],
    teaching: Teaching | None,
) -> list[Path]:
    """A shard's name covers all that decides its bytes: of the samples' places only what the transforms' seeds need."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.rpartition("/")[2].lower()).strip("-")
    settings = {key: made_from[key] for key in ("version", "code", "chat", "template", "tokenizer", "teaching")}
    paths = []
    for number, part in enumerate(parts(taken)):
        content: list[Any] = [settings, name, taken.digests[part.rows].tolist(), taken.copies[part.rows].tolist()]
        if teaching:
            content += [made_from["seed"], taken.places[part.places].tolist()]
        paths.append(folder / f"{slug}-{use.split}-{number:05d}-{content_hash(content)}.arrow")
    return paths


def _jobs(
    name: str,
    taken: Selected,
    items: Iterable[Conversation | BadRow],
    seed: int,
    paths: Sequence[Path],
) -> Iterator[Shard]:
    """The second pass over a source: the samples taken, by shard. Existing shards are skipped."""
    numbered = enumerate(items)
    for path, part in zip(paths, parts(taken), strict=True):
        samples: list[tuple[Conversation, str]] = []
        wanted = not path.exists()
        places = iter(taken.places[part.places].tolist())
        for row in range(part.rows.start, part.rows.stop):
            item = next((each for position, each in numbered if position == taken.positions[row]), None)
            if item is None or isinstance(item, BadRow) or (wanted and name_of(item)[0] != taken.digests[row]):
                raise DataError(f"source {name} changed while it was read")
            seeds = [f"{seed}/{place}" for place in islice(places, int(taken.copies[row]))]
            samples += [(item, each) for each in seeds] if wanted else []
        if wanted:
            yield Shard(path, samples)


@contextmanager
def _workers(
    chat: ChatFormat, tokenizer: Any, teaching: Teaching | None, count: int
) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that write shards; None where this process does."""
    if count == 1:
        yield None
        return
    with ProcessPoolExecutor(count, get_context("spawn"), _start_worker, (chat, tokenizer, teaching)) as pool:
        yield pool


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
    """Runs the jobs, at most ``workers`` + 1 of them in memory, and yields how many samples are done."""
    done = 0
    waiting: deque[tuple[Future[None], int]] = deque()
    for job in jobs:
        if pool is None:
            work(job)
            done += len(job.samples)
            yield done
            continue
        waiting.append((pool.submit(_write_in_worker, job), len(job.samples)))
        if len(waiting) > workers:
            done += _result(waiting.popleft())
            yield done
    for each in waiting:
        done += _result(each)
        yield done


def _result(job: tuple[Future[None], int]) -> int:
    job[0].result()
    return job[1]
