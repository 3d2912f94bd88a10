"""Recipe sections of the data side. Importing this never imports torch, transformers or datasets."""

from typing import Annotated, Literal

from pydantic import Field

from nanoalign.common.config import RUNTIME_ONLY, Section
from nanoalign.data_recipes.quality import Flag


class SourceUse(Section):
    """How much a mixture takes of a source."""

    samples: int = Field(ge=1)
    """Samples drawn without replacement; more than the source holds means further epochs over it (see the plan)."""
    split: Literal["train", "test"] = "train"
    """The two splits of a source never share a sample."""


class Mixture(Section):
    """A named mixture of sources."""

    sources: dict[str, Annotated[int, Field(ge=1)] | SourceUse] = Field(min_length=1)
    """Source name (see `nanoalign data sources`) to a number of samples, or to a SourceUse."""
    look_in: Annotated[list[str], RUNTIME_ONLY] = Field(default=[])
    """Folders that relative `file:` paths are looked for in before the working folder and the data root: by itself, the
    one of the recipe file that names the source."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """stop: end before training, naming every bad row; skip: leave them out and count them by reason."""
    allow_licences: list[str] | None = None
    """Keep only rows under these SPDX identifiers; None keeps all."""
    languages: list[str] | None = None
    """Keep only these language codes; None keeps all."""
    max_characters: int | None = Field(default=None, ge=1)
    """Leave out samples with more characters than this, including reasoning."""
    deduplicate: Literal["exact", "near"] | None = None
    """Leave out samples seen before: exact: apart from case and white space; near: sharing most word triples."""
    quality: dict[Flag, Literal["count", "drop"]] = Field(default={})
    """Quality flags to look for, each either only counted and shown, or used to leave out flagged samples. What each
    flag looks at is documented in data_recipes/quality.py."""
    domain_caps: dict[str, Annotated[int, Field(ge=1)]] = Field(default={})
    """Domain to its maximum number of samples over all sources. The excess is left out: repetitions first, then a
    random choice."""
    decontaminate: list[str] = Field(default=[])
    """Benchmarks: leave out samples that hold 13 words in a row of a prompt in these sources' test splits."""

    @property
    def uses(self) -> dict[str, SourceUse]:
        """How much is taken of each source."""
        return {name: SourceUse(samples=use) if isinstance(use, int) else use for name, use in self.sources.items()}


class TruncateReasoning(Section):
    """Cut a share of the reasoning traces and keep the final answer (the paper's stage 3)."""

    share: float = Field(0.05, ge=0, le=1)
    """Share of all samples whose trace is cut."""
    tokens: tuple[int, int] = Field((1000, 2000), strict=False)
    """The cut falls at a uniform random number of tokens in this range; shorter traces are left uncut and counted."""
    at: Literal["token", "sentence", "fraction", "rule"] = "token"
    """token: abruptly; sentence: at the last sentence or line end before; fraction: at a random fraction of it;
    rule: where the budget rule would close a budget of that many tokens, at the next line end or after `grace` more."""
    grace: int = Field(500, ge=0)
    """at: rule: tokens past the drawn budget in which a line end is awaited."""
