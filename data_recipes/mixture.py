"""Samples in memory: those of a mixture in training order, or of one source."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nanoalign.data_recipes.catalog import Split
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.selection import MixtureReport, select, take
from nanoalign.data_recipes.sources import LoadReport
from nanoalign.data_recipes.transforms import Transform, apply


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
