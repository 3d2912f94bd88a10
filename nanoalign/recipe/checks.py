"""What a single section cannot check: names that must exist, cycles, and values that must fit each other.

Each check is a generator of (path, message) over the parts of a recipe that are valid by themselves, so that they run,
and report, even while other parts are wrong.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_recipes.config import Mixture, SourceUse
from evaluation.config import EvaluateStage, Suite
from merge.config import MergeStage
from models.config import Training
from nanoalign.recipe.explain import nearest
from nanoalign.recipe.source import Path_
from rl.config import DPOStage, GRPOStage, RewardModelStage, Rollouts, Thinking
from sft.config import SFTStage

Finding = tuple[Path_, str]


@dataclass(frozen=True)
class Known:
    """The names that the rooms offer."""

    sources: Iterable[str]
    chats: Iterable[str]
    environments: Iterable[str]
    rewards: Iterable[str]


@dataclass(frozen=True)
class Parts:
    """A recipe's valid parts, and the names of all, valid or not."""

    stages: Mapping[str, Any]
    mixtures: Mapping[str, Mixture]
    suites: Mapping[str, Suite]
    names: Mapping[str, list[str]]
    """All names under `stages`, `data` and `suites`."""
    kinds: Mapping[str, Any]
    """The `kind` of every stage, as written."""


def uses(stage: Any, suites: Mapping[str, Suite]) -> Iterator[tuple[Path_, str, str]]:
    """The models a stage takes: (path within the stage or (), role, stage name or `base`). The one place that knows
    the graph's edges."""
    if isinstance(stage, SFTStage | DPOStage | RewardModelStage | GRPOStage):
        yield ("from",), "from", stage.from_
    if isinstance(stage, GRPOStage) and stage.reward_model is not None:
        yield ("reward_model",), "reward_model", stage.reward_model
    if isinstance(stage, MergeStage):
        yield ("reasoning",), "reasoning", stage.reasoning
        yield ("chat",), "chat", stage.chat
    if isinstance(stage, EvaluateStage):
        for index, name in enumerate(stage.of):
            yield ("of", index), name, name
    for name in dict.fromkeys(suite for _, suite in suites_of(stage)):
        if name in suites and suites[name].reward_model is not None:
            judge = suites[name].reward_model
            assert judge is not None
            yield (), judge, judge


def suites_of(stage: Any) -> Iterator[tuple[Path_, str]]:
    """The suites that a stage names, with their paths within it."""
    if isinstance(stage, MergeStage):
        yield ("reasoning_suite",), stage.reasoning_suite
        yield ("chat_suite",), stage.chat_suite
    if isinstance(stage, EvaluateStage):
        yield from ((("suites", index), name) for index, name in enumerate(stage.suites))
        if stage.budget_suite is not None:
            yield ("budget_suite",), stage.budget_suite


def check(parts: Parts, known: Known) -> Iterator[Finding]:
    """Everything wrong between the valid parts of a recipe."""
    for name, mixture in parts.mixtures.items():
        for source in mixture.sources:
            if known.sources is not None and source not in known.sources:
                yield ("data", name, "sources", source), f"unknown source{nearest(source, known.sources)}"
    for name, suite in parts.suites.items():
        yield from (((("suites", name, *path)), message) for path, message in _suite(suite, parts, known))
    for name, stage in parts.stages.items():
        if name == "base" and stage.kind != "pretrain":
            yield ("stages", name), "`base` is the model that the recipe starts from; give the stage another name"
        for path, message in (*_references(stage, parts), *_values(stage, parts, known)):
            yield ("stages", name, *path), message
    yield from _cycles(parts)


def _suite(suite: Suite, parts: Parts, known: Known) -> Iterator[Finding]:
    if suite.data is not None:
        yield from _mixture(("data",), suite.data, "test", parts)
    if suite.environment is not None and suite.environment not in (
        known.environments or ("miniature-workplace", "workbench")
    ):
        yield (
            ("environment",),
            f"unknown environment `{suite.environment}`{nearest(suite.environment, known.environments)}",
        )
    yield from _reward(suite.reward, suite.reward_model, known)
    if suite.reward_model is not None:
        yield from _model(("reward_model",), suite.reward_model, "reward_model", parts)


