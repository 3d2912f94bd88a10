"""``kind: merge``: every alpha scored without writing its weights, then one model written."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.files import content_hash, write_json
from nanoalign.common.intervals import Estimate
from nanoalign.common.stage import StageContext
from nanoalign.common.user_code import portable
from nanoalign.data_recipes.config import Mixture
from nanoalign.evaluation.config import Suite
from nanoalign.merge.adapter import open_source
from nanoalign.merge.choose import Choice, Point, on_front
from nanoalign.merge.config import MergeStage
from nanoalign.merge.interpolate import Progress, write_interpolations
from nanoalign.merge.model_card import write_card
from nanoalign.merge.pair import Pair, make_pair
from nanoalign.merge.sweep import sweep
from nanoalign.reward.base import Tally
from nanoalign.rollouts.base import Mode

if TYPE_CHECKING:
    import torch

    from nanoalign.rollouts.base import RolloutEngine

Score = Callable[[str, "RolloutEngine"], Estimate]
"""Takes the measurement of that name (see :func:`measurements`) on the weights that the engine holds; higher is
better."""


def run(
    config: MergeStage, mixtures: Mapping[str, Mixture], context: StageContext, suites: Mapping[str, Suite]
) -> dict[str, Any]:
    """Scores alpha 0, the configured alphas and alpha 1, chooses, and writes ``model/`` with a card and ``sweep.json``.

    Alpha 0 is ``context.inputs["reasoning"]``, alpha 1 ``context.inputs["chat"]``. ``sweep.json`` is written after
    every alpha: a stopped stage resumes where it was. Weights are written once, at the end.

    Returns:
        ``merge.alpha``; ``merge.on_pareto`` (1 where the chosen point is a true merge, no end, that no other point
        dominates); ``merge.reasoning`` and ``merge.chat`` of the winner, and with ``.alpha_0`` and ``.alpha_1`` of the
        two ends; ``answers``, what was wrong with the completions.

    Raises:
        CheckpointError: the inputs are damaged or do not fit together.
        ConfigError: an alpha is out of range, a suite is unknown or has no samples, or the disk is too small.
    """
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.evaluation.suites import load_suite, make_scorer, suite_reward
    from nanoalign.models.loading import load_tokenizer
    from nanoalign.models.training import resolve_device

    names = suite_names(config)
    unknown = [name for name in names if name not in suites]
    if unknown:
        raise ConfigError(f"merge: unknown suite {unknown[0]!r}")
    device = resolve_device(context.device)
    chat, kept = chat_format(context.chat), context.folder / "answers.json"
    tally = Tally.from_dicts([json.loads(kept.read_text(encoding="utf-8"))] if kept.exists() else [])
    tokenizer = load_tokenizer(context.inputs["reasoning"])
    measure = make_scorer(
        {
            name: load_suite(name, suites[name], mixtures, context.data_root, context.seed, chat, tokenizer)
            for name in names
        },
        {name: suite_reward(suites[name], context.inputs, device) for name in names},
        chat,
        tokenizer,
        config.rollouts,
        context.seed,
        tally,
    )
    modes = measurements(config)
    settings = {name: portable(suites[name].model_dump()) for name in names}

    def score(name: str, engine: "RolloutEngine") -> Estimate:
        estimate = measure(modes[name][0], engine, modes[name][1])
        write_json(kept, tally.as_dict())
        return estimate

    return run_sweep(config, score, context, settings) | {"answers": tally.as_dict()}


def suite_names(config: MergeStage) -> list[str]:
    """Every suite that is measured, each once."""
    return list(dict.fromkeys((config.reasoning_suite, config.chat_suite, *config.more_suites)))


def measurements(config: MergeStage) -> dict[str, tuple[str, Mode]]:
    """What is measured at every alpha: each suite with unlimited thinking under its own name, and the reasoning suite
    under a thinking budget of 64 tokens, say, as ``reasoning@64``."""
    budgeted = {f"{config.reasoning_suite}@{budget}": budget for budget in config.budgets}
    return {name: (name, Mode(True)) for name in suite_names(config)} | {
        name: (config.reasoning_suite, Mode(True, budget)) for name, budget in budgeted.items()
    }


def run_sweep(
    config: MergeStage, score: Score, context: StageContext, settings: object = None, progress: Progress | None = None
) -> dict[str, float | dict[str, float]]:
    """:func:`run` with any ``score``. Points recorded under other ``settings`` (what the scores depend on besides the
    stage's own section, the inputs and the seed) are measured again. ``progress`` follows the bytes of the final write.
    """
    pair = make_pair(open_source(context.inputs["reasoning"]), open_source(context.inputs["chat"]))
    choice = Choice(config.reasoning_suite, config.chat_suite, config.choose, config.weights, config.max_reasoning_loss)
    names = list(measurements(config))
    sources = {"A": pair.a.fingerprint(), "B": pair.b.fingerprint()}
    identity = content_hash([sources, names, settings, config.rollouts.identity(), context.chat, context.seed])
    record = context.folder / "sweep.json"
    points = _recorded(record, identity)
    total = len({0.0, 1.0, *config.alphas}) + config.refine

    def save(chosen: Point | None = None) -> None:
        front = [point.alpha for point in points if on_front(point, points, choice)]
        write_json(record, {
            "identity": identity, "inputs": sources, "reasoning_suite": choice.reasoning, "chat_suite": choice.chat,
            "choose": choice.method, "chosen": chosen and chosen.alpha, "front": front,
            "points": [point.as_dict() for point in sorted(points, key=lambda point: point.alpha)],
        })  # fmt: skip

    def keep(point: Point) -> None:
        points.append(point)
        save()
        values = {suite: score.value for suite, score in point.scores.items()}
        context.log.metrics(len(points), total, alpha=point.alpha, **values)

    engine, live = _open(config, context)
    try:
        chosen, points = sweep(
            pair,
            engine,
            config.alphas,
            lambda alpha: {name: score(name, engine) for name in names},
            choice,
            live=live,
            refine=config.refine,
            known=points,
            on_point=keep,
        )
    finally:
        engine.close()
    del live
    save(chosen)
    write_winner(pair, chosen, context.folder / "model", progress)
    return figures(chosen, points, choice)


def write_winner(pair: Pair, chosen: Point, folder: Path, progress: Progress | None = None) -> None:
    """The chosen merge with its card, written atomically."""

    def annotate(alpha: float, written: Path) -> None:
        write_card(written, {"A": pair.a, "B": pair.b}, "linear", {"alpha": alpha}, chosen.scores)

    write_interpolations(pair, {chosen.alpha: folder}, progress=progress, annotate=annotate)


def figures(chosen: Point, points: list[Point], choice: Choice) -> dict[str, float | dict[str, float]]:
    """The stage's flat map of figures; see :func:`run`."""
    by_alpha = {point.alpha: point for point in points}
    result: dict[str, float | dict[str, float]] = {
        "merge.alpha": chosen.alpha,
        "merge.on_pareto": float(0.0 < chosen.alpha < 1.0 and on_front(chosen, points, choice)),
    }
    for label, suite in (("reasoning", choice.reasoning), ("chat", choice.chat)):
        result[f"merge.{label}"] = chosen.scores[suite].as_dict()
        for end in (0.0, 1.0):
            result[f"merge.{label}.alpha_{end:g}"] = by_alpha[end].scores[suite].as_dict()
    return result


def _recorded(record: Path, identity: str) -> list[Point]:
    """The points of an earlier run with the same inputs, suites and sampling; none otherwise."""
    if not record.exists():
        return []
    value: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return [Point.from_dict(point) for point in value["points"]] if value["identity"] == identity else []


def _open(config: MergeStage, context: StageContext) -> "tuple[RolloutEngine, Mapping[str, torch.Tensor] | None]":
    """The engine on the reasoning model, and the state dict behind it where it lives in this process."""
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.loading import load_tokenizer
    from nanoalign.models.training import resolve_device
    from nanoalign.rollouts import open_for_eval
    from nanoalign.rollouts.hf import HFEngine

    folder, device = context.inputs["reasoning"], resolve_device(context.device)
    engine = open_for_eval(
        config.rollouts, folder, load_tokenizer(folder), chat_format(context.chat), device,
        budgets=bool(config.budgets), exchange=context.folder / "exchange",
    )  # fmt: skip
    return engine, engine.model.state_dict() if isinstance(engine, HFEngine) else None
