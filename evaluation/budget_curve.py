"""Accuracy and form against thinking budgets: one suite, the same prompts under each budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanoalign.budget_control.measure import compensation
from nanoalign.common.errors import ConfigError
from nanoalign.common.intervals import Estimate
from nanoalign.data_recipes.config import Mixture
from nanoalign.evaluation.config import Suite
from nanoalign.evaluation.suites import Enforcement, SuiteResult, evaluate, load_suite, suite_reward
from nanoalign.rollouts.base import Mode
from nanoalign.rollouts.config import Rollouts

SHOWN_FIGURES = (
    "well_formed", "overshoot", "overshoot_max", "cut", "thinking_tokens", "answer_tokens", "compensation", "leakage",
)  # fmt: skip

ENFORCED: dict[Enforcement, str] = {"rule": "rule", "hard": "hard cut", "none": "not enforced"}


@dataclass(frozen=True)
class BudgetPoint:
    """A suite under one budget, with compensation and leakage against the unlimited run of the same prompts."""

    result: SuiteResult
    against_unlimited: Mapping[str, Estimate]

    def figures(self) -> dict[str, Estimate]:
        """accuracy and the figures of budget_control/measure.py."""
        return {"accuracy": self.result.score, **self.result.budget, **self.against_unlimited}


@dataclass(frozen=True)
class Curve:
    """The points from the smallest budget to none, and the suite without thinking."""

    points: tuple[BudgetPoint, ...]
    off: SuiteResult
    peers: Mapping[Enforcement, tuple[BudgetPoint, ...]] = field(default_factory=dict)
    """Other enforcements of the same budgets."""

    def figures(self) -> dict[str, Estimate]:
        """``budget_<n>.<figure>``, n tokens or ``unlimited``, ``budget_<n>_<enforcement>.<figure>`` for the peers, and
        ``no_think.accuracy``."""
        named = [(label(point.result.mode), point) for point in self.points]
        named += [(f"{label(point.result.mode)}_{how}", point) for how, each in self.peers.items() for point in each]
        flat = {f"{label}.{name}": estimate for label, point in named for name, estimate in point.figures().items()}
        return {**flat, "no_think.accuracy": self.off.score}

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``points`` in the order of budgets, ``off``, and ``peers`` by their enforcement, if any."""
        curve = {"suite": self.off.suite, "points": [_as_dict(point) for point in self.points]}
        peers = {how: [_as_dict(point) for point in points] for how, points in self.peers.items()}
        return {**curve, "off": self.off.as_dict(), **({"peers": peers} if peers else {})}


def budget_curve(limited: Sequence[SuiteResult], unlimited: SuiteResult, off: SuiteResult) -> Curve:
    """The curve from runs of one suite: under budgets, enforced by the rule and otherwise, with unlimited thinking, and
    without thinking."""
    ways: dict[Enforcement, list[BudgetPoint]] = {"rule": []}
    for result in sorted(limited, key=lambda result: result.mode.budget or 0):
        ways.setdefault(result.enforcement, []).append(BudgetPoint(result, _against(result, unlimited)))
    ruled = ways.pop("rule")
    return Curve((*ruled, BudgetPoint(unlimited, {})), off, {how: tuple(points) for how, points in ways.items()})


def label(mode: Mode) -> str:
    """A mode's name in figures: ``no_think``, ``budget_64`` or ``budget_unlimited``."""
    if not mode.thinking:
        return "no_think"
    return f"budget_{'unlimited' if mode.budget is None else mode.budget}"


def run_budget_curve(
    model: str | Path,
    suite: Suite,
    mixtures: Mapping[str, Mixture],
    budgets: Sequence[int | None],
    rollouts: Rollouts,
    chat: str,
    *,
    peers: Sequence[Enforcement] = (),
    data_root: Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Curve:
    """``nanoalign budget-curve MODEL``: measures one model outside a recipe. Unlimited thinking and ``/no_think`` are
    always measured as well as ``budgets``; ``peers`` are other enforcements to measure.

    Raises ConfigError for budgets that leave no room for an answer, and as :func:`evaluation.stage.run` does.
    """
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.loading import load_tokenizer, resolve
    from nanoalign.models.training import resolve_device
    from nanoalign.rollouts import open_for_eval

    limited = sorted({budget for budget in budgets if budget is not None})
    for budget in limited:
        if budget < 0 or budget + rollouts.grace >= rollouts.max_tokens:
            raise ConfigError(
                f"budget {budget} with grace {rollouts.grace} does not fit max_tokens {rollouts.max_tokens}, "
                "which has to hold an answer too"
            )
    format_, device, folder = chat_format(chat), resolve_device(device), resolve(model)
    tokenizer = load_tokenizer(folder)
    tasks = load_suite("budget-curve", suite, mixtures, data_root, seed, tokenizer=tokenizer)
    reward = suite_reward(suite, {}, device)
    engine = open_for_eval(rollouts, folder, tokenizer, format_, device)
    try:
        modes = [*(Mode(True, budget) for budget in limited), Mode(True), Mode(False)]
        *points, unlimited, off = [
            evaluate(engine, format_, tokenizer, tasks, mode, reward, rollouts, seed) for mode in modes
        ]
        points += [
            evaluate(
                engine, format_, tokenizer, tasks, ruled.mode, reward, rollouts, seed, enforcement=how, ruled=ruled
            )
            for how in peers
            for ruled in points[: len(limited)]
        ]
    finally:
        engine.close()
    return budget_curve(points, unlimited, off)


def accuracy_series(curve: Curve) -> tuple[dict[str, list[tuple[float, float, float, float]]], list[str]]:
    """For a plot: by enforcement, (place, accuracy, low, high) in percent; and the places' budgets."""
    budgets = [point.result.mode.budget for point in curve.points]
    series: dict[str, list[tuple[float, float, float, float]]] = {}
    for how, points in {"rule": curve.points, **curve.peers}.items():
        scores = [(budgets.index(point.result.mode.budget), point.result.score) for point in points]
        series[ENFORCED[how]] = [(place, 100 * each.value, 100 * each.low, 100 * each.high) for place, each in scores]
    return series, ["∞" if budget is None else str(budget) for budget in budgets]


def curve_table(curve: Curve) -> list[dict[str, str]]:
    """The curve as rows of text for a terminal: budget, accuracy with its interval, and further figures."""
    rows = []
    for point in (*curve.points, *(point for points in curve.peers.values() for point in points)):
        figures = point.figures()
        row = {"budget": "unlimited" if point.result.mode.budget is None else str(point.result.mode.budget)}
        if point.result.enforcement != "rule":
            row["budget"] += f", {ENFORCED[point.result.enforcement]}"
        row |= {name: _text(figures[name]) for name in ("accuracy", *SHOWN_FIGURES) if name in figures}
        rows.append(row)
    off = {"budget": "/no_think", "accuracy": _text(curve.off.score)}
    return [*rows, off | {name: _text(curve.off.budget[name]) for name in SHOWN_FIGURES if name in curve.off.budget}]


def _as_dict(point: BudgetPoint) -> dict[str, Any]:
    return {**point.result.as_dict(), **{k: each.as_dict() for k, each in point.against_unlimited.items() if each.n}}


def _against(result: SuiteResult, unlimited: SuiteResult) -> dict[str, Estimate]:
    # Episodes of an environment diverge after their first turn: their completions cannot be paired.
    same = [reading.prompt for reading in result.readings] == [reading.prompt for reading in unlimited.readings]
    return compensation(result.readings, unlimited.readings) if same else {}


def _text(estimate: Estimate) -> str:
    if not estimate.n:
        return "-"
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"
