"""The flat map of a run's figures: every figure of every stage, and those that show whether the method worked.

A figure with an interval takes four names: ``name``, ``name.low``, ``name.high`` (95%) and ``name.n`` (samples).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nanoalign.common.intervals import Estimate
from nanoalign.report.read import RunData, StageData

Figures = dict[str, float | str]


def flatten(name: str, value: Any) -> Figures:
    """One figure's names; nested maps are joined by dots, what is neither a number nor text is left out."""
    if isinstance(value, Mapping):
        if value.keys() >= {"value", "low", "high", "n"}:
            return {name: value["value"], **{f"{name}.{part}": value[part] for part in ("low", "high", "n")}}
        return {key: each for part, inner in value.items() for key, each in flatten(f"{name}.{part}", inner).items()}
    if value is None or isinstance(value, list):
        return {}
    return {name: value}


def figures_of(run: RunData) -> Figures:
    """All figures of a run: ``<stage>.<figure>``, and the method's own (see :func:`method_figures`)."""
    figures: Figures = {}
    for name, stage in run.stages.items():
        for figure, value in stage.record.figures.items():
            figures |= flatten(f"{name}.{figure}", value)
        figures |= {f"{name}.wall_s": stage.record.wall_s, f"{name}.peak_rss_gb": stage.record.peak_rss_gb}
    for name, value in method_figures(run).items():
        figures |= flatten(name, value.as_dict() if isinstance(value, Estimate) else value)
    return {name: value for name, value in figures.items() if not (isinstance(value, float) and math.isnan(value))}


def method_figures(run: RunData) -> dict[str, Any]:
    """The figures that the recipe's method is judged by, as far as its stages measured them.

    ``reasoning.thinking_gain_points`` and ``no_think.obedience`` are the last evaluated checkpoint's. The budget
    figures compare the stage that truncates reasoning with the one before it, over its tight budgets: those under which
    at least half of the traces were cut. ``budget.compensation_ratio`` is that stage's compensation less 1 over the
    earlier one's less 1: 1 is an answer as long as with unlimited thinking. ``grpo.instruction_gain_points`` is on
    held-out tasks, both modes together.
    """
    stages = list(run.stages.values())
    result: dict[str, Any] = {
        "demo.wall_s": sum(stage.record.wall_s for stage in stages),
        "demo.peak_rss_gb": max((stage.record.peak_rss_gb for stage in stages), default=math.nan),
    }
    for dpo in run.of_kind("dpo").values():
        result |= {f"dpo.{name}": dpo.record.figures[name] for name in ("success_first", "success_last")}
    for merge in run.of_kind("merge").values():
        result["merge.on_pareto"] = merge.record.figures["merge.on_pareto"]
    for evaluation in run.of_kind("evaluate").values():
        result |= _thinking(run, evaluation) | _budgets(run, evaluation) | _instructions(run, evaluation)
    return result


def _estimate(value: Mapping[str, Any]) -> Estimate:
    return Estimate(**value)


def difference(after: Estimate, before: Estimate, scale: float = 1.0) -> Estimate:
    """``after - before`` of independent estimates, times ``scale``; half-widths add in quadrature."""
    low = math.hypot(after.value - after.low, before.high - before.value)
    high = math.hypot(after.high - after.value, before.value - before.low)
    value = after.value - before.value
    return Estimate(scale * value, scale * (value - low), scale * (value + high), after.n + before.n)


def pooled(parts: Sequence[Estimate]) -> Estimate:
    """The mean over groups of samples, weighted by their sizes, with the half-widths combined."""
    n = sum(part.n for part in parts)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = sum(part.value * part.n for part in parts) / n
    low = math.sqrt(sum(((part.value - part.low) * part.n) ** 2 for part in parts)) / n
    high = math.sqrt(sum(((part.high - part.value) * part.n) ** 2 for part in parts)) / n
    return Estimate(value, value - low, value + high, n)


def _thinking(run: RunData, evaluation: StageData) -> dict[str, Any]:
    checkpoints = evaluation.result["checkpoints"]
    last = list(checkpoints)[-1]
    result: dict[str, Any] = {"no_think.obedience": evaluation.record.figures[f"{last}.obedience"]}
    suite = run.recipe.stages[evaluation.record.name].budget_suite
    if suite:
        modes = checkpoints[last]["suites"][suite]
        gain = difference(_estimate(modes["on"]["score"]), _estimate(modes["off"]["score"]), 100)
        result[f"{suite}.thinking_gain_points"] = gain
    return result


def _budgets(run: RunData, evaluation: StageData) -> dict[str, Any]:
    checkpoints = evaluation.result["checkpoints"]
    teaching = [
        name
        for name, stage in run.recipe.stages.items()
        if stage.kind == "sft" and stage.truncate_reasoning and name in checkpoints
    ]
    result: dict[str, Any] = {}
    for name in teaching:
        before = run.recipe.stages[name].from_
        after_points = _points(checkpoints[name])
        scored = [point["score"]["value"] for point in _by_budget(after_points)]
        result["reasoning.budget_spearman"] = spearman(list(range(len(scored))), scored)
        tight = [point for point in after_points if point["budget"] is not None and point["cut"]["value"] >= 0.5]
        result["budget.well_formed"] = pooled([_estimate(point["well_formed"]) for point in tight])
        if before not in checkpoints:
            continue
        budgets = {point["budget"] for point in tight}
        earlier = [point for point in _points(checkpoints[before]) if point["budget"] in budgets]
        result["budget.well_formed_before"] = pooled([_estimate(point["well_formed"]) for point in earlier])
        longer, longer_before = (
            pooled([_estimate(point["compensation"]) for point in points if "compensation" in point])
            for points in (tight, earlier)
        )
        result["budget.compensation"], result["budget.compensation_before"] = longer, longer_before
        if longer_before.value > 1:
            result["budget.compensation_ratio"] = max(0.0, longer.value - 1) / (longer_before.value - 1)
    return result


def _points(checkpoint: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    curve = checkpoint["budget_curve"]
    return curve["points"] if curve else []


def _by_budget(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(points, key=lambda point: math.inf if point["budget"] is None else point["budget"])


def _instructions(run: RunData, evaluation: StageData) -> dict[str, Any]:
    checkpoints = evaluation.result["checkpoints"]
    for name, stage in run.recipe.stages.items():
        if stage.kind != "grpo" or name not in checkpoints or stage.from_ not in checkpoints:
            continue
        for suite, settings in run.recipe.suites.items():
            trained = any(reward.startswith("instruction") for reward in stage.reward)
            tested = any(reward.startswith("instruction") for reward in settings.reward)
            if trained and tested and suite in checkpoints[name]["suites"]:
                after, before = (
                    pooled([_estimate(checkpoints[each]["suites"][suite][mode]["score"]) for mode in ("on", "off")])
                    for each in (name, stage.from_)
                )
                return {"grpo.instruction_gain_points": difference(after, before, 100)}
    return {}


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; ties share their mean rank; NaN for fewer than two points or a constant."""

    def ranks(values: Sequence[float]) -> list[float]:
        return [
            sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
            for value in values
        ]

    a, b = ranks(first), ranks(second)
    middle = (len(a) - 1) / 2
    spread = math.sqrt(sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b))
    return sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True)) / spread if spread else math.nan
