"""What a reward is: samples in, one number per sample out; pure, batched, deterministic."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nanoalign.common.errors import NanoalignError
from nanoalign.data_recipes.chat.answers import SPECIAL_TOKEN, THINKING_TAGS
from nanoalign.data_recipes.conversation import Answer, Message


@dataclass(frozen=True)
class Sample:
    """A completion to be judged.

    ``answer.content`` is what the user sees, ``answer.reasoning`` what was thought. Verifiers look at
    ``answer.content`` alone; an answer hidden in the thinking earns nothing.
    """

    messages: tuple[Message, ...]
    """The prompt: a user's data."""
    answer: Answer
    """What the model wrote, whatever that is."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """The conversation's ``task``."""
    finished: bool = True
    """The model ended its turn by itself (not cut at max_tokens)."""
    thinking_tokens: int = 0
    answer_tokens: int = 0
    thinking_budget: int | None = None
    completion_ids: tuple[int, ...] = ()
    """The completion's tokens, with its stop token; () where none were sampled."""
    environment: float | None = None
    """What the environment gave the episode that this ends; None where it is no episode."""

    @property
    def closed(self) -> bool:
        """Thinking was closed exactly once (or there was none)."""
        return THINKING_TAGS not in self.answer.faults

    @property
    def malformed(self) -> bool:
        """Rewards do not read it: it gets the floor of each."""
        return SPECIAL_TOKEN in self.answer.faults


class Score(float):
    """A reward's number. ``reason`` says why a sample was not judged on its merits ("the verifier raised ValueError",
    "over the time limit"); "" where it was. Reasons are counted in metrics and report: keep them few and general."""

    reason: str

    def __new__(cls, value: float, reason: str = "") -> "Score":
        score = super().__new__(cls, value)
        score.reason = reason
        return score


@dataclass(frozen=True)
class Progress:
    """How far training is, for rewards that follow a schedule. The names are those of transformers' TrainerState."""

    global_step: int = 0
    """Optimizer steps taken."""
    max_steps: int = 0
    """Of the whole stage; 0 where nothing is trained."""


FLOOR = 0.0
"""What every component gives a malformed sample; no component gives less to any answer."""


@dataclass
class Tally:
    """Completions, and for each reason how many of them were faulty or not judged on their merits."""

    of: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, answers: Iterable[Answer], scores: Iterable[float] = ()) -> None:
        """Counts completions by their faults, and scores by their reasons."""
        for answer in answers:
            self.of += 1
            self.reasons.update(answer.faults)
        self.reasons.update(score.reason for score in scores if isinstance(score, Score) and score.reason)

    def join(self, other: "Tally") -> None:
        """Adds another one's counts."""
        self.of += other.of
        self.reasons.update(other.reasons)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the commonest reason first."""
        return {"of": self.of, "reasons": dict(self.reasons.most_common())}

    @classmethod
    def from_dicts(cls, values: Iterable[Mapping[str, Any]]) -> "Tally":
        """The sum of what :meth:`as_dict` gave."""
        tally = cls()
        for value in values:
            tally.join(cls(value["of"], Counter(value["reasons"])))
        return tally


class Reward(Protocol):
    """A named source of reward in [0, 1] unless its docstring says otherwise. Any model output is scored: :meth:`score`
    raises for a faulty task or machine, never for an answer."""

    name: str

    def score(self, samples: Sequence[Sample]) -> list[float]: ...


class RewardError(NanoalignError, RuntimeError):
    """A component gave no usable score: NaN, a wrong count, an unreachable judge, an unavailable sandbox."""
