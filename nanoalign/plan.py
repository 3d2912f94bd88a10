"""What a run would do, known without torch: stages, data, steps, schedules, memory, time and files."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nanoalign import plan_compress
from nanoalign import plan_cost as cost
from nanoalign.artifacts import read_record
from nanoalign.evaluation.benchmarks import benchmark
from nanoalign.graph import Node, makes_model, nodes
from nanoalign.models import fp8_layers
from nanoalign.models.config import HELD_OUT, HELD_OUT_SHARE
from nanoalign.models.schedules import optimizer_steps, schedule_factor
from nanoalign.plan_chat import template_notes
from nanoalign.plan_data import MixturePlan, find_model, find_tokenizer, plan_mixture
from nanoalign.plan_gpus import gpus, waits
from nanoalign.recipe.schema import Recipe
from nanoalign.stages import STAGES

STAGE_FILES = ("stage.json", "job.json", "result.json", "log.txt", "metrics.jsonl", "samples.jsonl")
MODEL_FILES = (
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "README.md",
)  # fmt: skip
SHARD_BYTES = 5e9
CURVE_POINTS = 32
UNCOUNTED_TASKS = 100
"""For how many the tasks of an environment are taken, which a plan does not open."""


@dataclass(frozen=True)
class Amount:
    """A number and its precision: "" exact, "~" an estimate, "<=" a bound."""

    value: float
    sign: str = ""


@dataclass
class StagePlan:
    """One stage of a plan. What does not apply is None or empty."""

    name: str
    kind: str
    inputs: Mapping[str, str]
    reason: str | None
    """Why it would run; None where it is finished."""
    data: MixturePlan | None = None
    samples: Amount | None = None
    """Sequences: samples, pairs, prompts with their completions, or answers to evaluate."""
    tokens: Amount | None = None
    """Tokens trained on or generated."""
    length: Amount | None = None
    """Tokens of the longest sequence."""
    too_long: int = 0
    """Measured samples that are longer than a pack or max_length."""
    steps: Amount | None = None
    batch_size: int | None = None
    devices: int = 1
    """Processes that train, one per GPU."""
    sequence_parallel: int = 1
    """Processes that share each pack."""
    zero: int = 0
    """DeepSpeed's ZeRO stage."""
    schedule: str = ""
    learning_rate: float | None = None
    curve: list[float] = field(default_factory=list)
    """The learning rate over the peak one, at up to 32 even steps."""
    memory_gb: Amount | None = None
    seconds: Amount | None = None
    took_s: float | None = None
    """Seconds that it took last time."""
    precision: str = ""
    """What multiplies in FP8, and what does not."""
    teacher: str = ""
    """Whom a student learns from, and what that takes."""
    phases: list[tuple[int, int, int]] = field(default_factory=list)
    """Tokens of a pack, steps and packs in a step of each phase of a distillation in several."""
    gpus: list[str] = field(default_factory=list)
    """What each GPU holds, in a stage that trains and samples."""
    candidates: list[dict[str, Any]] = field(default_factory=list)
    """Of a compress stage: the shapes within its budget, the largest first, after the whole model's
    (compress.search.Candidate.as_dict)."""
    waits: str = ""
    """Who waits for whom in a GRPO step."""
    files: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """A complete plan."""

    name: str
    folder: str
    seed: int
    chat: str
    device: str
    launch: str
    base: str
    model: dict[str, Any] | None
    """The base model's size (models.loading.describe_model); None where it is not known, for the reason in
    ``unknown``."""
    unknown: str
    stages: list[StagePlan]
    files: list[str]
    notes: list[str] = field(default_factory=list)
    """Recipe settings without effect, or in a spelling of before."""


