"""From a generator's settings to its file of rows: complete or absent, the same for the same replies."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoalign.common.files import atomic_file, write_json
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.readers import parse_json
from nanoalign.data_recipes.rows import RowError, from_row, to_row
from nanoalign.data_recipes.synthetic.config import Generate
from nanoalign.data_recipes.synthetic.driver import AT_ONCE, Maker, drive
from nanoalign.data_recipes.synthetic.served import ServedModel


@dataclass(frozen=True)
class Counts:
    """How far a generator is."""

    started_from: int
    samples: int
    requests: int
    tokens: int


def make(
    config: Generate, makers: Iterable[Maker], progress: Callable[[Counts], None] = lambda _: None
) -> dict[str, Any]:
    """Runs ``makers`` against the served model, writes their samples to ``config.out`` and returns the report, which is
    written beside it: ``started_from``, ``samples``, ``not_kept`` by reason, ``requests``, ``tokens``, ``asked_now``,
    ``by_licence`` and the settings.

    A killed run resumes from its replies. Raises EndpointError, ConfigError, DataError as :class:`ServedModel` does.
    """
    served, out = config.generate.served, config.out
    started_from = samples = 0
    reasons: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    with ServedModel(served, replies_of(out)) as model, atomic_file(out) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            for made in drive(makers, model, served.parallel * AT_ONCE):
                started_from += 1
                reasons.update(made.reasons)
                for sample in made.samples:
                    try:
                        line = _line(sample)
                    except RowError as error:
                        reasons[error.kind] += 1
                        continue
                    samples += 1
                    licences[sample.licence or "unknown"] += 1
                    file.write(line)
                progress(Counts(started_from, samples, model.requests, model.tokens))
        counts = {"requests": model.requests, "tokens": model.tokens, "asked_now": model.asked_now}
    report = {
        "started_from": started_from,
        "samples": samples,
        "not_kept": dict(reasons.most_common()),
        **counts,
        "by_licence": dict(licences),
        "settings": config.generate.model_dump(mode="json"),
    }
    write_json(out.with_suffix(".report.json"), report)
    return report


def replies_of(out: Path) -> Path:
    """Where the replies behind a file of samples are kept."""
    return out.with_suffix(".replies.jsonl")


def _line(sample: Conversation) -> str:
    """The sample's row. Raises RowError where :mod:`data_recipes.sources` would refuse it: whatever a maker took from
    a model, a file that was written can be read."""
    try:
        line = json.dumps(to_row(sample), ensure_ascii=False)
        row = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise RowError("bad JSON", str(error)) from None
    from_row(row)
    return line + "\n"
