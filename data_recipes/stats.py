"""Counts of a set of samples: tokens by domain, source, language and licence, lengths, modes, duplicates."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nanoalign.common.printable import printable
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.duplicates import ExactDuplicates
from nanoalign.data_recipes.quality import FLAGS, flags
from nanoalign.data_recipes.selection import MixtureReport
from nanoalign.data_recipes.tokenize import encode_batch

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

BATCH = 1000
MAX_HITS = 20
"""Contaminated samples that are listed; the others are counted."""
QUANTILES = (0, 0.1, 0.5, 0.9, 0.99, 1)
KEYS: dict[str, Callable[[Conversation], str]] = {
    "domain": lambda conversation: conversation.domain or "unknown",
    "source": lambda conversation: conversation.source or "unknown",
    "language": lambda conversation: conversation.language or "unknown",
    "licence": lambda conversation: conversation.licence or "unknown",
}


@dataclass
class Count:
    """Samples, examples and tokens of a group. Prompts without an answer have no examples."""

    samples: int = 0
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0


@dataclass
class Stats:
    """See :func:`stats`."""

    total: Count = field(default_factory=Count)
    by: dict[str, dict[str, Count]] = field(default_factory=dict)
    """By domain, source, language and licence."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each example, sorted."""
    with_reasoning: int = 0
    """Samples with reasoning in some answer."""
    with_tools: int = 0
    prompts_only: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    """Samples by quality flag, see data_recipes/quality.py."""
    duplicates: int = 0
    """Samples equal to an earlier one, apart from case and white space."""

    def quantiles(self) -> dict[str, int]:
        """Example lengths in tokens at QUANTILES; {} where there are no examples."""
        last = len(self.lengths) - 1
        return {f"{share:.0%}": self.lengths[round(share * last)] for share in QUANTILES} if self.lengths else {}

    def histogram(self) -> dict[int, int]:
        """How many examples have at most this many tokens, but more than half as many (powers of two)."""
        counts: dict[int, int] = defaultdict(int)
        for length in self.lengths:
            counts[1 << (max(1, length) - 1).bit_length()] += 1
        return dict(sorted(counts.items()))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; lengths as quantiles and histogram."""
        values = asdict(self)
        del values["lengths"]
        return values | {"length_quantiles": self.quantiles(), "length_histogram": self.histogram()}


def stats(conversations: Sequence[Conversation], chat: ChatFormat, tokenizer: Any) -> Stats:
    """Exact counts, by tokenizing everything as training does."""
    result = Stats(by={key: defaultdict(Count) for key in KEYS})
    is_duplicate = ExactDuplicates()
    for start in range(0, len(conversations), BATCH):
        batch = conversations[start : start + BATCH]
        answered = [c for c in batch if any(message.role == "assistant" for message in c.messages)]
        encoded = dict(zip(map(id, answered), encode_batch(answered, chat, tokenizer), strict=True))
        for conversation in batch:
            examples = encoded.get(id(conversation), [])
            lengths = [len(example.input_ids) for example in examples]
            trained = sum(sum(example.loss_mask) for example in examples)
            groups = [result.by[key][name(conversation)] for key, name in KEYS.items()]
            for count in (result.total, *groups):
                count.samples += 1
                count.examples += len(examples)
                count.tokens += sum(lengths)
                count.trained_tokens += trained
            result.lengths += lengths
            result.with_reasoning += any(message.reasoning for message in conversation.messages)
            result.with_tools += bool(conversation.tools)
            result.prompts_only += not examples
            result.flags.update(flags(conversation))
            result.duplicates += is_duplicate(conversation) is not None
    result.lengths.sort()
    result.by = {key: dict(sorted(groups.items())) for key, groups in result.by.items()}
    return result


def tables(figures: Stats, report: MixtureReport | None = None) -> "list[RenderableType]":
    """The figures as rich tables, for a terminal or for ``Console(record=True).export_html()``; with what building the
    mixture did, if ``report`` is given."""
    from rich.table import Table

    result: list[RenderableType] = []
    for key, groups in figures.by.items():
        table = Table(key, title=f"tokens by {key}", title_justify="left")
        for column in ("samples", "examples", "tokens", "trained", "share of trained"):
            table.add_column(column, justify="right")
        for name, count in [*groups.items(), ("all", figures.total)]:
            share = count.trained_tokens / figures.total.trained_tokens if figures.total.trained_tokens else 0.0
            if name == "all":
                table.add_section()
            cells = (count.samples, count.examples, count.tokens, count.trained_tokens)
            table.add_row(_cell(name), *(f"{cell:,}" for cell in cells), f"{share:.1%}")
        result.append(table)
    lengths = Table("tokens of an example", title="lengths", title_justify="left")
    lengths.add_column("examples", justify="right")
    lengths.add_column("")
    histogram = figures.histogram()
    for size, number in histogram.items():
        lengths.add_row(
            f"{size // 2 + 1:,}-{size:,}", f"{number:,}", "█" * round(40 * number / max(histogram.values()))
        )
    lengths.add_section()
    for quantile, length in figures.quantiles().items():
        lengths.add_row({"0%": "shortest", "50%": "median", "100%": "longest"}.get(quantile, quantile), f"{length:,}")
    kinds = {
        "with reasoning": figures.with_reasoning,
        "with tools": figures.with_tools,
        "prompts without an answer": figures.prompts_only,
        "exact duplicates": figures.duplicates,
        **{f"flag: {flag}": figures.flags[flag] for flag in FLAGS},
    }
    result += [lengths, _counts("samples", kinds)]
    return result + (_loading(report) if report else [])


def _loading(report: MixtureReport) -> "list[RenderableType]":
    from rich.table import Table

    sources = Table("source", title="rows", title_justify="left")
    for column in ("read", "bad", "usable samples", "drawn", "epochs"):
        sources.add_column(column, justify="right")
    for each in report.sources:
        counts = (each.rows, sum(each.bad.values()), each.samples, each.taken)
        sources.add_row(
            _cell(f"{each.source} ({each.split})"), *(f"{count:,}" for count in counts), f"{each.epochs:.2f}"
        )
    result: list[RenderableType] = [sources]
    counted = (("left out", report.dropped), ("not read, in rows", report.not_read), ("changed", report.changed))
    for title, reasons in counted:
        result += [_counts(title, dict(reasons.most_common()))] if reasons else []
    if report.contamination:
        found = Table("sample", "holds a prompt of", title="benchmarks' prompts found", title_justify="left")
        for hit in report.contamination[:MAX_HITS]:
            found.add_row(*map(_cell, hit))
        if len(report.contamination) > MAX_HITS:
            found.add_row(f"and {len(report.contamination) - MAX_HITS:,} more", "")
        result.append(found)
    return result


def _counts(title: str, counts: Mapping[str, int]) -> "RenderableType":
    from rich.table import Table

    table = Table(title, title=title, title_justify="left", show_header=False)
    table.add_column("count", justify="right")
    for label, value in counts.items():
        table.add_row(_cell(label), f"{value:,}")
    return table


def _cell(text: str) -> "Text":
    """A data row's own words, which are not markup."""
    from rich.text import Text

    return Text(printable(text))
