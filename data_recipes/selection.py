"""Which samples a mixture takes, and where each stands in training: known from one pass over its sources, which keeps
some bytes of a sample and no text, unless the samples themselves are wanted in memory.

Everything that trains, evaluates or shows samples selects them here: prepared sets read the rows that were taken once
more (:mod:`data_recipes.prepared`), :mod:`data_recipes.selection` has them held.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.caps import beyond, capped_reason
from nanoalign.data_recipes.catalog import Split
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.filters import Filter, make_filters
from nanoalign.data_recipes.generators import is_generated
from nanoalign.data_recipes.readers import BadRow
from nanoalign.data_recipes.rows import name_of
from nanoalign.data_recipes.sources import LoadReport, faults, read
from nanoalign.data_recipes.transforms import Transform, apply

ProgressFn = Callable[[str, int, int | None], None]
"""Called with the progress of long work: what it does, how much is done, and of how much (None: unknown)."""
PROGRESS_EVERY = 1_000
"""Samples."""


def no_progress(doing: str, done: int, total: int | None) -> None:
    """No progress reports."""


@dataclass
class MixtureReport:
    """What became of every row of a mixture."""

    sources: list[LoadReport]
    samples: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """By reason; rows that sources left out and bad rows that were skipped are among them."""
    changed: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)
    """Samples by quality flag, of all that passed the filters before it, whether the mixture drops them or not."""
    contamination: list[tuple[str, str]] = field(default_factory=list)
    """Sample and benchmark, for each sample left out since it holds a benchmark's prompt."""

    @property
    def not_read(self) -> Counter[str]:
        """What rows contain that is not part of a sample: in how many rows."""
        return sum((each.parts for each in self.sources), Counter[str]())

    def as_dict(self) -> dict[str, Any]:
        """For JSON: counts by source and by reason."""
        return {
            "samples": self.samples,
            "dropped": dict(self.dropped),
            "changed": dict(self.changed),
            "flagged": dict(self.flagged),
            **({"not_read": dict(self.not_read)} if self.not_read else {}),
            "contamination": [list(hit) for hit in self.contamination],
            "sources": {
                f"{each.source}:{each.split}": {
                    "rows": each.rows,
                    "samples": each.samples,
                    "taken": each.taken,
                    "epochs": round(each.epochs, 4),
                    "left_out": dict(each.left_out),
                    "bad": dict(each.bad),
                }
                for each in self.sources
            },
        }


@dataclass(frozen=True)
class Selected:
    """What is taken of a source: R rows and C copies of them (a row seen in several epochs), in the source's order."""

    positions: NDArray[np.int64]
    """(R,) where the rows stand in :func:`data_recipes.sources.read`."""
    digests: NDArray[np.uint64]
    """(R,) their content hashes."""
    sizes: NDArray[np.uint32]
    """(R,) bytes of each, as JSON."""
    copies: NDArray[np.int32]
    """(R,) copies of each."""
    places: NDArray[np.int32]
    """(C,) the position of each copy in the mixture's training order."""
    held: Sequence[Conversation]
    """(R,) the rows themselves where they are held, else none."""


