"""Recipe sections of evaluation."""

from typing import Literal

from pydantic import Field, model_validator

from nanoalign.common.config import Section
from nanoalign.reward.config import Rewards
from nanoalign.rollouts.config import EnvironmentOrName, Rollouts


class Suite(Section):
    """A named set of held-out tasks and how they are scored. Exactly one of data and environment."""

    data: str | None = None
    """Mixture (its sources with split: test)."""
    environment: EnvironmentOrName | None = None
    """Environment whose test tasks are run: a name, or your own (`my_env.py:Shop`)."""
    samples: int | None = Field(default=None, ge=1)
    """Tasks taken; None takes all."""
    reward: Rewards = Field(default={"task": 1.0}, min_length=1)
    """Name of a reward (reward/table.py), or FILE.py:FUNCTION or MODULE:FUNCTION of your own, to its weight; a sample
    counts as correct from 0.5 on where all are verifiers, otherwise scores are averaged."""
    reward_model: str | None = None
    """The reward_model stage behind `preference`."""
    max_turns: int = Field(default=6, ge=1)
    """Assistant turns in an episode of an environment."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Suite":
        if (self.data is None) == (self.environment is None):
            raise ValueError("give exactly one of `data` and `environment`")
        return self


class EvaluateStage(Section):
    """Figures of one or more checkpoints."""

    kind: Literal["evaluate"]
    of: list[str] = Field(min_length=1)
    """Stages (or `base`) whose models are measured."""
    suites: list[str] = Field(min_length=1)
    """Names under `suites:`."""
    budgets: list[int | None] = Field(default=[None])
    """Thinking budgets in tokens for the budget curve; null is unlimited. /no_think is always measured as well."""
    budget_suite: str | None = None
    """The suite on which the budget curve is measured; None measures none."""
    budget_of: list[str] | None = None
    """The checkpoints whose budget curve is measured; None means all."""
    rollouts: Rollouts

    @model_validator(mode="after")
    def _room_for_an_answer(self) -> "EvaluateStage":
        if unknown := sorted(set(self.budget_of or []) - set(self.of)):
            raise ValueError(f"budget_of names {', '.join(unknown)}, which `of` does not")
        for budget in self.budgets:
            if budget is not None:
                self.rollouts.require_room(budget)
        return self
