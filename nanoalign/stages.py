"""The kinds of stage: one table that the recipe, the graph, the plan, the launch and the stage's process read.

Reading it imports the rooms' recipe sections, never torch; ``run_stage`` imports what the stage needs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nanoalign.common.config import Section
from nanoalign.common.stage import StageContext
from nanoalign.common.table import Entry
from nanoalign.compress.config import CompressStage
from nanoalign.evaluation.config import EvaluateStage, Suite
from nanoalign.merge.config import MergeStage
from nanoalign.recipe.source import Path_
from nanoalign.rl.config import DPOStage, GRPOStage, RewardModelStage
from nanoalign.sft.config import DistillStage, SFTStage
from nanoalign.sft.pretrain import PretrainStage

if TYPE_CHECKING:
    from nanoalign.recipe.schema import Recipe

CORE = ("common", "models", "data_recipes")
GENERATING = (*CORE, "budget_control", "reward", "rollouts")
RL = (*GENERATING, "rl")


@dataclass(frozen=True)
class StageEntry(Entry):
    """``code`` is ``run(config, mixtures, context)``, with a fourth argument, the suites that the stage names by name,
    where it names any."""

    section: type[Section]
    """Its section of a recipe; ``kind`` there is its name here. The keys `from`, `data`, `environment`, `reward_model`
    and `train` mean the same in every section, and are checked alike."""
    rooms: tuple[str, ...]
    """Rooms whose source its fingerprint covers."""
    makes: Literal["language model", "reward model", ""] = "language model"
    """What it leaves under ``model/``."""
    result: str = ""
    """A file of results that it leaves besides, if any."""
    parallel: bool = False
    """It trains on all processes of a launch; the others drive their devices from one."""


STAGES = {
    "pretrain": StageEntry(
        "nanoalign.sft.pretrain:run", "pre-trains the miniature on a generated corpus", PretrainStage, (*CORE, "sft")),
    "sft": StageEntry(
        "nanoalign.sft.stage:run", "supervised fine-tuning on a mixture", SFTStage, (*CORE, "budget_control", "sft"),
        result="data.json", parallel=True),
    "distill": StageEntry(
        "nanoalign.sft.distill:run", "learns another model's next-token distributions", DistillStage,
        (*CORE, "budget_control", "sft"), result="data.json", parallel=True),
    "dpo": StageEntry("nanoalign.rl.dpo:run", "iterative DPO in an environment", DPOStage, RL, parallel=True),
    "reward_model": StageEntry(
        "nanoalign.rl.reward_model:run", "trains a Bradley-Terry reward model on pairs", RewardModelStage, RL,
        makes="reward model", parallel=True),
    "grpo": StageEntry("nanoalign.rl.grpo:run", "GRPO on prompts or episodes", GRPOStage, RL, parallel=True),
    "merge": StageEntry(
        "nanoalign.merge.stage:run", "interpolates two models at the best alpha", MergeStage,
        (*GENERATING, "evaluation", "merge"), result="sweep.json"),
    "compress": StageEntry(
        "nanoalign.compress.stage:run", "prunes a model to the best shape within a budget", CompressStage,
        (*GENERATING, "evaluation", "sft", "compress"), result="search.json"),
    "evaluate": StageEntry(
        "nanoalign.evaluation.stage:run", "measures models on suites and budgets", EvaluateStage,
        (*GENERATING, "evaluation"), makes="", result="evaluation.json"),
}  # fmt: skip


def run_stage(recipe: "Recipe", context: StageContext) -> Mapping[str, Any]:
    """Runs the stage ``context.name`` of a recipe and returns its figures. Only a stage's own process calls this."""
    config = recipe.stages[context.name]
    suites = {name: recipe.suites[name] for _, name in suites_of(config)}
    figures: Mapping[str, Any] = STAGES[config.kind].load()(config, recipe.data, context, *([suites] if suites else []))
    return figures


def uses(stage: Any, suites: Mapping[str, Suite]) -> Iterator[tuple[Path_, str, str]]:
    """The models a stage takes: (path within the stage or (), role, stage name or `base`). The one place that knows
    the graph's edges."""
    roles: list[tuple[Path_, str, str | None]] = [
        (("from",), "from", getattr(stage, "from_", None)),
        (("reward_model",), "reward_model", getattr(stage, "reward_model", None)),
    ]
    if isinstance(stage, DistillStage):
        roles.append((("teacher",), "teacher", stage.teacher_stage))
    if isinstance(stage, MergeStage):
        roles += [(("reasoning",), "reasoning", stage.reasoning), (("chat",), "chat", stage.chat)]
    if isinstance(stage, EvaluateStage):
        roles += [(("of", index), name, name) for index, name in enumerate(stage.of)]
    judges = [suites[name].reward_model for _, name in suites_of(stage) if name in suites]
    roles += [((), judge, judge) for judge in dict.fromkeys(judges) if judge is not None]
    yield from ((path, role, name) for path, role, name in roles if name is not None)


def from_elsewhere(stage: Any) -> Iterator[tuple[str, str]]:
    """The models that a stage takes from outside of the recipe, besides `base`: (role, path, hub id or other spec)."""
    if isinstance(stage, DistillStage) and stage.teacher_stage is None:
        yield "teacher", stage.teacher


def suites_of(stage: Any) -> Iterator[tuple[Path_, str]]:
    """The suites that a stage names, with their paths within it."""
    named: list[tuple[Path_, str | None]] = []
    if isinstance(stage, MergeStage):
        named += [(("reasoning_suite",), stage.reasoning_suite), (("chat_suite",), stage.chat_suite)]
        named += [(("more_suites", index), name) for index, name in enumerate(stage.more_suites)]
    if isinstance(stage, CompressStage):
        named.append((("suite",), stage.suite))
    if isinstance(stage, EvaluateStage):
        named += [(("suites", index), name) for index, name in enumerate(stage.suites)]
        named.append((("budget_suite",), stage.budget_suite))
    yield from ((path, name) for path, name in named if name is not None)
