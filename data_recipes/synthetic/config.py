"""What makes a synthetic set, as `nanoalign data generate` reads it from YAML. Importing this never imports torch."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from nanoalign.common.config import Section


class Served(Section):
    """A model behind an OpenAI-compatible endpoint, and what may be spent on it."""

    url: str = Field(pattern=r"^https?://")
    """Base URL, e.g. http://localhost:8000/v1; /chat/completions is appended."""
    model: str
    """Name of the served model."""
    most_requests: int = Field(ge=1)
    """The set is built from at most this many replies; cached ones count as if they were requested now."""
    most_tokens: int = Field(ge=1)
    """The set is built from at most this many tokens, prompts and replies together. A question is only asked if there
    is room for its longest reply."""
    max_tokens: int = Field(default=4096, ge=1)
    """Longest reply; one that is cut there is never kept."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the sampling."""
    extra: dict[str, Any] = Field(default={})
    """Further keys of every request, e.g. {chat_template_kwargs: {enable_thinking: true}}."""
    parallel: int = Field(default=16, ge=1)
    """Requests under way at once."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds that one request may take."""
    retries: int = Field(default=6, ge=0)
    """Further attempts after a dropped connection, a timeout, status 429 or 5xx, or a reply that is not JSON."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key, if it wants one."""


class Generator(Section):
    """What all generators share."""

    samples: int = Field(ge=1)
    """Tasks, prompts or documents to start from; how many samples come of them is counted."""
    seed: int = 0
    """Decides all that is drawn here; sent to the endpoint too, with the number of the try."""
    served: Served
    """Who answers."""


class Rejection(Generator):
    """Rejection sampling: several answers to a task, of which those that a verifier accepts are kept."""

    kind: Literal["rejection"]
    source: str
    """Tasks that a verifier knows (math, exact, code, tools, instruction, reasoning_gym), by name."""
    split: Literal["train", "test"] = "train"
    """Split of the source."""
    instructions: int = Field(default=0, ge=0)
    """Add up to this many of IFEval's instructions to each prompt, and let their verifier judge; 0 adds none."""
    tries: int = Field(default=4, ge=1)
    """Answers to each task."""
    keep: int = Field(default=1, ge=1)
    """Accepted answers kept of each task, the first ones."""


class Trajectories(Generator):
    """Tool trajectories: the model works in a simulated workplace; those that end as the reference does are kept."""

    kind: Literal["trajectories"]
    environment: str
    """Name of an environment (rollouts/environments)."""
    tries: int = Field(default=4, ge=1)
    """Attempts at each task; the first success is kept."""
    turns: int = Field(default=12, ge=1)
    """Most messages of the model in an attempt."""


class LongContext(Generator):
    """Questions across documents: several are put one after another, and the model asks about two of them at once."""

    kind: Literal["long_context"]
    sources: list[str] = Field(min_length=1)
    """Where the documents come from; layout `document` (file:PATH#document) reads rows with `text`."""
    documents: int = Field(default=16, ge=2)
    """Documents in a context."""
    characters: int = Field(default=400_000, ge=1)
    """Longest context; documents that would not fit are left out of it."""
    tries: int = Field(default=2, ge=1)
    """Answers to each question; the first that agrees with the answer known is kept."""


class Translation(Generator):
    """Samples in another language: prose is translated, code, formulas, tools and calls stay."""

    kind: Literal["translation"]
    source: str
    """Samples to translate."""
    split: Literal["train", "test"] = "train"
    """Split of the source."""
    language: Literal["de", "es", "fr", "it", "ja"]
    """The paper's five languages."""
    tries: int = Field(default=2, ge=1)
    """Translations of each text until one keeps all that must stay and is in the language."""


AnyGenerator = Annotated[Rejection | Trajectories | LongContext | Translation, Field(discriminator="kind")]


class Generate(Section):
    """The file of `nanoalign data generate`."""

    generate: AnyGenerator
    """What to make."""
    out: Path = Field(strict=False)
    """Rows of the normal form (.jsonl), for recipes as file:PATH. Beside it: what became of every task
    (.report.json), and every reply paid for (.replies.jsonl)."""
