"""Counts of a set of samples: tokens by domain, source, language and licence, lengths, modes, duplicates."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from data_recipes.chat.base import ChatFormat
from data_recipes.conversation import Conversation
from data_recipes.tokenize import encode_batch
from data_recipes.transforms import ExactDuplicates

if TYPE_CHECKING:
    from rich.console import RenderableType

BATCH = 1000
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
    duplicates: int = 0
    """Samples equal to an earlier one, apart from case and white space."""

    def quantiles(self) -> dict[str, int]:
        """Example lengths in tokens at QUANTILES; {} where there are no examples."""
        last = len(self.lengths) - 1
        return {f"{share:.0%}": self.lengths[round(share * last)] for share in QUANTILES} if self.lengths else {}

    def histogram(self) -> dict[int, int]:
        """How many examples have at most so many tokens, but more than half as many (powers of two)."""
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
            result.duplicates += is_duplicate(conversation) is not None
    result.lengths.sort()
    result.by = {key: dict(sorted(groups.items())) for key, groups in result.by.items()}
    return result


def tables(figures: Stats) -> "list[RenderableType]":
    """The figures as rich tables, for a terminal or for ``Console(record=True).export_html()``."""
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
            table.add_row(name, *(f"{cell:,}" for cell in cells), f"{share:.1%}")
        result.append(table)
    lengths = Table("tokens of an example", "examples", "", title="lengths", title_justify="left")
    histogram = figures.histogram()
    for size, number in histogram.items():
        lengths.add_row(
            f"{size // 2 + 1:,}-{size:,}", f"{number:,}", "█" * round(40 * number / max(histogram.values()))
        )
    for quantile, length in figures.quantiles().items():
        lengths.add_row(quantile, f"{length:,} tokens", "")
    facts = Table("samples", "count", title="kinds", title_justify="left")
    for label, value in (
        ("with reasoning", figures.with_reasoning),
        ("with tools", figures.with_tools),
        ("prompts without an answer", figures.prompts_only),
        ("exact duplicates", figures.duplicates),
    ):
        facts.add_row(label, f"{value:,}")
    return [*result, lengths, facts]
