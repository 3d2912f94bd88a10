"""Lays out the report page, as one self-contained file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoalign.common.printable import counted, printable
from nanoalign.graph import inputs_of
from nanoalign.progress import clock
from nanoalign.recipe.load import dump
from nanoalign.report import plots
from nanoalign.report.figures import Figures
from nanoalign.report.read import RunData, StageData
from nanoalign.report.sections import sections
from nanoalign.report.stage_graph import graph
from nanoalign.resume import log_tail, next_steps, reached

SHOWN = 12
"""Samples of a stage that the page holds."""
LONGEST = 4000
"""Characters shown of a sample's part."""


@dataclass(frozen=True)
class Headline:
    """A headline figure of the page. ``aim`` is what the method should reach, ``least`` (or ``most``) its bound."""

    figure: str
    name: str
    unit: str = ""
    scale: float = 1.0
    aim: str = ""
    least: float | None = None
    most: float | None = None
    digits: int = 1

    def met(self, value: float) -> bool:
        """Whether the aim is reached, where there is one."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


HEADLINES = (
    Headline("reasoning.thinking_gain_points", "thinking over /no_think", " points", aim="at least 20", least=20),
    Headline(
        "reasoning.budget_spearman",
        "accuracy grows with the budget (rank correlation)",
        aim="positive",
        least=0.0001,
        digits=2,
    ),
    Headline("budget.well_formed", "well-formed at tight budgets", "%", 100, "at least 95%", 0.95),
    Headline(
        "budget.compensation_ratio", "compensation after over before stage 3", aim="at most 0.5", most=0.5, digits=2
    ),
    Headline("no_think.obedience", "/no_think obeyed", "%", 100, "at least 97%", 0.97),
    Headline("dpo.success_first", "tool tasks solved before DPO", "%", 100),
    Headline("dpo.success_last", "tool tasks solved after DPO", "%", 100),
    Headline(
        "grpo.instruction_gain_points", "instructions followed, gain by GRPO", " points", aim="at least 5", least=5
    ),
    Headline("merge.on_pareto", "chosen merge on the Pareto front", aim="1", least=1, digits=0),
)


def page(run: RunData, figures: Figures) -> str:
    """The complete page as HTML text."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    template = environment.from_string(Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8"))
    records = [stage.record for stage in run.stages.values()]
    versions = records[-1].versions if records else {}
    kinds = {name: stage.kind for name, stage in run.recipe.stages.items()}
    inputs = {name: list(dict.fromkeys(inputs_of(run.recipe, name).values())) for name in kinds}
    return template.render(
        run=run,
        clock=clock,
        wall_s=sum(record.wall_s for record in records),
        peak_gb=max((record.peak_rss_gb for record in records), default=0.0),
        versions={name: versions[name] for name in ("torch", "transformers", "trl", "machine") if name in versions},
        cards=list(_cards(figures)),
        graph=plots.svg(graph(kinds, inputs, {name: stage.state for name, stage in run.begun.items()})),
        unfinished=[_unfinished(run, name, stage) for name, stage in run.unfinished.items()],
        to_come=[name for name in kinds if name not in run.begun],
        stage_rows=[_stage_row(name, stage) for name, stage in run.stages.items()],
        sections=list(sections(run)),
        sample_groups=[
            {"name": name, "samples": _samples(stage)} for name, stage in run.begun.items() if stage.samples
        ],
        data_rows=[
            _data_row(label, account)
            for name, stage in run.begun.items()
            for label, account in _accounts(name, stage.account)
        ],
        recipe_text=dump(run.recipe),
    )


def _shown(value: Any) -> Any:
    """Every text that the template shows, before it is escaped: without characters that mislead a reader or that UTF-8
    cannot encode. Plots are Markup, never others' text."""
    return printable(value) if type(value) is str else value


def _unfinished(run: RunData, name: str, stage: StageData) -> dict[str, Any]:
    """What is shown of an unfinished stage: how far it got, why it ended, and how to resume."""
    place = run.folder / name
    return {
        "name": name,
        "state": stage.state,
        "reached": reached(place),
        "reason": stage.record.error,
        "log": place / "log.txt",
        "log_tail": log_tail(place),
        "ways": [] if stage.state == "running" else list(next_steps(run.recipe, name, run.folder)),
    }


