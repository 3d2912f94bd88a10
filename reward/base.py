"""What a reward is: samples in, one number a sample out; pure, batched, deterministic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from common.errors import NanoalignError
from data_recipes.conversation import Message


@dataclass(frozen=True)
class Sample:
    """A completion to be judged.

    ``answer`` is the parsed assistant message: ``answer.content`` is what the user sees, ``answer.reasoning`` what was
    thought. Verifiers look at ``answer.content`` alone; an answer hidden in the thinking earns nothing.
    """

    messages: tuple[Message, ...]
    """The prompt."""
    answer: Message
    task: Mapping[str, Any] = field(default_factory=dict)
    """The conversation's ``task``."""
    closed: bool = True
    """Thinking was closed exactly once (or there was none)."""
    finished: bool = True
    """The model ended its turn by itself (not cut at max_tokens)."""
    thinking_tokens: int = 0
    answer_tokens: int = 0
    thinking_budget: int | None = None


class Score(float):
    """A reward's number. ``reason`` says why a sample was not judged on its merits ("the verifier raised ValueError",
    "over the time limit"); "" where it was. Reasons are counted in metrics and report: keep them few and general."""

    reason: str

    def __new__(cls, value: float, reason: str = "") -> "Score":
        score = super().__new__(cls, value)
        score.reason = reason
        return score


class Reward(Protocol):
    """A named source of reward in [0, 1] unless its docstring says otherwise. What a model wrote is scored whatever it
    is: :meth:`score` raises for a task or a machine that is wrong, never for an answer."""

    name: str

    def score(self, samples: Sequence[Sample]) -> list[float]: ...


class RewardError(NanoalignError, RuntimeError):
    """A component gave no usable score: NaN, a wrong count, a judge out of reach, a sandbox without walls."""
