"""Recipe sections of evaluation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nanoalign.common.config import Section
from nanoalign.common.errors import ConfigError
from nanoalign.evaluation.benchmarks import benchmark
from nanoalign.reward.config import Judge, Rewards
from nanoalign.rollouts.config import EnvironmentOrName, Rollouts


class Suite(Section):
    """A named set of held-out tasks and how they are scored. Exactly one of data, environment and benchmark."""

    data: str | None = None
    """Mixture (its sources with split: test)."""
    environment: EnvironmentOrName | None = None
    """Environment whose test tasks are run: a name, or your own (`my_env.py:Shop`)."""
    benchmark: str | None = None
    """A public benchmark (docs/names.md). A stage may also name one in place of a suite."""
    revision: str | None = None
    """The commit of a benchmark's data set on the hub; None: the catalog's or the newest. Mirrored files go first."""
    samples: int | None = Field(default=None, ge=1)
    """Tasks taken; None takes all."""
    completions: int | None = Field(default=None, ge=1)
    """Answers to each task, for avg@k and pass@k; None: a benchmark's own number, else 1."""
    temperature: float | None = Field(default=None, ge=0)
    """For this suite; None: a benchmark's own, else that of the stage's `rollouts`."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """For this suite; None: a benchmark's own, else that of the stage's `rollouts`."""
    reward: Rewards = Field(default={"task": 1.0}, min_length=1)
    """Name of a reward (reward/table.py), or FILE.py:FUNCTION or MODULE:FUNCTION of your own, to its weight; a sample
    counts as correct from 0.5 on where all are verifiers, otherwise scores are averaged."""
    reward_model: str | None = None
    """The reward_model stage behind `preference`."""
    judge: Judge | None = None
    """The endpoint that judges a benchmark's answers, where it needs one (`arena-hard`)."""
    max_turns: int = Field(default=6, ge=1)
    """Assistant turns in an episode of an environment."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Suite":
        if sum(each is not None for each in (self.data, self.environment, self.benchmark)) != 1:
            raise ValueError("give exactly one of `data`, `environment` and `benchmark`")
        if self.benchmark is not None:
            self._check_benchmark(self.benchmark)
        elif self.revision is not None:
            raise ValueError("revision: is for benchmarks, whose data the hub has")
        elif self.judge is not None:
            raise ValueError("judge: is for benchmarks that need one")
        if self.environment is not None and (self.completions or 1) > 1:
            raise ValueError("completions: episodes are played once a task")
        return self

    def _check_benchmark(self, name: str) -> None:
        try:
            entry, _ = benchmark(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if self.reward != {"task": 1.0} or self.reward_model is not None:
            raise ValueError(f"benchmark {name} is scored by its own rule; `reward` and `reward_model` are for data")
        if entry.judged and self.judge is None:
            raise ValueError(f"benchmark {name} needs `judge:`, the endpoint that judges its answers")
        if self.judge is not None and not entry.judged:
            raise ValueError(f"benchmark {name} is scored by a rule and takes no `judge`")
        if self.revision is not None and not any(each.loads for each in entry.data):
            raise ValueError(f"benchmark {name} is read from files of your own, which have no `revision`")
        if entry.environment and (self.completions or 1) > 1:
            raise ValueError("completions: episodes are played once a task")

    @property
    def scored_by(self) -> Rewards:
        """The rewards that score it, with their weights."""
        return self.reward if self.benchmark is None else {benchmark(self.benchmark)[0].reward: 1.0}


class EvaluateStage(Section):
    """Figures of one or more checkpoints."""

    kind: Literal["evaluate"]
    of: list[str] = Field(min_length=1)
    """Stages (or `base`) whose models are measured."""
    suites: list[str] = Field(min_length=1)
    """Names under `suites:`, or public benchmarks (docs/names.md)."""
    budgets: list[Annotated[int, Field(ge=0)] | None] = Field(default=[None])
    """Thinking budgets in tokens for the budget curve; null is unlimited. /no_think is always measured as well."""
    budget_suite: str | None = None
    """The suite on which the budget curve is measured; None measures none."""
    budget_of: list[str] | None = None
    """The checkpoints whose budget curve is measured; None means all."""
    suite_budgets: list[Annotated[int, Field(ge=0)]] = Field(default=[])
    """Thinking budgets in tokens under which every suite is measured as well, besides unlimited thinking and
    /no_think."""
    contamination: bool = True
    """Look for the questions of public benchmarks in the recipe's training data, in one pass over its sources."""
    rollouts: Rollouts

    @model_validator(mode="after")
    def _room_for_an_answer(self) -> "EvaluateStage":
        if unknown := sorted(set(self.budget_of or []) - set(self.of)):
            raise ValueError(f"budget_of names {', '.join(unknown)}, which `of` does not")
        for budget in [*self.budgets, *self.suite_budgets]:
            if budget is not None:
                self.rollouts.require_room(budget)
        return self
