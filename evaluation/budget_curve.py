"""Accuracy and form against thinking budgets: one suite, the same prompts under each budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budget_control.measure import compensation
from common.errors import ConfigError
from common.stats import Estimate
from data_recipes.config import Mixture
from evaluation.config import Suite
from evaluation.suites import SuiteResult, evaluate, load_suite, suite_reward
from rl.config import Rollouts
from rl.modes import Mode

SHOWN_FIGURES = (
    "well_formed", "overshoot", "overshoot_max", "cut", "thinking_tokens", "answer_tokens", "compensation", "leakage",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A suite under one budget, with compensation and leakage against the unlimited run of the same prompts."""

    result: SuiteResult
    against_unlimited: Mapping[str, Estimate]

    def figures(self) -> dict[str, Estimate]:
        """accuracy and the figures of budget_control/measure.py."""
        return {"accuracy": self.result.score, **self.result.budget, **self.against_unlimited}


@dataclass(frozen=True)
class Curve:
    """The points from the smallest budget to none, and the suite without thinking."""

    points: tuple[Point, ...]
    off: SuiteResult

    def figures(self) -> dict[str, Estimate]:
        """``budget_<n>.<figure>``, n tokens or ``unlimited``, and ``no_think.accuracy``."""
        flat = {
            f"{label(point.result.mode)}.{name}": estimate
            for point in self.points
            for name, estimate in point.figures().items()
        }
        return {**flat, "no_think.accuracy": self.off.score}

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``points`` in the order of budgets, and ``off``."""
        points = [
            {**point.result.as_dict(), **{k: each.as_dict() for k, each in point.against_unlimited.items() if each.n}}
            for point in self.points
        ]
        return {"suite": self.off.suite, "points": points, "off": self.off.as_dict()}


def budget_curve(limited: Sequence[SuiteResult], unlimited: SuiteResult, off: SuiteResult) -> Curve:
    """The curve from runs of one suite: under budgets, with unlimited thinking, and without thinking."""
    ordered = sorted(limited, key=lambda result: result.mode.budget or 0)
    points = [Point(result, _against(result, unlimited)) for result in ordered]
    return Curve((*points, Point(unlimited, {})), off)


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
    data_root: Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Curve:
    """``nanoalign budget-curve MODEL``: measures one model outside a recipe. Unlimited thinking and ``/no_think`` are
    always measured beside ``budgets``.

    Raises ConfigError for budgets that leave no room for an answer, and as :func:`evaluation.stage.run` does.
    """
    from data_recipes.chat import chat_format
    from models.loading import load_tokenizer, resolve
    from models.training import resolve_device
    from rl.rollouts import open_engine

    limited = sorted({budget for budget in budgets if budget is not None})
    for budget in limited:
        if budget < 0 or budget + rollouts.grace >= rollouts.max_tokens:
            raise ConfigError(
                f"budget {budget} with grace {rollouts.grace} does not fit max_tokens {rollouts.max_tokens}, "
                "which has to hold an answer too"
            )
    format_, device, folder = chat_format(chat), resolve_device(device), resolve(model)
    tasks = load_suite("budget-curve", suite, mixtures, data_root, seed)
    reward = suite_reward(suite, {}, device)
    tokenizer = load_tokenizer(folder)
    engine = open_engine(
        rollouts.engine, folder, tokenizer, format_, batch_size=rollouts.batch_size, device=device,
        dtype="bfloat16" if device == "cuda" else "float32", settings=rollouts,
    )  # fmt: skip
    try:
        modes = [*(Mode(True, budget) for budget in limited), Mode(True), Mode(False)]
        *points, unlimited, off = [
            evaluate(engine, format_, tokenizer, tasks, mode, reward, rollouts, seed) for mode in modes
        ]
    finally:
        engine.close()
    return budget_curve(points, unlimited, off)


def curve_table(curve: Curve) -> list[dict[str, str]]:
    """The curve as rows of text for a terminal: budget, accuracy with its interval, and the figures beside it."""
    rows = []
    for point in curve.points:
        figures = point.figures()
        row = {"budget": "unlimited" if point.result.mode.budget is None else str(point.result.mode.budget)}
        row |= {name: _text(figures[name]) for name in ("accuracy", *SHOWN_FIGURES) if name in figures}
        rows.append(row)
    off = {"budget": "/no_think", "accuracy": _text(curve.off.score)}
    return [*rows, off | {name: _text(curve.off.budget[name]) for name in SHOWN_FIGURES if name in curve.off.budget}]


def _against(result: SuiteResult, unlimited: SuiteResult) -> dict[str, Estimate]:
    # Episodes of an environment part ways after their first turn: their completions make no pairs.
    same = [reading.prompt for reading in result.readings] == [reading.prompt for reading in unlimited.readings]
    return compensation(result.readings, unlimited.readings) if same else {}


def _text(estimate: Estimate) -> str:
    if not estimate.n:
        return "-"
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"