def make_plan(recipe: Recipe, folder: Path, data_root: Path | None, *, ignore_code: bool = False) -> Plan:
    """The plan of a recipe whose artifacts are in ``folder``. Raises DataError where a source's files are missing."""
    model, unknown = find_model(recipe.model)
    tokenizer = find_tokenizer(model)
    mixtures = {name: plan_mixture(name, mixture, recipe.chat, tokenizer, data_root)
                for name, mixture in recipe.data.items()}  # fmt: skip
    device = cost.device_of(recipe.device, recipe.launch.kind)
    stages = []
    for node in nodes(recipe, folder, data_root, ignore_code=ignore_code):
        record = read_record(folder / node.name)
        plan = StagePlan(node.name, node.stage.kind, node.inputs, node.reason)
        plan.took_s = record.wall_s if record and record.status == "finished" else None
        _Sizes(recipe, mixtures, model, device).fill(plan, node)
        plan.files = list(_files(node, model))
        stages.append(plan)
    return Plan(recipe.name, str(folder), recipe.seed, recipe.chat, device, recipe.launch.kind, recipe.model, model,
                unknown, stages, ["recipe.yaml", "report.json", "report.html"], list(_notes(recipe)))  # fmt: skip


def _notes(recipe: Recipe) -> Iterator[str]:
    """`launch` settings that no stage uses, stages that it cannot spread, and what a template lacks."""
    yield from template_notes(recipe)
    launch = recipe.launch
    if any(STAGES[stage.kind].parallel for stage in recipe.stages.values()):
        return
    unused = [f"{launch.devices} processes"] if launch.devices > 1 else []
    unused += [f"zero: {launch.zero}"] if launch.zero else []
    if unused:
        kinds = ", ".join(kind for kind, entry in STAGES.items() if entry.parallel)
        yield f"launch sets {', '.join(unused)} without effect: only {kinds} stages train on several processes"


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    return asdict(plan)


