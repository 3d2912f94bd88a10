"""What a single section cannot check: names that must exist, cycles, and values that must fit each other.

Each check is a generator of (path, message). They run, and report, even where single parts are invalid.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanoalign.common.printable import nearest
from nanoalign.compress.config import CompressStage
from nanoalign.data_recipes.config import Mixture, SourceUse
from nanoalign.evaluation.benchmarks import BENCHMARKS
from nanoalign.evaluation.config import EvaluateStage, Suite
from nanoalign.merge.config import MergeStage
from nanoalign.models.config import HELD_OUT_SHARE, Training
from nanoalign.recipe.source import Path_
from nanoalign.recipe.user_code import environment_faults
from nanoalign.reward.config import is_own, section_of
from nanoalign.reward.own.source import check as check_own
from nanoalign.reward.table import REWARDS
from nanoalign.rl.config import DPOStage, GRPOStage
from nanoalign.rollouts.config import Rollouts, Thinking
from nanoalign.sft.config import DistillStage, DocumentStage
from nanoalign.stages import STAGES, suites_of, uses

Finding = tuple[Path_, str]


@dataclass(frozen=True)
class Known:
    """Names known to the rooms."""

    source_fault: Callable[[str, str, Sequence[str]], str | None]
    """What is wrong with a source (name, split, folders of its mixture), or None."""
    unscored: Callable[[str], str | None]
    """Why no reward can judge a single answer to a source's tasks, or None."""
    missing: Callable[[str], str | None]
    """What has to be installed for a tracker, or None."""
    benchmark_fault: Callable[[str], str | None]
    """Why a public benchmark's tasks cannot be read, or None."""
    model_fault: Callable[[str], str | None]
    """What is wrong with a model's spec, or None."""
    vocabulary_fault: Callable[[str, str], str | None]
    """Why a student cannot learn a teacher's distributions (specs of both), as far as they are on this machine."""
    fp8_fault: Callable[[str, str], str | None]
    """Why a stage cannot train in FP8 (device, kind of launch), or None."""


@dataclass(frozen=True)
class Parts:
    """A recipe's parts. In invalid ones, wrong values are None (or an empty list)."""

    stages: Mapping[str, Any]
    mixtures: Mapping[str, Mixture]
    """Only right ones."""
    suites: Mapping[str, Suite]
    sources: Mapping[str, Mapping[str, str]]
    """The sources that each mixture names, with their split."""
    wrong: set[str]
    """Invalid stages: their names are checked, but not how their values fit each other."""
    names: Mapping[str, list[str]]
    """All names under `stages`, `data`, `suites` and `seeds`."""
    kinds: Mapping[str, Any]
    """The `kind` of every stage, as written."""
    launch: Any
    """None where it is wrong by itself."""
    model: Any
    """The base model, as written."""
    device: Any
    """As written."""


def check(parts: Parts, known: Known) -> Iterator[Finding]:
    """Everything wrong between the parts of a recipe."""
    for name, sources in parts.sources.items():
        look_in = parts.mixtures[name].look_in if name in parts.mixtures else []
        for source, split in sources.items():
            if (fault := known.source_fault(source, split, look_in)) is not None:
                yield ("data", name, "sources", source), fault
    for name, mixture in parts.mixtures.items():
        for index, benchmark in enumerate(mixture.decontaminate):
            if (fault := known.source_fault(benchmark, "test", mixture.look_in)) is not None:
                yield ("data", name, "decontaminate", index), fault
    yield from _files_apart(parts.sources)
    for name, suite in parts.suites.items():
        yield from ((("suites", name, *path), message) for path, message in _suite(suite, parts, known))
    for name, stage in parts.stages.items():
        if name == "base" and stage.kind != "pretrain":
            yield ("stages", name), "`base` is the model that the recipe starts from; give the stage another name"
        yield from ((("stages", name, *path), message) for path, message in _references(stage, parts, known))
        if name not in parts.wrong:
            yield from ((("stages", name, *path), message) for path, message in _values(stage))
            yield from ((("stages", name, *path), message) for path, message in _fp8(stage, parts, known))
            if isinstance(stage, DocumentStage | GRPOStage):
                found = _held_out(stage, parts, known)
                yield from ((("stages", name, *path), message) for path, message in found)
            if parts.launch is not None:
                yield from ((("stages", name, *path), message) for path, message in _spread(stage, parts.launch))
    for name in parts.names["seeds"]:
        if name not in parts.names["stages"]:
            yield ("seeds", name), f"unknown stage `{name}`{nearest(name, parts.names['stages'])}"
    yield from _cycles(parts)


