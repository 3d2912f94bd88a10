"""Recipe section of a merge sweep."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nanoalign.common.config import Section
from nanoalign.rollouts.config import Rollouts


class MergeStage(Section):
    """Linear interpolation (1 - alpha) * reasoning + alpha * chat, every alpha evaluated, one chosen."""

    kind: Literal["merge"]
    reasoning: str
    """Stage whose model has alpha 0."""
    chat: str
    """Stage whose model has alpha 1."""
    alphas: list[float] = Field(default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], min_length=1)
    """Weights of the chat model, each in [0, 1]; both ends are measured too."""
    reasoning_suite: str
    """Suite that measures reasoning."""
    chat_suite: str
    """Suite that measures chat."""
    choose: Literal["pareto", "weighted", "constraint"] = "pareto"
    """pareto: the point on the front with the best sum of normalised scores; weighted: best weighted sum; constraint:
    best chat with reasoning at most max_reasoning_loss below the better end."""
    weights: tuple[float, float] = Field((0.5, 0.5), strict=False)
    """Weights of reasoning and chat for `weighted`."""
    max_reasoning_loss: float = Field(0.01, ge=0)
    """For `constraint`, in accuracy (0.01 is one point)."""
    refine: int = Field(0, ge=0)
    """Further alphas around the best one, by golden section."""
    more_suites: list[str] = Field(default=[])
    """Suites measured at every alpha, only for the report."""
    budgets: list[Annotated[int, Field(ge=0)]] = Field(default=[])
    """Thinking budgets in tokens under which the reasoning suite is also measured, only for the report."""
    rollouts: Rollouts

    @model_validator(mode="after")
    def _room_for_an_answer(self) -> "MergeStage":
        for budget in self.budgets:
            self.rollouts.require_room(budget)
        return self