def select(
    mixture: Mixture,
    data_root: Path | None,
    seed: int,
    chat: ChatFormat | None,
    progress: ProgressFn = no_progress,
    hold: bool = False,
) -> tuple[dict[str, Selected], MixtureReport]:
    """What is taken of each source, and what became of every row; the same for the same arguments.

    Filters work on a source's samples before they are drawn. A row that contains a special token of ``chat`` is a bad
    row.

    Raises:
        ConfigError, DataError: as :func:`take` does.
    """
    held_out = (
        take(name, None, "test", data_root, 0, "skip", look_in=mixture.look_in).conversations
        for name in mixture.decontaminate
    )
    filters, contamination, quality = make_filters(mixture, (each for some in held_out for each in some))
    found = [
        take(name, use.samples, use.split, data_root, seed, mixture.on_bad_row, chat, filters, [*mixture.domain_caps],
             progress, hold, mixture.look_in)
        for name, use in mixture.uses.items()
    ]  # fmt: skip
    report = MixtureReport([each.report for each in found])
    for account in report.sources:
        report.dropped.update(account.left_out)
        report.dropped.update({f"bad row: {kind}": count for kind, count in account.bad.items()})
    report.contamination = contamination.hits if contamination else []
    report.flagged = quality.counted if quality else Counter()
    del filters  # what tells duplicates takes more memory than what follows

    capped = np.concatenate([np.asarray(each.rows.capped)[each.order] for each in found])
    digests = np.concatenate([np.asarray(each.rows.digests)[each.order] for each in found])
    over = beyond(capped, digests, mixture.domain_caps, seed)
    reasons = [capped_reason(domain) for domain in mixture.domain_caps]
    report.dropped.update({reasons[n]: int(c) for n, c in zip(*np.unique(capped[over], return_counts=True))})
    del capped, digests
    report.samples = int(len(over) - over.sum())
    shuffled = array("i", range(report.samples))
    Random(f"{seed}/mixture").shuffle(shuffled)
    places = np.empty(report.samples, np.int32)
    places[np.asarray(shuffled)] = np.arange(report.samples, dtype=np.int32)

    selected = {}
    for each in found:
        here, over = ~over[: len(each.order)], over[len(each.order) :]
        places_here, places = places[: here.sum()], places[here.sum() :]
        selected[each.report.source] = _selected(each.rows, each.order[here], places_here)
    return selected, report


@dataclass(frozen=True)
class _Rows:
    """What is kept of a source's N samples that pass the filters."""

    positions: array = field(default_factory=lambda: array("q"))
    keys: array = field(default_factory=lambda: array("d"))
    """Random keys; the rows with the smallest are drawn."""
    digests: array = field(default_factory=lambda: array("Q"))
    sizes: array = field(default_factory=lambda: array("I"))
    capped: array = field(default_factory=lambda: array("h"))
    """The number of the domain among those with a cap; -1 without."""
    held: dict[int, Conversation] = field(default_factory=dict)
    """Those that may yet be drawn, by number, where samples are held."""


@dataclass(frozen=True)
class Taken:
    """What one source gives."""

    report: LoadReport
    rows: _Rows
    order: NDArray[np.int32]
    """(C,) the numbers of the rows that are drawn, in the order drawn; further epochs follow the first."""

    @property
    def conversations(self) -> list[Conversation]:
        """(C,) the samples, where they are held."""
        return [self.rows.held[row] for row in self.order.tolist()]


def take(
    name: str,
    samples: int | None,
    split: Split,
    data_root: Path | None,
    seed: int,
    on_bad_row: Literal["stop", "skip"],
    chat: ChatFormat | None = None,
    filters: Sequence[Filter] = (),
    domains: Sequence[str] = (),
    progress: ProgressFn = no_progress,
    hold: bool = True,
    look_in: Sequence[str] = (),
) -> Taken:
    """``samples`` of a source (None: all of a finite one), in an order that ``seed`` decides.

    What a filter gives a reason for is left out before the sampling, which is without replacement; more samples than
    there are begin further epochs, each in an order of its own. ``domains`` are those with a cap. With ``hold`` at
    most ``samples`` conversations are in memory, else one.

    Raises:
        ConfigError: an unknown source, or a generated one without a number of samples.
        DataError: missing files, no samples, or, with ``stop``, bad rows: one error that names them.
    """
    report = LoadReport(name, split)
    items = read(name, samples, split, data_root, seed, report, chat, look_in)
    most = (samples if samples is not None else np.inf) if hold else 0
    rows = _pass(items, filters, domains, Random(f"{seed}/{name}/{split}"), report, progress, most)
    if report.bad and on_bad_row == "stop":
        raise DataError(faults(name, report))
    if not report.samples and not is_generated(name):
        raise DataError(f"source {name} has no samples in its {split} split ({report.rows} rows read)")
    order = _order(rows, name, samples, split, seed)
    report.taken = len(order)
    report.epochs = 1.0 if is_generated(name) else report.taken / report.samples
    return Taken(report, rows, order)


