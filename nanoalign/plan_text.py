"""A plan as text."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from nanoalign.plan import Amount, Plan, StagePlan
from nanoalign.plan_compress import candidate_lines
from nanoalign.plan_data import MixturePlan
from nanoalign.progress import clock

BARS = "▁▂▃▄▅▆▇█"


def render_plan(plan: Plan) -> str:
    """The plan for a terminal."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    yield f"{plan.name} -> {plan.folder} (seed {plan.seed}, chat {plan.chat}, {plan.device}, launch {plan.launch})"
    yield f"base: {plan.base}, {_model(plan)}"
    yield from (f"NOTE: {note}" for note in plan.notes)
    yield ""
    yield from _tree(plan.stages)
    yield ""
    mixtures = {stage.data.name: stage.data for stage in plan.stages if stage.data is not None}
    for mixture in mixtures.values():
        yield from _mixture(mixture)
    for stage in plan.stages:
        yield ""
        yield from _stage(stage)
    yield ""
    todo = [stage for stage in plan.stages if stage.reason is not None]
    yield f"would run {len(todo)} of {len(plan.stages)} stages" + (f", {_total(todo)}" if todo else "")
    yield f"writes under {plan.folder}: {', '.join(plan.files)}"
    for stage in todo:
        yield from (f"  {line}" for line in _folded(stage.files))


def _model(plan: Plan) -> str:
    if plan.model is None:
        return f"size unknown ({plan.unknown}): no estimate of memory and time"
    blocks = ", ".join(f"{count} {kind}" for kind, count in plan.model["blocks"].items())
    return f"{plan.model['architecture']}, {count_text(plan.model['parameters'])} parameters ({blocks})"


def _tree(stages: Sequence[StagePlan]) -> Iterator[str]:
    """The graph as a tree along each stage's first input; further inputs are listed after it."""

    def below(name: str, indent: str) -> Iterator[str]:
        children = [stage for stage in stages if next(iter(stage.inputs.values()), "base") == name]
        for child in children:
            last = child is children[-1]
            others = list(dict.fromkeys(other for other in child.inputs.values() if other != name))
            state = (
                "finished"
                if child.reason is None
                else "would run"
                if child.reason.startswith(("after ", "not run yet"))
                else child.reason
            )
            more = f" + {', '.join(others)}" if others else ""
            yield f"{indent}{'└─' if last else '├─'} {child.name} [{child.kind}]{more}: {state}"
            if child.name != "base":
                yield from below(child.name, indent + ("   " if last else "│  "))

    yield "base"
    yield from below("base", "")


def _mixture(mixture: MixturePlan) -> Iterator[str]:
    how = "" if mixture.tokenizer else ", from characters: the tokenizer is not here"
    measured = (
        f"~{count_text(mixture.tokens)} tokens (an example: ~{mixture.mean_example:.0f} on average, at most"
        f" ~{mixture.longest:,} of {len(mixture.lengths)} measured{how})"
    )
    unknown = "tokens not known before its sources are read"
    yield f"data {mixture.name}: {mixture.samples:,} samples, {measured if mixture.lengths else unknown}"
    for source in mixture.sources:
        again = f", {source.epochs:.1f} epochs" if source.epochs and source.epochs > 1 else ""
        of = f" of {source.rows:,}" if source.rows else ""
        yield f"  {source.name:<28} {source.samples:>9,}{of}{again}   {source.licence}   {source.where}"


def _stage(stage: StagePlan) -> Iterator[str]:
    inputs = ", ".join(f"{name}" if role in ("from", name) else f"{role} {name}" for role, name in stage.inputs.items())
    state = "finished" if stage.reason is None else f"would run, {stage.reason}"
    yield f"{stage.name}  {stage.kind}{f' from {inputs}' if inputs else ''}  ({state})"
    if stage.samples is not None and stage.tokens is not None:
        data = f"{stage.data.name}, " if stage.data else ""
        length = f", sequences of up to {amount(stage.length)} tokens" if stage.length else ""
        yield f"  data      {data}{amount(stage.samples)} samples, {amount(stage.tokens)} tokens{length}"
    if stage.too_long and stage.data is not None:
        yield f"  WARNING   {stage.too_long} of {len(stage.data.lengths)} measured samples are longer than that"
    if stage.steps is not None:
        curve = "".join(BARS[min(7, int(factor * 8))] for factor in stage.curve)
        each = f"in {len(stage.phases)} phases" if stage.phases else f"of {stage.batch_size} sequences"
        yield f"  steps     {amount(stage.steps)} {each}"
        yield f"  rate      {stage.learning_rate:.1e} {stage.schedule}  {curve}"
    for label, (tokens, steps, packs) in zip(["phases", *[""] * len(stage.phases)], stage.phases):
        yield f"  {label:<9} {steps:,} steps of {packs} packs of {tokens:,} tokens"
    if stage.precision:
        yield f"  precision {stage.precision}"
    if stage.teacher:
        yield f"  teacher   {stage.teacher}"
    if stage.devices > 1:
        shared = f", {stage.sequence_parallel} share a pack" if stage.sequence_parallel > 1 else ""
        zero = f", ZeRO-{stage.zero}" if stage.zero else ""
        yield f"  devices   {stage.devices}{shared}{zero}"
    for label, line in zip(["gpus", *[""] * len(stage.gpus)], stage.gpus):
        yield f"  {label:<9} {line}"
    if stage.candidates:
        yield from candidate_lines(stage.candidates)
    if stage.waits:
        yield f"  waits     {stage.waits}"
    if stage.memory_gb is not None and stage.seconds is not None:
        took = f"; took {clock(stage.took_s)} before" if stage.took_s is not None else ""
        sign = "at most " if stage.seconds.sign == "<=" else "~"
        each = " on each" if stage.devices > 1 else ""
        time = f"{sign}{clock(stage.seconds.value)} of device time{took}"
        yield f"  needs     ~{stage.memory_gb.value:.1f} GB{each}, {time}"


def _total(stages: Sequence[StagePlan]) -> str:
    known = [stage.took_s or (stage.seconds.value if stage.seconds else None) for stage in stages]
    times = [seconds for seconds in known if seconds is not None]
    memory = max((stage.memory_gb.value for stage in stages if stage.memory_gb), default=0.0)
    if not times:
        return "time unknown"
    return f"about {clock(sum(times))} of device time (within a factor of three), up to ~{memory:.1f} GB"


def _folded(files: Sequence[str]) -> Iterator[str]:
    """``stage/{a,b}`` for each folder."""
    for folder, group in groupby(files, key=lambda file: file.rpartition("/")[0]):
        names = [file.rpartition("/")[2] for file in group]
        yield f"{folder}/{names[0]}" if len(names) == 1 else f"{folder}/{{{','.join(names)}}}"


def amount(number: Amount | None) -> str:
    """``1,234``, ``~1.2M`` or ``<= 3.4K``."""
    if number is None:
        return "?"
    text = f"{number.value:,.0f}" if not number.sign or number.value < 10_000 else count_text(number.value)
    return f"{number.sign} {text}" if number.sign == "<=" else f"{number.sign}{text}"


def count_text(value: float) -> str:
    """5,100,000 as 5.1M."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "K")):
        if value >= unit:
            return f"{value / (1e3 if name == 'K' else unit):.1f}{name}"
    return f"{value:,.0f}"