def _mixture(path: Path_, name: str, split: str, parts: Parts) -> Iterator[Finding]:
    if name not in parts.names["data"]:
        yield path, f"unknown mixture `{name}`{nearest(name, parts.names['data'])}"
    elif name in parts.mixtures:
        for source, use in parts.mixtures[name].sources.items():
            actual = use.split if isinstance(use, SourceUse) else "train"
            if actual != split:
                purpose = "tests" if split == "test" else "training"
                yield path, f"mixture `{name}` takes {source} from split {actual}; {purpose} needs split: {split}"


def _model(path: Path_, name: str, role: str, parts: Parts) -> Iterator[Finding]:
    """A language model is wanted, or with role reward_model a reward model."""
    judge = role == "reward_model"
    candidates = [n for n in parts.names["stages"] if (parts.kinds.get(n) == "reward_model") == judge]
    candidates = [n for n in candidates if parts.kinds.get(n) != "evaluate"] + ([] if judge else ["base"])
    what = "reward_model stage" if judge else "stage"
    if name == "base" and not judge:
        return
    if name not in parts.names["stages"]:
        yield path, f"unknown {what} `{name}`{nearest(name, candidates)}"
    elif name not in candidates:
        yield (
            path,
            f"`{name}` is of kind {parts.kinds.get(name)} and makes no {'reward' if judge else 'language'} model",
        )


def _references(stage: Any, parts: Parts) -> Iterator[Finding]:
    for path, role, name in uses(stage, {}):
        yield from _model(path, name, role, parts)
    if isinstance(stage, SFTStage | RewardModelStage | GRPOStage):
        yield from _mixture(("data",), stage.data, "train", parts)
    for path, name in suites_of(stage):
        if name not in parts.names["suites"]:
            yield path, f"unknown suite `{name}`{nearest(name, parts.names['suites'])}"


def _values(stage: Any, parts: Parts, known: Known) -> Iterator[Finding]:
    """Values of one stage that must fit each other."""
    if isinstance(stage, SFTStage):
        yield from _sft(stage)
    if isinstance(stage, DPOStage):
        if stage.environment not in (known.environments or ("miniature-workplace", "workbench")):
            yield (
                ("environment",),
                f"unknown environment `{stage.environment}`{nearest(stage.environment, known.environments)}",
            )
        if stage.pairs_per_task > stage.samples_per_task**2 // 4:
            most = stage.samples_per_task**2 // 4
            yield ("pairs_per_task",), f"{stage.samples_per_task} samples a task make at most {most} pairs"
    if isinstance(stage, GRPOStage):
        yield from _reward(stage.reward, stage.reward_model, known)
        if stage.train.batch_size % stage.group_size:
            yield (
                ("train", "batch_size"),
                f"{stage.train.batch_size} completions are no multiple of group_size {stage.group_size}",
            )
        if not all(bound > 0 for bound in stage.clip) or stage.clip[0] >= 1:
            yield ("clip",), f"expected two numbers above 0, the first below 1, got {list(stage.clip)}"
    if isinstance(stage, DPOStage | GRPOStage):
        yield from _thinking(stage.thinking, stage.rollouts)
        if stage.rollouts.temperature == 0:
            yield ("rollouts", "temperature"), "0 samples the same answer every time; there would be nothing to learn"
    if isinstance(stage, MergeStage):
        yield from _merge(stage)
    if isinstance(stage, EvaluateStage):
        yield from _budgets(("budgets",), stage.budgets)
        yield from _unique(("of",), stage.of)
        yield from _unique(("suites",), stage.suites)
    if hasattr(stage, "train"):
        yield from ((("train", *path), message) for path, message in _training(stage.train))