def _files_apart(mixtures: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """A file of the user's has no splits: it is trained on, or tested on."""
    named = [(name, source, split) for name, sources in mixtures.items() for source, split in sources.items()]
    trained = {source.partition("#")[0]: name for name, source, split in named if split != "test"}
    for name, source, split in named:
        if split == "test" and source.startswith("file:") and (other := trained.get(source.partition("#")[0])):
            yield ("data", name, "sources", source), f"mixture `{other}` trains on the same file"


def _suite(suite: Suite, parts: Parts, known: Known) -> Iterator[Finding]:
    if suite.benchmark is not None and (fault := known.benchmark_fault(suite.benchmark)) is not None:
        yield ("benchmark",), fault
    yield from _mixture(("data",), suite.data, "test", parts)
    yield from _scored(suite.data, suite.reward, parts, known)
    yield from environment_faults(suite.environment)
    yield from _reward(
        suite.reward, suite.reward_model, [name for name in REWARDS if name not in ("judge", "environment")]
    )
    if suite.reward_model is not None:
        yield from _model(("reward_model",), suite.reward_model, "reward_model", parts)


def _mixture(path: Path_, name: str | None, split: str, parts: Parts) -> Iterator[Finding]:
    if name is None:
        return
    if name not in parts.names["data"]:
        yield path, f"unknown mixture `{name}`{nearest(name, parts.names['data'])}"
    elif name in parts.mixtures:
        for source, use in parts.mixtures[name].sources.items():
            actual = use.split if isinstance(use, SourceUse) else "train"
            if actual != split:
                purpose = "tests" if split == "test" else "training"
                yield path, f"mixture `{name}` takes {source} from split {actual}; {purpose} needs split: {split}"


def _scored(mixture: str | None, reward: Mapping[str, Any] | None, parts: Parts, known: Known) -> Iterator[Finding]:
    """Rewards that use a verifier need tasks that a verifier can judge."""
    reads = any(REWARDS[name].kind for name in reward or ["task"] if name in REWARDS)
    if mixture is not None and reads:
        for source in parts.sources.get(mixture, ()):
            if (reason := known.unscored(source)) is not None:
                yield ("data",), f"mixture `{mixture}` takes {source}, which no reward can judge: {reason}"


def _model(path: Path_, name: str, role: str, parts: Parts) -> Iterator[Finding]:
    """A language model is wanted, or with role reward_model a reward model."""
    judge = role == "reward_model"
    wanted = f"{'reward' if judge else 'language'} model"
    made = {n: STAGES[kind].makes for n, kind in parts.kinds.items() if isinstance(kind, str) and kind in STAGES}
    candidates = [n for n in parts.names["stages"] if made.get(n, wanted) == wanted] + ([] if judge else ["base"])
    what = "reward_model stage" if judge else "stage"
    if name == "base" and not judge:
        return
    if name not in parts.names["stages"]:
        yield path, f"unknown {what} `{name}`{nearest(name, candidates)}"
    elif name not in candidates:
        yield path, f"`{name}` is of kind {parts.kinds.get(name)} and makes no {wanted}"


def _references(stage: Any, parts: Parts, known: Known) -> Iterator[Finding]:
    """Names of one stage that must exist."""
    for path, role, name in uses(stage, {}):
        yield from _model(path, name, role, parts)
    yield from _mixture(("data",), getattr(stage, "data", None), "train", parts)
    for path, name in suites_of(stage):
        if name not in parts.names["suites"]:
            yield path, f"unknown suite `{name}`{nearest(name, [*parts.names['suites'], *BENCHMARKS])}"
    yield from environment_faults(getattr(stage, "environment", None))
    if isinstance(stage, DistillStage):
        yield from _teacher(stage, parts, known)
    if isinstance(stage, GRPOStage) and stage.reward is not None:
        yield from _scored(stage.data, stage.reward, parts, known)
        yield from _reward(stage.reward, stage.reward_model, REWARDS)
        if stage.reward_gpu is not None and stage.reward_model is None:
            yield ("reward_gpu",), "is the reward model's, and there is no `reward_model`"
        if "judge" in stage.reward and stage.judge is None:
            yield ("reward", "judge"), "needs `judge:`, its endpoint"
        if stage.judge is not None and "judge" not in stage.reward:
            yield ("judge",), "is used only by the reward `judge`, which is not in `reward`"


def _values(stage: Any) -> Iterator[Finding]:
    """Values of one stage that must fit each other."""
    if isinstance(stage, DocumentStage):
        yield from _documents(stage)
    if isinstance(stage, DistillStage):
        yield from _distill(stage)
    if isinstance(stage, DPOStage) and stage.pairs_per_task > (most := stage.samples_per_task**2 // 4):
        yield ("pairs_per_task",), f"{stage.samples_per_task} samples per task make at most {most} pairs"
    if isinstance(stage, DPOStage) and stage.min_pairs is None and stage.max_batches != _default(stage, "max_batches"):
        yield ("max_batches",), "bounds how long a round plays for its `min_pairs`, and these are not given"
    if isinstance(stage, GRPOStage):
        yield from _grpo(stage)
    elif ahead := getattr(getattr(stage, "rollouts", None), "ahead", 0):
        yield ("rollouts", "ahead"), f"{ahead} is for GRPO: nothing else trains and samples at the same time"
    if isinstance(stage, DPOStage | GRPOStage):
        yield from _thinking(stage.thinking, stage.rollouts)
        if stage.rollouts.temperature == 0:
            yield ("rollouts", "temperature"), "0 gives the same answer every time; there would be nothing to learn"
    if isinstance(stage, MergeStage):
        yield from _merge(stage)
    if isinstance(stage, EvaluateStage):
        yield from _budgets(("budgets",), stage.budgets)
        yield from _unique(("of",), stage.of)
        yield from _unique(("suites",), stage.suites)
    if hasattr(stage, "train"):
        yield from ((("train", *path), message) for path, message in _training(stage.train))
    if (brief := _brief(stage)) is not None:
        yield from ((("distill", "train", *path), message) for path, message in _training(brief))


def _grpo(stage: GRPOStage) -> Iterator[Finding]:
    batch, group = stage.train.batch_size, stage.group_size
    if batch % group:
        yield ("train", "batch_size"), f"{batch} completions are not a multiple of group_size {group}"
    yield from _asked(stage)
    if min(stage.clip) <= 0 or stage.clip[0] >= 1:
        yield ("clip",), f"expected two numbers above 0, the first below 1, got {list(stage.clip)}"
    kind, ahead, temperature = stage.rollouts.engine.kind, stage.rollouts.ahead, stage.rollouts.temperature
    if ahead and kind != "vllm_server":
        yield ("rollouts", "ahead"), f"{kind} samples on the trainer's GPU, in turn with it; use `engine: vllm_server`"
    if ahead and temperature != 1:
        yield (
            ("rollouts", "ahead"),
            f"needs temperature 1, got {temperature}: engines report log-probabilities at 1, to correct by",
        )
    if stage.importance is not None and (kind == "hf" or temperature != 1):
        yield ("importance",), "corrects for engines with weights of their own (vllm, vllm_server), at temperature 1"


def _asked(stage: GRPOStage) -> Iterator[Finding]:
    """Prompts or episodes, and rewards that can judge them."""
    if (stage.data is None) == (stage.environment is None):
        yield (), "needs `data`, a mixture of prompts, or `environment`, whose tasks are played; one of them"
    if stage.environment is None:
        if "environment" in stage.reward:
            yield ("reward", "environment"), "judges episodes; this stage answers prompts"
        for key in ("max_turns", "episode_tokens", "budget_per"):
            if getattr(stage, key) != GRPOStage.model_fields[key].default:
                yield (key,), "is for episodes in an `environment`; this stage answers prompts"
        return
    for name in stage.reward:
        if name in REWARDS and REWARDS[name].kind:
            yield ("reward", name), "reads the tasks of a mixture; `environment` is an environment's own reward"


def _documents(stage: DocumentStage) -> Iterator[Finding]:
    if stage.pack is not None and stage.max_length is not None:
        yield ("max_length",), "applies only without packing; use pack.length"
    cut = stage.truncate_reasoning
    if cut is not None and not 0 <= cut.tokens[0] <= cut.tokens[1]:
        yield (
            ("truncate_reasoning", "tokens"),
            f"expected [least, most] with 0 <= least <= most, got {list(cut.tokens)}",
        )
    if cut is not None and cut.share + stage.strip_reasoning > 1:
        yield ("strip_reasoning",), "strip_reasoning and truncate_reasoning.share together exceed 1"


def _default(stage: Any, name: str) -> Any:
    return type(stage).model_fields[name].default


def _distill(stage: DistillStage) -> Iterator[Finding]:
    if stage.phases and stage.pack is None:
        yield ("phases",), "are lengths of packs; needs `pack`"
    if stage.phases and (stage.train.steps or stage.train.epochs) is not None:
        yield ("phases",), "each has its own steps; `train` may give neither steps nor epochs"
    for index, phase in enumerate(stage.in_turn() if stage.phases else ()):
        for path, message in _training(phase.train):
            yield ("phases", index, *path), message


def _teacher(stage: DistillStage, parts: Parts, known: Known) -> Iterator[Finding]:
    """A teacher that is there, is another model than the student, and has its vocabulary."""
    if stage.teacher is None:
        return
    if stage.teacher == stage.from_:
        yield ("teacher",), f"`{stage.teacher}` is the student too: nothing to learn"
    if stage.teacher_stage is None and (fault := known.model_fault(stage.teacher)) is not None:
        yield ("teacher",), fault
        return
    student = _root(stage.from_, parts)
    teacher = _root(stage.teacher, parts) if stage.teacher_stage is not None else stage.teacher
    if student is not None and teacher is not None and (fault := known.vocabulary_fault(student, teacher)) is not None:
        yield ("teacher",), fault


def _root(name: str | None, parts: Parts) -> str | None:
    """The model from elsewhere that a stage's model descends from; None where it is not known."""
    seen: set[str] = set()
    while name is not None and name != "base" and name not in seen:
        seen.add(name)
        stage = parts.stages.get(name)
        name = getattr(stage, "from_", None) or getattr(stage, "reasoning", None)
    return parts.model if name == "base" and isinstance(parts.model, str) and parts.model != "none" else None


def _held_out(stage: DocumentStage | GRPOStage, parts: Parts, known: Known) -> Iterator[Finding]:
    """What measures the held-out loss or reward needs something that is held out."""
    every, mixture, launch = stage.train.evaluate_every, parts.mixtures.get(stage.data or ""), parts.launch
    held_out = getattr(stage, "held_out", None)
    if stage.train.early_stop is not None and every is None:
        yield ("train", "early_stop"), "needs `train.evaluate_every`, the steps between two measurements"
    if stage.train.early_stop is not None and launch is not None and launch.zero:
        yield ("train", "early_stop"), "takes back the best weights, which DeepSpeed keeps; use launch.zero: 0"
    samples = sum(use.samples for use in mixture.uses.values()) if mixture is not None else None
    if every is not None and samples is not None and samples < HELD_OUT_SHARE and held_out is None:
        say = "; say how many with `held_out`" if isinstance(stage, GRPOStage) else ""
        yield (
            ("train", "evaluate_every"),
            f"none of {samples} samples is held out; one of {HELD_OUT_SHARE} would be{say}",
        )
    if held_out is not None and every is None:
        yield ("held_out",), "is what `train.evaluate_every` measures on, and that is not given"
    if isinstance(held_out, int) and samples is not None and held_out >= samples:
        yield ("held_out",), f"{held_out} of {samples} prompts would leave none to train on"
    if isinstance(held_out, str) and stage.data is None:
        yield ("held_out",), "names a mixture; this stage measures on test tasks of its environment: say how many"
    elif isinstance(held_out, str):
        yield from _mixture(("held_out",), held_out, "test", parts)
        yield from _scored(held_out, getattr(stage, "reward", None), parts, known)


def _spread(stage: Any, launch: Any) -> Iterator[Finding]:
    """A stage that trains on several processes: packs and batches must divide over them."""
    if not STAGES[stage.kind].parallel:
        return
    devices, near = launch.devices, launch.on_a_node
    engine = stage.rollouts.engine if isinstance(stage, DPOStage | GRPOStage) else None
    taken = getattr(engine, "gpus", None)
    if taken and devices > 1 and min(taken) < near:
        whose = f"the trainer's {near} processes{' on each node' if devices > near else ''}"
        yield ("rollouts", "engine", "gpus"), f"{whose} have GPUs 0 to {near - 1}, got {taken}"
    ranks = stage.pack.sequence_parallel if isinstance(stage, DocumentStage) and stage.pack is not None else 1
    if isinstance(stage, DistillStage) and (gpus := stage.teacher_gpus):
        if ranks > 1:
            yield ("teacher_gpus",), f"{ranks} processes share a pack, and so must their teachers, on the same GPUs"
        if devices > 1 and min(gpus) < near:
            yield ("teacher_gpus",), f"the trainer's {near} processes have GPUs 0 to {near - 1}, got {gpus}"
    if devices % ranks:
        yield ("pack", "sequence_parallel"), f"{ranks} does not divide the {devices} processes of `launch`"
        return
    groups = devices // ranks
    trainings: list[tuple[Path_, Training]] = [((), stage.train)]
    if isinstance(stage, DistillStage) and stage.phases:
        trainings = [(("phases", index), phase.train) for index, phase in enumerate(stage.in_turn())]
    for path, train in trainings:
        batch, micro = train.batch_size, train.micro_batch(groups)
        if devices > 1 and batch % (micro * groups):
            shared = "" if ranks == 1 else f" groups of {ranks}"
            at_once = f"{micro * groups} sequences at once, {micro} on each of {groups}{shared or ' processes'}"
            yield (*(path or ("train",)), "batch_size"), f"{batch} is not a multiple of {at_once}"


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
        yield ("steps",), "give epochs or steps, not both (`epochs: null` takes it out of a recipe that is extended)"
    if train.micro_batch_size is not None and train.batch_size % train.micro_batch_size:
        yield ("micro_batch_size",), f"{train.micro_batch_size} does not divide batch_size {train.batch_size}"
    if any(not 0 <= beta < 1 for beta in train.betas):
        yield ("betas",), f"each is at least 0 and below 1, got {list(train.betas)}"
    if train.schedule == "wsd" and train.warmup_ratio + train.decay_ratio > 1:
        yield ("decay_ratio",), "warmup_ratio and decay_ratio together exceed 1"
    if train.precision == "fp8" and train.dtype != "bfloat16":
        yield ("precision",), f"fp8 stands in for products in bfloat16; `dtype` is {train.dtype}"


def _fp8(stage: Any, parts: Parts, known: Known) -> Iterator[Finding]:
    """Products that this machine, or the recipe's device, does not have."""
    trainings = {("train",): getattr(stage, "train", None), ("distill", "train"): _brief(stage)}
    launch = getattr(parts.launch, "kind", "local")
    for path, train in trainings.items():
        asked = train is not None and train.precision == "fp8" and isinstance(parts.device, str)
        if asked and (fault := known.fp8_fault(parts.device, launch)) is not None:
            yield (*path, "precision"), fault


def _brief(stage: Any) -> Training | None:
    """How a compress stage trains its candidates."""
    return stage.distill.train if isinstance(stage, CompressStage) and stage.distill is not None else None


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
            yield (*path, index), f"{'null' if value is None else value} is given twice"


def _reward(reward: Mapping[str, Any] | None, judge: str | None, known: Iterable[str]) -> Iterator[Finding]:
    if reward is None:
        return
    for name, value in reward.items():
        weight = section_of(value).weight
        if is_own(name):
            if (fault := check_own(name, value)) is not None:
                yield ("reward", name, *([fault[0]] if fault[0] else [])), fault[1]
        elif name.endswith(".py"):
            yield ("reward", name), f"which function of it? write `{name}:FUNCTION`"
        elif name not in known:
            yield ("reward", name), f"unknown reward{nearest(name, known)}"
        elif not isinstance(value, int | float):
            yield ("reward", name), "takes a number, its weight; only rewards of your own (FILE.py:FUNCTION) take more"
        if not math.isfinite(weight):
            yield ("reward", name), f"expected a finite weight, got {weight}"
    if not any(section_of(value).weight for value in reward.values()):
        yield ("reward",), "all weights are 0"
    if "preference" in reward and judge is None:
        yield ("reward", "preference"), "needs `reward_model:`, the stage that trains its judge"
    if judge is not None and "preference" not in reward:
        yield ("reward_model",), "is used only by the reward `preference`, which is not in `reward`"


def _cycles(parts: Parts) -> Iterator[Finding]:
    """One finding per cycle, at the first of its stages in the recipe's order."""
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
