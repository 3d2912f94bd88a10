"""A mixture: samples of several sources, filtered, sampled and shuffled, with the fate of every row counted."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from nanoalign.common.config import Section
from nanoalign.data_recipes.caps import over_the_caps
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.config import Mixture, SourceUse
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.duplicates import ExactDuplicates, NearDuplicates
from nanoalign.data_recipes.quality import QualityFlags
from nanoalign.data_recipes.sources import LoadReport, load
from nanoalign.data_recipes.transforms import (
    Contamination,
    Filter,
    Transform,
    apply,
    at_most,
    languages,
    licences,
)


@dataclass
class MixtureReport:
    """What building a mixture did."""

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
        """What rows hold that no part of a sample was made of: in how many rows."""
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
class Built:
    """The samples of a mixture, in training order, and what became of every row."""

    conversations: list[Conversation]
    report: MixtureReport


def uses(mixture: Mixture) -> dict[str, SourceUse]:
    """How much a mixture takes of each source."""
    return {name: use if isinstance(use, Section) else SourceUse(samples=use) for name, use in mixture.sources.items()}


def build(
    mixture: Mixture,
    data_root: Path | None = None,
    seed: int = 0,
    transforms: Sequence[Transform] = (),
    chat: ChatFormat | None = None,
) -> Built:
    """The samples of ``mixture``, shuffled; the same for the same arguments.

    Filters work on a source's samples before they are drawn, ``transforms`` on those drawn. A row that says a special
    token of ``chat`` is a bad row. Raises ConfigError and DataError as :func:`data_recipes.sources.load` does.
    """
    filters, contamination, quality = make_filters(mixture, data_root)
    loaded = [
        load(name, use.samples, use.split, data_root, seed, mixture.on_bad_row, filters, chat)
        for name, use in uses(mixture).items()
    ]
    drawn = [conversation for each in loaded for conversation in each.conversations]
    over = over_the_caps(drawn, mixture.domain_caps, seed)
    drawn = [conversation for place, conversation in enumerate(drawn) if place not in over]
    Random(f"{seed}/mixture").shuffle(drawn)
    kept, changed, dropped = apply(drawn, transforms, seed)
    dropped.update(over.values())
    report = MixtureReport([each.report for each in loaded], len(kept), dropped, changed)
    for each in loaded:
        report.dropped.update(each.report.left_out)
        report.dropped.update({f"bad row: {kind}": count for kind, count in each.report.bad.items()})
    report.contamination = contamination.hits if contamination else []
    report.flagged = quality.counted if quality else Counter()
    return Built(kept, report)


def make_filters(
    mixture: Mixture, data_root: Path | None
) -> tuple[list[Filter], Contamination | None, QualityFlags | None]:
    """The filters that a mixture names, in their order, the one that looks for benchmarks' prompts, and the one that
    counts quality flags."""
    filters: list[Filter] = []
    optional: list[tuple[Any, Callable[[Any], Filter]]] = [
        (mixture.allow_licences, licences),
        (mixture.languages, languages),
        (mixture.max_characters, at_most),
    ]
    filters += [make(value) for value, make in optional if value is not None]
    quality = QualityFlags(mixture.quality) if mixture.quality else None
    filters += [quality] if quality else []
    contamination = None
    if mixture.decontaminate:
        held_out = partial(load, split="test", data_root=data_root, on_bad_row="skip")
        contamination = Contamination(each for name in mixture.decontaminate for each in held_out(name).conversations)
        filters.append(contamination)
    if mixture.deduplicate:
        filters.append(ExactDuplicates() if mixture.deduplicate == "exact" else NearDuplicates())
    return filters, contamination, quality