def _sft(stage: SFTStage) -> Iterator[Finding]:
    if stage.pack is not None and stage.max_length is not None:
        yield ("max_length",), "holds only without packing; use pack.length"
    cut = stage.truncate_reasoning
    if cut is not None and not 0 <= cut.tokens[0] <= cut.tokens[1]:
        yield (
            ("truncate_reasoning", "tokens"),
            f"expected [least, most] with 0 <= least <= most, got {list(cut.tokens)}",
        )
    if cut is not None and cut.share + stage.strip_reasoning > 1:
        yield ("strip_reasoning",), "strip_reasoning and truncate_reasoning.share together exceed 1"


def _merge(stage: MergeStage) -> Iterator[Finding]:
    if stage.reasoning == stage.chat:
        yield ("chat",), f"a merge needs two models; both are `{stage.chat}`"
    if any(not 0 <= alpha <= 1 for alpha in stage.alphas):
        yield ("alphas",), f"each is between 0 and 1, got {stage.alphas}"
    yield from _unique(("alphas",), stage.alphas)
    if min(stage.weights) < 0 or sum(stage.weights) <= 0:
        yield ("weights",), f"expected two weights of at least 0, not both 0, got {list(stage.weights)}"


def _training(train: Training) -> Iterator[Finding]:
    if train.epochs is not None and train.steps is not None:
        yield ("steps",), "give epochs or steps, not both"
    if train.micro_batch_size is not None and train.batch_size % train.micro_batch_size:
        yield ("micro_batch_size",), f"{train.micro_batch_size} does not divide batch_size {train.batch_size}"
    if any(not 0 <= beta < 1 for beta in train.betas):
        yield ("betas",), f"each is at least 0 and below 1, got {list(train.betas)}"
    if train.schedule == "wsd" and train.warmup_ratio + train.decay_ratio > 1:
        yield ("decay_ratio",), "warmup_ratio and decay_ratio together exceed 1"


def _thinking(thinking: Thinking, rollouts: Rollouts) -> Iterator[Finding]:
    yield from _budgets(("thinking", "budgets"), thinking.budgets)
    for index, budget in enumerate(thinking.budgets):
        if budget is not None and budget >= rollouts.max_tokens:
            yield (
                ("thinking", "budgets", index),
                f"{budget} leaves no room for an answer in rollouts.max_tokens {rollouts.max_tokens}",
            )


def _budgets(path: Path_, budgets: list[int | None]) -> Iterator[Finding]:
    for index, budget in enumerate(budgets):
        if budget is not None and budget < 0:
            yield (*path, index), f"a budget is 0 or more tokens, or null for no limit; got {budget}"
    yield from _unique(path, budgets)


def _unique(path: Path_, values: list[Any]) -> Iterator[Finding]:
    for index, value in enumerate(values):
        if value in values[:index]:
            yield (*path, index), f"{'null' if value is None else value} stands here twice"


def _reward(reward: Mapping[str, float], judge: str | None, known: Known) -> Iterator[Finding]:
    for name, weight in reward.items():
        if known.rewards and name not in known.rewards:
            yield ("reward", name), f"unknown reward{nearest(name, known.rewards)}"
        if not math.isfinite(weight):
            yield ("reward", name), f"expected a finite weight, got {weight}"
    if not any(reward.values()):
        yield ("reward",), "all weights are 0"
    if "preference" in reward and judge is None:
        yield ("reward", "preference"), "needs `reward_model:`, the stage that trains its judge"
    if judge is not None and "preference" not in reward:
        yield ("reward_model",), "is used by the reward `preference` alone, which is not in `reward`"


def _cycles(parts: Parts) -> Iterator[Finding]:
    """One finding a cycle, at the first of its stages in the recipe's order."""
    below = {name: [u for _, _, u in uses(stage, parts.suites)] for name, stage in parts.stages.items()}
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str] | None:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done or name not in below:
            return None
        for other in below[name]:
            if cycle := walk(other, [*trail, name]):
                return cycle
        done.add(name)
        return None

    for name in below:
        if name not in done and (cycle := walk(name, [])):
            done.update(cycle)
            yield ("stages", cycle[0]), f"depends on itself: {' <- '.join(cycle)}"