def _cards(figures: Figures) -> Iterator[dict[str, Any]]:
    for line in HEADLINES:
        value = figures.get(line.figure)
        if not isinstance(value, int | float):
            continue
        low, high, n = (figures.get(f"{line.figure}.{part}") for part in ("low", "high", "n"))
        spread = ""
        if isinstance(low, int | float) and isinstance(high, int | float):
            spread = f"95%: {line.scale * low:.{line.digits}f} to {line.scale * high:.{line.digits}f}, n {n:.0f}"
        yield {
            "name": line.name,
            "value": f"{line.scale * value:.{line.digits}f}{line.unit}",
            "range": spread,
            "aim": line.aim,
            "met": line.met(value),
        }


def _value(figure: Any, scale: float = 100, digits: int = 1) -> str:
    return f"{scale * (figure['value'] if isinstance(figure, Mapping) else figure):.{digits}f}"


def _stage_row(name: str, stage: StageData) -> dict[str, Any]:
    record = stage.record
    try:
        did = _did(stage)
    except (KeyError, TypeError) as missing:  # another version's figures, or one that is not a number
        did = f"its figures cannot be read ({missing})"
    return {
        "name": name,
        "kind": record.kind.replace("_", " "),
        "inputs": ", ".join(dict.fromkeys(record.inputs.values())),
        "wall_s": record.wall_s,
        "peak_gb": record.peak_rss_gb,
        "did": did,
    }


def _did(stage: StageData) -> str:
    """What a finished stage did, in a line."""
    kind, figures = stage.record.kind, stage.record.figures
    if kind == "distill" and "held_out_kl_last" in figures:
        return (
            f"held-out KL {figures['held_out_kl_first']:.3f} to {figures['held_out_kl_last']:.3f} over "
            f"{figures['tokens']:,.0f} tokens ({figures['tokens_per_s']:,.0f} a second)"
        )
    if kind in ("sft", "distill"):
        return (
            f"loss {figures['loss_first']:.3f} to {figures['loss_last']:.3f} over {figures['tokens']:,.0f} tokens "
            f"({figures['tokens_per_s']:,.0f} a second)"
        )
    if kind == "dpo":
        first, last = _value(figures["success_first"]), _value(figures["success_last"])
        return f"success {first}% to {last}% in {figures['rounds']} rounds"
    if kind == "grpo":
        gain = figures.get("held_out_reward_gain")
        held_out = f"held out {gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}); " if gain else ""
        return (
            f"reward {_value(figures['reward_first'], 1, 3)} to {_value(figures['reward_last'], 1, 3)} in "
            f"{figures['steps']} steps; {held_out}mismatch at most {figures['mismatch_max']:.4f}"
        )
    if kind == "merge":
        return f"chose alpha {figures['merge.alpha']:g} of {len(stage.result['points'])} points"
    if kind == "compress":
        kept, whole = figures["compress.parameters"], figures["compress.parameters.whole"]
        shapes = counted(figures["compress.candidates"], "shape")
        return f"kept {kept / whole:.0%} of {whole:,.0f} parameters, of {shapes}"
    if kind == "evaluate":
        checkpoints, suites = len(stage.result["checkpoints"]), len(stage.result["tasks"])
        return f"{counted(checkpoints, 'checkpoint')} on {counted(suites, 'suite')}"
    return f"held-out pairs ranked right: {_value(figures['accuracy'])}%" if "accuracy" in figures else ""


def _samples(stage: StageData) -> list[dict[str, str]]:
    rows = stage.samples
    step = max(1, len(rows) // SHOWN)
    return [_sample(row) for row in rows[::step][:SHOWN]]


def _sample(row: Mapping[str, Any]) -> dict[str, str]:
    parts = {name: str(row.get(name) or "")[:LONGEST] for name in ("prompt", "thinking", "answer")}
    facts = [
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if name not in parts and isinstance(value, int | float | str) and len(str(value)) < 40
    ]
    return {**parts, "head": " · ".join(facts), "answer": parts["answer"] or str(row.get("text", ""))[:LONGEST]}


def _accounts(name: str, account: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The accounts of a stage's documents, one for each of its phases."""
    phases = account.get("phases", [])
    return [(f"{name}, phase {n}", each) for n, each in enumerate(phases, 1)] or ([(name, account)] if account else [])


def _data_row(name: str, account: Mapping[str, Any]) -> dict[str, str]:
    def counts(key: str) -> str:
        return ", ".join(f"{reason} {count:,}" for reason, count in account.get(key, {}).items()) or "none"

    return {
        "name": name,
        "documents": f"{account['documents']:,}",
        "tokens": f"{account['document_tokens']:,}",
        "trained": f"{account['trained_tokens']:,}",
        "rows": f"{account['rows']:,}",
        "domains": counts("by_domain"),
        "changed": counts("changed"),
        "dropped": counts("dropped")
        + (f"; not read, in rows: {counts('not_read')}" if account.get("not_read") else ""),
    }