def _pass(
    items: Iterable[Conversation | BadRow],
    filters: Sequence[Filter],
    domains: Sequence[str],
    rng: Random,
    report: LoadReport,
    progress: ProgressFn,
    most: float,
) -> _Rows:
    """The one pass over a source. ``most`` samples are held: those with the least keys so far."""
    rows = _Rows()
    numbers = {domain: number for number, domain in enumerate(domains)}
    greatest: list[tuple[float, int]] = []
    for position, item in enumerate(items):
        if position % PROGRESS_EVERY == 0:
            progress(f"reading {report.source}", position, None)
        if isinstance(item, BadRow):
            report.count_bad(item)
            continue
        if reason := next((reason for check in filters if (reason := check(item))), None):
            report.left_out[reason] += 1
            continue
        name, size = name_of(item)
        key, number = rng.random(), len(rows.keys)
        rows.positions.append(position)
        rows.keys.append(key)
        rows.digests.append(name)
        rows.sizes.append(size)
        rows.capped.append(numbers.get(item.domain, -1))
        if most and (len(greatest) < most or key < -greatest[0][0]):
            rows.held[number] = item
            heappush(greatest, (-key, -number))
            if len(greatest) > most:
                del rows.held[-heappop(greatest)[1]]
    report.samples = len(rows.keys)
    return rows


def _order(rows: _Rows, name: str, samples: int | None, split: Split, seed: int) -> NDArray[np.int32]:
    """The numbers of the rows that are drawn, in the order drawn: by their keys, then epoch by epoch."""
    if is_generated(name):
        return np.arange(len(rows.keys), dtype=np.int32)
    first = np.argsort(np.asarray(rows.keys), kind="stable")[:samples].astype(np.int32)
    epochs, missing = [first], (samples or 0) - len(first)
    rng = Random(f"{seed}/{name}/{split}/again")
    while missing > 0:
        epoch = first[:missing]
        epochs.append(epoch[rng.sample(range(len(epoch)), len(epoch))])
        missing -= len(epoch)
    return np.concatenate(epochs)


def _selected(rows: _Rows, taken: NDArray[np.int32], places: NDArray[np.int32]) -> Selected:
    """What is taken of a source, from the rows of its copies and their places, in the order drawn."""
    held, copies = np.unique(taken, return_counts=True)
    return Selected(
        np.asarray(rows.positions)[held],
        np.asarray(rows.digests)[held],
        np.asarray(rows.sizes)[held],
        copies.astype(np.int32),
        places[np.argsort(taken, kind="stable")],
        [rows.held[row] for row in held.tolist()] if rows.held else [],
    )


@dataclass(frozen=True)
class Built:
    """The samples of a mixture, in training order, and what became of every row."""

    conversations: list[Conversation]
    report: MixtureReport


@dataclass(frozen=True)
class Loaded:
    """The samples of a source and what became of every row."""

    conversations: list[Conversation]
    report: LoadReport


def build(
    mixture: Mixture,
    data_root: Path | None = None,
    seed: int = 0,
    transforms: Sequence[Transform] = (),
    chat: ChatFormat | None = None,
) -> Built:
    """The samples of ``mixture``, shuffled, those that :func:`data_recipes.selection.select` takes, after
    ``transforms``; the same for the same arguments. Raises as ``select`` does."""
    selected, report = select(mixture, data_root, seed, chat, hold=True)
    places = np.concatenate([each.places for each in selected.values()])
    copies = [row for each in selected.values() for row, n in zip(each.held, each.copies.tolist()) for _ in range(n)]
    in_order = (copies[copy] for copy in np.argsort(places).tolist())
    kept, report.changed, dropped = apply(in_order, transforms, seed)
    report.samples = len(kept)
    report.dropped.update(dropped)
    return Built(kept, report)


def load(
    name: str,
    samples: int | None = None,
    split: Split = "train",
    data_root: Path | None = None,
    seed: int = 0,
    on_bad_row: Literal["stop", "skip"] = "stop",
    chat: ChatFormat | None = None,
) -> Loaded:
    """``samples`` of a source (None: all of a finite one), as :func:`data_recipes.selection.take` draws them, which
    tells the errors."""
    taken = take(name, samples, split, data_root, seed, on_bad_row, chat)
    return Loaded(taken.conversations, taken.report)
