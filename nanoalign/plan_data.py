"""How many samples and tokens a mixture holds, without torch: rows from the catalog, lengths from a few samples."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoalign.common.errors import DataError, NanoalignError
from nanoalign.data_recipes.config import Mixture, SourceUse

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from nanoalign.data_recipes.conversation import Conversation

SAMPLED = 32
"""Samples of a source whose lengths are measured."""
SLOW = ("reasoning-gym:", "miniature:logic")
"""Sources whose generator takes seconds to import; the mixture's mean is used for them."""
CHARACTERS_PER_TOKEN = 4.0
"""Where the base model's tokenizer is not on this machine."""


@dataclass(frozen=True)
class SourcePlan:
    """What a mixture takes from one source."""

    name: str
    samples: int
    rows: int | None
    """Rows of the split; None where unknown or unlimited."""
    where: str
    licence: str

    @property
    def epochs(self) -> float | None:
        """Passes over the source; above 1 samples are seen again."""
        return self.samples / self.rows if self.rows else None


@dataclass(frozen=True)
class MixturePlan:
    """A mixture's size."""

    name: str
    sources: list[SourcePlan]
    samples: int
    tokens: int
    """Tokens of all samples, estimated."""
    examples: int
    """Training examples of all samples, estimated: a conversation gives one or more."""
    lengths: list[int]
    """Tokens of the training examples that were measured, ascending; a conversation gives one or more."""
    tokenizer: bool
    """Lengths were counted by the base model's tokenizer; otherwise estimated from characters."""

    @property
    def mean(self) -> float:
        """Tokens of a sample, all its examples together, on average."""
        return self.tokens / self.samples

    @property
    def mean_example(self) -> float:
        """Tokens of an example on average; never above :attr:`longest` where all sources were measured."""
        return self.tokens / self.examples

    @property
    def longest(self) -> int:
        """Tokens of the longest example that was measured."""
        return self.lengths[-1] if self.lengths else 0


def plan_mixture(
    name: str, mixture: Mixture, chat: str, tokenizer: "Tokenizer | None", data_root: Path | None
) -> MixturePlan:
    """The size of a mixture. Raises DataError where a source's files are missing, or where one of the first rows would
    stop the run."""
    from nanoalign.data_recipes.sources import describe_source

    sources: list[SourcePlan] = []
    lengths: dict[str, list[list[int]]] = {}
    for source, use in mixture.uses.items():
        about = describe_source(source, data_root, use.split, mixture.look_in)
        sources.append(SourcePlan(source, use.samples, about["rows"], about["where"], about["licence"]))
        if not source.startswith(SLOW) and about["found"]:
            found = first_samples(source, use, data_root, chat, mixture)
            lengths[source] = measure(found, chat, tokenizer)
    samples = sum(source.samples for source in sources)
    measured = [examples for found in lengths.values() for examples in found]
    means = {source: statistics.fmean(map(sum, found)) for source, found in lengths.items() if found}
    parts = {source: statistics.fmean(map(len, found)) for source, found in lengths.items() if found}
    return MixturePlan(
        name=name,
        sources=sources,
        samples=samples,
        examples=round(_total(sources, parts)) or samples,
        tokens=round(_total(sources, means)),
        lengths=sorted(length for examples in measured for length in examples),
        tokenizer=tokenizer is not None,
    )


def _total(sources: list[SourcePlan], each: Mapping[str, float]) -> float:
    """The sum over all samples of what one of them has on average, by source; the mean of the others where a source was
    not measured."""
    typical = statistics.fmean(each.values()) if each else 0.0
    return sum(source.samples * each.get(source.name, typical) for source in sources)


def first_samples(
    source: str, use: SourceUse, data_root: Path | None, chat: str, mixture: Mixture
) -> "list[Conversation]":
    """A few conversations of a source, without bad rows. Raises DataError for those that training stops at."""
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.data_recipes.readers import BadRow
    from nanoalign.data_recipes.sources import LoadReport, faults, read

    report = LoadReport(source, use.split)
    form = None if is_elsewhere(chat) else chat_format(chat)
    found = []
    for row in islice(read(source, SAMPLED, use.split, data_root, 0, report, form, mixture.look_in), 4 * SAMPLED):
        if isinstance(row, BadRow):
            report.count_bad(row)
        else:
            found.append(row)
    if report.bad and mixture.on_bad_row == "stop" and use.split == "train":
        raise DataError(faults(source, report))
    return found[:SAMPLED]


def measure(conversations: "Iterable[Conversation]", chat: str, tokenizer: "Tokenizer | None") -> list[list[int]]:
    """Tokens of the training examples that each conversation gives."""
    from nanoalign.data_recipes.chat import chat_format

    if is_elsewhere(chat):
        texts = [["\n".join(message.content for message in each.messages)] for each in conversations]
    else:
        form = chat_format(chat)
        texts = [
            ["".join(span.text for span in spans) for spans in form.examples(each)]
            if each.messages[-1].role == "assistant"
            else [form.prompt(each.messages, each.tools)]  # a prompt for rollouts, nothing to train on
            for each in conversations
        ]
    if tokenizer is None:
        return [[round(len(text) / CHARACTERS_PER_TOKEN) for text in each] for each in texts]
    return [[len(tokenizer.encode(text, add_special_tokens=False).ids) for text in each] for each in texts]


def is_elsewhere(chat: str) -> bool:
    """The chat format is the template of a tokenizer that is not on this machine yet."""
    if not chat.startswith("hf:"):
        return False
    from nanoalign.data_recipes.chat.template import local_files

    return local_files(chat.removeprefix("hf:")) is None


def find_tokenizer(model: Mapping[str, Any] | None) -> "Tokenizer | None":
    """The base model's tokenizer, read without transformers; None where it is not on this machine."""
    file = Path(model["folder"]) / "tokenizer.json" if model and model["folder"] else None
    if file is None or not file.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def find_model(spec: str) -> tuple[dict[str, Any] | None, str]:
    """The base model's size (see ``models.loading.describe_model``) or None, and why it is not known."""
    from nanoalign.models.loading import describe_model

    if spec == "none":
        return None, "made by a pretrain stage"
    try:
        return describe_model(spec), ""
    except NanoalignError as error:
        return None, str(error)