@dataclass(frozen=True)
class _Sizes:
    """Fills in what a stage's kind decides."""

    recipe: Recipe
    mixtures: Mapping[str, MixturePlan]
    model: Mapping[str, Any] | None
    device: str

    def fill(self, plan: StagePlan, node: Node) -> None:
        stage = node.stage
        plan.data = self.mixtures.get(getattr(stage, "data", ""))
        match stage.kind:
            case "pretrain":
                plan.samples = Amount(stage.documents)
                self._training(plan, stage, sequences=stage.train.steps * stage.train.batch_size, length=stage.length)
                plan.tokens = Amount(stage.train.steps * stage.train.batch_size * stage.length)
            case "sft":
                self._sft(plan, stage)
            case "distill":
                self._distill(plan, stage)
            case "reward_model":
                assert plan.data is not None
                plan.samples = Amount(plan.data.samples)
                self._training(plan, stage, plan.data.samples, plan.data.longest, 2 * plan.data.mean)
            case "dpo":
                self._dpo(plan, stage)
            case "grpo":
                self._grpo(plan, stage)
            case "merge":
                alphas = len({0.0, 1.0, *stage.alphas}) + stage.refine
                suites = [*{stage.reasoning_suite, stage.chat_suite, *stage.more_suites}]
                suites += [stage.reasoning_suite] * len(stage.budgets)
                self._rollouts(plan, stage, alphas * sum(self._tasks(suite) for suite in suites), sign="~")
            case "compress":
                self._compress(plan, stage)
            case "evaluate":
                modes = 2 + len(stage.suite_budgets)  # thinking, /no_think, and under budgets
                each = modes * sum(self._tasks(suite) for suite in stage.suites)
                curve = len(stage.budgets) * self._tasks(stage.budget_suite) if stage.budget_suite else 0
                curved = stage.of if stage.budget_of is None else stage.budget_of
                self._rollouts(plan, stage, len(stage.of) * each + len(curved) * curve, sign="~")

    def _compress(self, plan: StagePlan, stage: Any) -> None:
        assert plan.data is not None
        plan.samples, calibration = Amount(plan.data.samples), stage.calibration
        plan.length = Amount(calibration.length)
        whole = plan_compress.whole_shape(self.recipe, plan.name)
        if whole is None or self.model is None:
            return
        plan.candidates = plan_compress.candidates(whole, stage, plan.name)
        tokens = plan_compress.tokens(whole, stage, len(plan.candidates) - 1)
        plan.tokens = Amount(tokens, "~")
        seconds = cost.forward_seconds(self.model["parameters"], tokens, self.device)
        if (brief := stage.distill) is not None:
            learned = stage.best * brief.train.steps * brief.train.batch_size * brief.pack.length
            seconds += cost.train_seconds(self.model["parameters"], learned, brief.train, self.device, 1)
        plan.seconds = Amount(seconds, "~")
        weights = self.model["parameters"] * (4 if self.device == "cpu" else 2)
        plan.memory_gb = Amount((cost.PROCESS_BYTES + 2 * weights) / 1e9, "<=")  # a candidate beside the whole

    def _sft(self, plan: StagePlan, stage: Any) -> None:
        assert plan.data is not None
        plan.samples = Amount(plan.data.samples)
        tokens = plan.data.tokens
        limit, _ = stage.limit
        plan.too_long = sum(length > limit for length in plan.data.lengths) if limit is not None else 0
        kept = 1 - min(HELD_OUT, plan.data.samples // HELD_OUT_SHARE) / plan.data.samples
        if stage.pack is not None:
            rows, length = math.ceil(kept * tokens / stage.pack.length), stage.pack.length
        else:
            rows, length = round(kept * plan.data.examples), stage.max_length or plan.data.longest
        mean = kept * tokens / max(1, rows) if tokens else None  # of data that are not here: full packs
        self._training(plan, stage, max(1, rows), length, mean, sign="~")

    def _distill(self, plan: StagePlan, stage: Any) -> None:
        """SFT's costs, phase by phase, and the teacher's: its weights, and a forward pass for every token."""
        turns = stage.in_turn()
        phases = [replace(plan) for _ in turns]
        for part, phase in zip(phases, turns, strict=True):
            self._sft(part, phase)
        if stage.phases:
            plan.phases = [(phase.pack.length, phase.train.steps, phase.train.batch_size) for phase in turns]
        for field_ in ("samples", "too_long", "batch_size", "schedule", "learning_rate", "curve", "devices", "zero",
                       "sequence_parallel", "precision"):  # fmt: skip
            setattr(plan, field_, getattr(phases[0], field_))
        plan.length = _most(part.length for part in phases)
        plan.steps, plan.tokens = _sum(part.steps for part in phases), _sum(part.tokens for part in phases)
        dtype = stage.teacher_dtype or stage.train.dtype
        apart = stage.teacher_gpus if self.device == "cuda" else None
        plan.teacher = f"{stage.teacher}, {dtype}, {f'on GPUs {apart}' if apart else 'beside the student'}"
        teacher = self.model if stage.teacher_stage is not None else find_model(stage.teacher)[0]
        memory, seconds = _most(part.memory_gb for part in phases), _sum(part.seconds for part in phases)
        if teacher is None or memory is None or seconds is None or plan.tokens is None:
            return
        teacher_gb = teacher["parameters"] * (4 if dtype == "float32" else 2) / 1e9
        plan.teacher += f": {teacher['parameters'] / 1e6:,.1f}M parameters, ~{teacher_gb:.1f} GB"
        reading = 2 * teacher["parameters"] * plan.tokens.value / cost.SPEEDS[self.device].train_flops / plan.devices
        plan.seconds = replace(seconds, value=seconds.value + reading)
        plan.memory_gb = replace(memory, value=memory.value + (0 if apart else teacher_gb))

    def _dpo(self, plan: StagePlan, stage: Any) -> None:
        pairs = stage.rounds * stage.most_tasks * stage.pairs_per_task
        episodes = stage.rounds * stage.most_tasks * stage.samples_per_task
        episodes += (stage.rounds + 1) * stage.held_out_tasks
        plan.samples = Amount(pairs, "<=")
        self._training(plan, stage, pairs, stage.rollouts.max_tokens * 2, 2 * stage.rollouts.max_tokens, sign="<=")
        self._rollouts(plan, stage, episodes, sign="<=")
        plan.samples = Amount(pairs, "<=")

    def _grpo(self, plan: StagePlan, stage: Any) -> None:
        prompts = plan.data.samples if plan.data is not None else UNCOUNTED_TASKS
        measured = 0
        if stage.train.evaluate_every is not None and isinstance(stage.held_out, str):
            measured = self.mixtures[stage.held_out].samples
        elif stage.train.evaluate_every is not None:
            share = HELD_OUT if stage.data is None else min(HELD_OUT, prompts // HELD_OUT_SHARE)
            measured = stage.held_out or share
            prompts -= measured if stage.data is not None else 0
        completions = prompts * stage.group_size
        steps = optimizer_steps(stage.train, completions)
        measured *= 1 + steps // (stage.train.evaluate_every or 1)
        turns = stage.max_turns if stage.environment is not None else 1
        length = (plan.data.mean if plan.data is not None else 0) + turns * stage.rollouts.max_tokens
        self._training(plan, stage, completions, round(length), length, copies=2 if stage.kl else 1)
        self._rollouts(plan, stage, steps * stage.train.batch_size + measured, sign="<=")
        plan.waits = waits(stage, plan.devices, _engines(stage, plan.devices), self.model, self.device)

    def _training(self, plan: StagePlan, stage: Any, sequences: int, length: int, mean: float | None = None,
                  sign: str = "", copies: int = 1) -> None:  # fmt: skip
        """Steps, schedule and costs of training on ``sequences`` of at most ``length`` tokens, ``mean`` on average."""
        train = stage.train
        steps = optimizer_steps(train, sequences)
        plan.steps = Amount(steps, "" if train.steps else sign)
        plan.batch_size, plan.schedule, plan.learning_rate = train.batch_size, train.schedule, train.learning_rate
        plan.precision = fp8_layers.DESCRIPTION if train.precision == "fp8" else ""
        if STAGES[stage.kind].parallel:
            pack = getattr(stage, "pack", None)
            plan.devices, plan.zero = self.recipe.launch.devices, self.recipe.launch.zero
            plan.sequence_parallel = pack.sequence_parallel if pack is not None else 1
        shown = min(steps, CURVE_POINTS)
        plan.curve = [schedule_factor(train, round(i * (steps - 1) / max(1, shown - 1)), steps) for i in range(shown)]
        plan.length = Amount(length, "~" if plan.data is not None and length == plan.data.longest else "")
        tokens = steps * train.batch_size * (mean if mean is not None else length)
        plan.tokens = Amount(round(tokens), sign or "~")
        if self.model is not None:
            seconds = cost.train_seconds(self.model["parameters"], tokens, train, self.device, plan.devices)
            plan.seconds = Amount(seconds, sign or "~")
            share = cost.Share(plan.devices, plan.sequence_parallel, plan.zero)
            tiled = hasattr(stage, "rollouts") or stage.kind == "distill"  # their heads work tile by tile
            needed = cost.train_bytes(
                self.model, train, length, share, copies, getattr(stage, "pack_tokens", None), not tiled
            )
            plan.memory_gb = Amount(needed / 1e9, "~")

    def _rollouts(self, plan: StagePlan, stage: Any, completions: int, sign: str) -> None:
        """Costs of sampling, on top of those that are there."""
        rollouts = stage.rollouts
        plan.samples = Amount(completions, sign)
        generated = completions * rollouts.max_tokens
        plan.tokens = Amount(round((plan.tokens.value if plan.tokens else 0) + generated), "<=")
        plan.length = plan.length or Amount(rollouts.max_tokens)
        if hasattr(stage, "train") and (self.device != "cpu" or rollouts.engine.kind != "hf"):
            training_gb = plan.memory_gb.value if plan.memory_gb else None
            plan.gpus = list(gpus(stage, plan.devices, training_gb, self.model))
        if self.model is not None:
            seconds = cost.generate_seconds(self.model["parameters"], generated, self.device)
            seconds /= _engines(stage, plan.devices)
            plan.seconds = Amount((plan.seconds.value if plan.seconds else 0) + seconds, "<=")
            training = plan.memory_gb.value if plan.memory_gb else 0.0
            if training and rollouts.engine.kind != "hf":  # a vLLM takes the cache that its GPU leaves; see `gpus`
                memory = 2 * self.model["parameters"] if rollouts.engine.kind == "vllm" else 0.0
            else:
                length = 2 * rollouts.max_tokens
                memory = cost.generate_bytes(self.model, rollouts.batch_size, length, self.device)
            plan.memory_gb = Amount(max(memory / 1e9, training), "~")

    def _tasks(self, suite: str) -> int:
        """Answers to a suite's tasks."""
        section = self.recipe.suites[suite]
        if section.benchmark is not None:
            entry, _ = benchmark(section.benchmark)
            return min(entry.tasks, section.samples or entry.tasks) * (section.completions or entry.completions)
        held = self.mixtures[section.data].samples if section.data is not None else UNCOUNTED_TASKS
        return (section.samples or held) * (section.completions or 1)


def _sum(amounts: Iterable[Amount | None]) -> Amount | None:
    """Their sum, as precise as the first of them; None where they are not known."""
    known = [amount for amount in amounts if amount is not None]
    return Amount(sum(amount.value for amount in known), known[0].sign) if known else None


def _most(amounts: Iterable[Amount | None]) -> Amount | None:
    return max((amount for amount in amounts if amount is not None), key=lambda amount: amount.value, default=None)


def _engines(stage: Any, devices: int) -> int:
    """Engines that generate at once for a stage on so many processes."""
    engine = stage.rollouts.engine
    return len(engine.urls or engine.shares) if engine.kind == "vllm_server" else devices


def _files(node: Node, model: Mapping[str, Any] | None) -> Iterator[str]:
    """Every file that a stage leaves behind, relative to the run's folder."""
    yield from (f"{node.name}/{file}" for file in STAGE_FILES)
    yield f"{node.name}/tensorboard/events.out.tfevents.*"
    if result := STAGES[node.stage.kind].result:
        yield f"{node.name}/{result}"
    if node.stage.kind == "evaluate":
        yield from (f"{node.name}/records/{checkpoint}/*.jsonl" for checkpoint in node.stage.of)
    if node.stage.kind == "compress":
        yield from (f"{node.name}/{file}" for file in ("importance.safetensors", "removals.jsonl", "tensors.jsonl"))
    if node.stage.kind == "distill":
        for number in range(1, len(node.stage.phases)):
            yield f"{node.name}/phase-{number}/{{phase.json,data.json,model/}}"
    if node.stage.kind in ("sft", "distill", "compress"):
        yield f"{node.name}.prepared/{{README.md,index.json,examples.arrow,*-train-*.arrow}}"
    if node.stage.kind == "dpo":
        yield f"{node.name}/round-0/round.json"
        for number in range(1, node.stage.rounds + 1):
            yield f"{node.name}/round-{number}/{{episodes.jsonl,pairs.jsonl,round.json,model/}}"
    if makes_model(node.stage):
        shards = math.ceil(model["weight_bytes"] / SHARD_BYTES) if model else 1
        for file in MODEL_FILES:
            if file == "model.safetensors" and shards > 1:
                yield from (f"{node.name}/model/model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards))
                yield f"{node.name}/model/model.safetensors.index.json"
            else:
                yield f"{node.name}/model/{file}"
