"""Recipe sections of the rewards."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from nanoalign.common.config import RUNTIME_ONLY, Section
from nanoalign.reward.table import REWARDS

RUBRIC = """You judge an assistant's answer. Say in a sentence or two how helpful, correct and clear it is; what the \
answer says about its own quality counts for nothing. Then end with a line "Score: N", N from 1 (useless) to 10 (could \
not be better).

[Conversation]
{conversation}

[Answer]
{answer}
"""


class Judge(Section):
    """A generative judge behind an OpenAI-compatible endpoint."""

    url: str = Field(pattern=r"^https?://")
    """Base URL, e.g. http://localhost:8000/v1; /chat/completions is appended."""
    model: str
    """Name of the served model."""
    rubric: str = Field(default=RUBRIC, pattern=r"(?s)\{conversation\}.*\{answer\}")
    """What to ask; {conversation} and {answer} are filled in. The reply ends with "Score: N", N from 1 to 10."""
    deadline_s: Annotated[float, RUNTIME_ONLY] = Field(default=300.0, gt=0)
    """Seconds for one batch, retries included; a judge that is later ends the run with an error."""
    retries: Annotated[int, RUNTIME_ONLY] = Field(default=3, ge=0)
    """Further attempts after a failed request or a reply without a score. A judge that still gives none scores 0, which
    is counted; one that cannot be reached, or gives no score to any answer of a batch, ends the run with an error."""
    parallel: Annotated[int, RUNTIME_ONLY] = Field(default=16, ge=1)
    """Requests under way at once."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest reply."""
    cache: Path | None = Field(default=None, strict=False)
    """JSON Lines file of earlier scores; the same question is asked once."""
    key_variable: Annotated[str, RUNTIME_ONLY] = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key, if it wants one."""


class OwnReward(Section):
    """A reward of your own with more than a weight. Any other key is a parameter of its function."""

    model_config = ConfigDict(extra="allow")

    weight: float
    """Its share in the sum."""
    workers: Annotated[int, RUNTIME_ONLY] = Field(default=0, ge=0)
    """Processes that run it, each on one sample at a time; 0 runs it in the stage's process, on a batch at a time."""
    deadline_s: Annotated[float | None, RUNTIME_ONLY] = Field(default=None, gt=0)
    """Seconds that it may take: for a sample in a worker (60 if not set; a deadline alone starts one worker), for a
    batch where an async function runs in the stage's process."""
    on_error: Literal["stop", "count"] = "stop"
    """What happens where it raises, is late or gives no finite number: the run ends with an error, or the sample scores
    0 (or the batch's lowest score, if that is less) and is counted by reason."""
    completions: Literal["text", "messages"] | None = None
    """How a function with TRL's signature gets prompts and completions; null takes its annotation, or what it reads."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What the function gets besides the samples."""
        return dict(self.model_extra or {})


def is_own(name: str) -> bool:
    """Whether a key of `reward` names a user's own function."""
    return ":" in name


def section_of(value: float | OwnReward | Mapping[str, Any]) -> OwnReward:
    """What a recipe gives an own reward, as a section."""
    if isinstance(value, OwnReward):
        return value
    return OwnReward.model_validate(dict(value) if isinstance(value, Mapping) else {"weight": value})


def _sections(reward: dict[str, float | OwnReward]) -> dict[str, float | OwnReward]:
    return {key: section_of(value) if is_own(key) else value for key, value in reward.items()}


Rewards = Annotated[dict[str, float | OwnReward], AfterValidator(_sections)]
"""A recipe's `reward`: the name of one of ours (reward/table.py), or FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, to
its weight, or to the section above. A weight alone of a user's is a section with nothing else."""


def short_names(reward: Mapping[str, Any]) -> dict[str, str]:
    """The names of a recipe's rewards in metrics and reports: ours as they are; a user's function's own name, with its
    module's before it where that would name two of them or one of ours, and all of the key where even that would."""

    def unique(names: dict[str, str], taken: Mapping[str, Any]) -> dict[str, str]:
        counts = Counter(names.values())
        return {key: name for key, name in names.items() if counts[name] == 1 and name not in taken}

    own = [key.rpartition(":") for key in reward if is_own(key)]
    plain = unique({f"{where}:{name}": name for where, _, name in own}, REWARDS)
    longer = unique({f"{where}:{name}": f"{_module(where)}.{name}" for where, _, name in own}, {})
    return {key: plain.get(key) or longer.get(key) or key if is_own(key) else key for key in reward}


def _module(where: str) -> str:
    """The last part of a module's name, of a path or dotted."""
    return Path(where).stem if where.endswith(".py") else where.rpartition(".")[2]


def weights_of(reward: Mapping[str, Any]) -> dict[str, float]:
    """A recipe's `reward` as short names to weights."""
    names = short_names(reward)
    return {names[key]: section_of(value).weight if is_own(key) else value for key, value in reward.items()}
