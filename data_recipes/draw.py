"""Which samples a mixture takes, and where each stands in training: known from one pass over its sources, which keeps
some bytes of a sample and no text.

The choice is that of :func:`data_recipes.mixture.build`, sample for sample and in its order.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.caps import as_text, beyond, capped_reason, digest
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.config import Mixture, SourceUse
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.files import BadRow
from nanoalign.data_recipes.generators import generate, is_generated
from nanoalign.data_recipes.mixture import MixtureReport, make_filters, uses
from nanoalign.data_recipes.sources import LoadReport, faults, stream
from nanoalign.data_recipes.transforms import Filter

Tell = Callable[[str, int, int | None], None]
"""Told how far a long piece of work is: what it does, how much is done, and of how much (None: unknown)."""
TOLD_EVERY = 1_000
"""Samples."""
PART = 5_000
"""Most rows of a part."""
ROW = 20_000
"""Bytes that a row counts at least: a part has no more than PART x ROW bytes of text either, but for one row's."""


@dataclass(frozen=True)
class Draw:
    """What is taken of a source: R rows and C copies of them (a row seen in several epochs), in the source's order."""

    positions: NDArray[np.int64]
    """(R,) where the rows stand in :func:`conversations`."""
    digests: NDArray[np.uint64]
    """(R,) what they are named by."""
    sizes: NDArray[np.uint32]
    """(R,) bytes of each, as JSON."""
    copies: NDArray[np.int32]
    """(R,) copies of each."""
    places: NDArray[np.int32]
    """(C,) where each copy stands in the mixture's training order."""


@dataclass(frozen=True)
class Part:
    """Rows of a source that go into one shard."""

    rows: slice
    places: slice


def parts(drawn: Draw) -> list[Part]:
    """All parts of what is taken of a source, each of about the same size at most."""
    sizes = np.maximum(drawn.sizes, ROW) * drawn.copies.astype(np.int64)
    number = (np.cumsum(sizes) - sizes) // (PART * ROW)
    rows = np.append(np.flatnonzero(np.diff(number, prepend=-1)), len(number))
    places = np.append(0, np.cumsum(drawn.copies))[rows]
    return [Part(slice(*r), slice(*p)) for r, p in zip(pairwise(rows.tolist()), pairwise(places.tolist()))]


def conversations(
    name: str, use: SourceUse, data_root: Path | None, seed: int, report: LoadReport, chat: ChatFormat | None = None
) -> Iterator[Conversation | BadRow]:
    """A source's samples in its own order, one at a time where it is not generated."""
    if is_generated(name):
        report.rows = use.samples
        return iter(generate(name, use.samples, use.split, seed))
    return stream(name, use.split, data_root, report, chat)


def draw(
    mixture: Mixture, data_root: Path | None, seed: int, chat: ChatFormat, tell: Tell
) -> tuple[dict[str, Draw], MixtureReport]:
    """What is taken of each source, and what became of every row.

    Raises ConfigError and DataError as :func:`data_recipes.mixture.build` does.
    """
    filters, contamination, quality = make_filters(mixture, data_root)
    report = MixtureReport([])
    found: list[_Rows] = []
    drawn: list[NDArray[np.int32]] = []
    for name, use in uses(mixture).items():
        account = LoadReport(name, use.split)
        items = conversations(name, use, data_root, seed, account, chat)
        rows = _read(items, filters, [*mixture.domain_caps], Random(f"{seed}/{name}/{use.split}"), account, tell)
        if account.bad and mixture.on_bad_row == "stop":
            raise DataError(faults(name, account))
        if not account.samples and not is_generated(name):
            raise DataError(f"source {name} has no samples in its {use.split} split ({account.rows} rows read)")
        order = _in_order(rows, name, use, seed)
        account.taken = len(order)
        account.epochs = 1.0 if is_generated(name) else account.taken / account.samples
        report.sources.append(account)
        report.dropped.update(account.left_out)
        report.dropped.update({f"bad row: {kind}": count for kind, count in account.bad.items()})
        found.append(rows)
        drawn.append(order)
    report.contamination = contamination.hits if contamination else []
    report.flagged = quality.counted if quality else Counter()
    del filters

    capped = np.concatenate([np.asarray(rows.capped)[order] for rows, order in zip(found, drawn)])
    digests = np.concatenate([np.asarray(rows.digests)[order] for rows, order in zip(found, drawn)])
    over = beyond(capped, digests, mixture.domain_caps, seed)
    reasons = [capped_reason(domain) for domain in mixture.domain_caps]
    report.dropped.update({reasons[n]: int(c) for n, c in zip(*np.unique(capped[over], return_counts=True))})
    del capped, digests
    report.samples = int(len(over) - over.sum())
    shuffled = array("i", range(report.samples))
    Random(f"{seed}/mixture").shuffle(shuffled)
    places = np.empty(report.samples, np.int32)
    places[np.asarray(shuffled)] = np.arange(report.samples, dtype=np.int32)

    draws = {}
    for name, rows, order in zip(uses(mixture), found, drawn):
        here, over = ~over[: len(order)], over[len(order) :]
        taken, places_here, places = order[here], places[: here.sum()], places[here.sum() :]
        draws[name] = _taken(rows, taken, places_here)
    return draws, report


@dataclass(frozen=True)
class _Rows:
    """What is kept of a source's N samples that pass the filters."""

    positions: array
    keys: array
    """Random numbers; those with the least are drawn."""
    digests: array
    sizes: array
    capped: array
    """The number of the domain among those with a cap; -1 without."""


def _read(
    items: Iterable[Conversation | BadRow],
    filters: Sequence[Filter],
    domains: Sequence[str],
    rng: Random,
    report: LoadReport,
    tell: Tell,
) -> _Rows:
    rows = _Rows(array("q"), array("d"), array("Q"), array("I"), array("h"))
    numbers = {domain: number for number, domain in enumerate(domains)}
    for position, item in enumerate(items):
        if position % TOLD_EVERY == 0:
            tell(f"reading {report.source}", position, None)
        if isinstance(item, BadRow):
            report.count_bad(item)
        elif reason := next((reason for check in filters if (reason := check(item))), None):
            report.left_out[reason] += 1
        else:
            text = as_text(item)
            rows.positions.append(position)
            rows.keys.append(rng.random())
            rows.digests.append(digest(text))
            rows.sizes.append(len(text))
            rows.capped.append(numbers.get(item.domain, -1))
    report.samples = len(rows.keys)
    return rows


def _in_order(rows: _Rows, name: str, use: SourceUse, seed: int) -> NDArray[np.int32]:
    """The rows that are drawn, in the order drawn, as :func:`data_recipes.sources.load` draws them."""
    if is_generated(name):
        return np.arange(len(rows.keys), dtype=np.int32)
    first = np.argsort(np.asarray(rows.keys), kind="stable")[: use.samples].astype(np.int32)
    epochs = [first]
    rng = Random(f"{seed}/{name}/{use.split}/again")
    while (missing := use.samples - sum(map(len, epochs))) > 0:
        epoch = first[:missing]
        epochs.append(epoch[rng.sample(range(len(epoch)), len(epoch))])
    return np.concatenate(epochs)


def _taken(rows: _Rows, taken: NDArray[np.int32], places: NDArray[np.int32]) -> Draw:
    """What is taken of a source, from the rows of its copies and their places, in the order drawn."""
    held, copies = np.unique(taken, return_counts=True)
    return Draw(
        np.asarray(rows.positions)[held],
        np.asarray(rows.digests)[held],
        np.asarray(rows.sizes)[held],
        copies.astype(np.int32),
        places[np.argsort(taken, kind="stable")],
    )
