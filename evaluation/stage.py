"""``kind: evaluate``: every checkpoint on every suite, with thinking and without, and under every thinking budget."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanoalign.common.files import write_json
from nanoalign.common.intervals import Estimate, proportion
from nanoalign.common.stage import StageContext
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.config import Mixture
from nanoalign.evaluation.budget_curve import Curve, budget_curve, label
from nanoalign.evaluation.config import EvaluateStage, Suite
from nanoalign.evaluation.suites import SuiteResult, evaluate, load_suite, suite_reward
from nanoalign.reward.base import Tally
from nanoalign.rollouts.base import Mode, RolloutEngine

SHOWN = 4
"""Samples of each suite and mode written to samples.jsonl."""

Figures = dict[str, float | dict[str, Any]]


def run(
    config: EvaluateStage, mixtures: Mapping[str, Mixture], context: StageContext, suites: Mapping[str, Suite]
) -> Figures:
    """Measures the checkpoint ``context.inputs[name]`` for each name in ``config.of``.

    Writes ``evaluation.json``, after every checkpoint: ``checkpoints.<name>.suites.<suite>.{on, off}`` and
    ``checkpoints.<name>.budget_curve``, a list of points. Returns figures with intervals:

    - ``<checkpoint>.<suite>.on`` and ``.off``: accuracy, or a judge's mean score
    - ``<checkpoint>.obedience``: completions to ``/no_think`` without thinking, all suites together
    - ``<checkpoint>.budget_<n>.<figure>``, n tokens or ``unlimited``: accuracy, well_formed, overshoot, cut,
      compensation, leakage (see budget_control/measure.py); those without samples are left out
    - ``answers``: completions, and for each reason how many were faulty or not judged on their merits

    Raises:
        ConfigError: a suite that cannot be loaded, or a model that the engine cannot serve.
    """
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.loading import load_tokenizer
    from nanoalign.models.training import resolve_device

    chat, rollouts, device = chat_format(context.chat), config.rollouts, resolve_device(context.device)
    names = list(dict.fromkeys([*config.suites, *([config.budget_suite] if config.budget_suite else [])]))
    tasks = {name: load_suite(name, suites[name], mixtures, context.data_root, context.seed, chat) for name in names}
    rewards = {name: suite_reward(suites[name], context.inputs, device) for name in names}
    limited = [budget for budget in config.budgets if budget is not None] if config.budget_suite else []
    curved = config.of if config.budget_of is None else config.budget_of
    total = len(config.of) * 2 * len(names) + len(curved) * len(limited)
    record = context.folder / "evaluation.json"
    report: dict[str, Any] = {"tasks": {name: len(each) for name, each in tasks.items()}, "checkpoints": {}}
    if record.exists():  # this very stage was stopped: the runner clears the folder where anything has changed
        report = json.loads(record.read_text(encoding="utf-8"))
    done = sum(2 * len(names) + len(limited) * (name in curved) for name in report["checkpoints"])

    engines = _Engines(config, chat, device, context.folder / "exchange")
    try:
        for checkpoint in config.of:
            if checkpoint in report["checkpoints"]:
                continue
            folder = context.inputs[checkpoint]
            tokenizer = load_tokenizer(folder)
            engine = engines.at(folder, tokenizer)
            tally = Tally()

            def measure(  # type: ignore[no-untyped-def]
                name: str, mode: Mode, checkpoint=checkpoint, tokenizer=tokenizer, engine=engine, tally=tally
            ) -> SuiteResult:
                nonlocal done
                result = evaluate(engine, chat, tokenizer, tasks[name], mode, rewards[name], rollouts, context.seed)
                done += 1
                tally.join(result.answers)
                phase = f"{checkpoint}, {name}, {label(mode)}"
                context.log.metrics(done, total, score=result.score.value, phase=phase)
                _show(context, checkpoint, result)
                return result

            results = {name: (measure(name, Mode(True)), measure(name, Mode(False))) for name in names}
            curve = None
            if config.budget_suite is not None and checkpoint in curved:
                points = [measure(config.budget_suite, Mode(True, budget)) for budget in limited]
                curve = budget_curve(points, *results[config.budget_suite])
            report["checkpoints"][checkpoint] = {
                "suites": {name: {"on": on.as_dict(), "off": off.as_dict()} for name, (on, off) in results.items()},
                "budget_curve": curve.as_dict() if curve else None,
                "figures": checkpoint_figures(checkpoint, results, curve),
                "answers": tally.as_dict(),
            }
            write_json(record, report)
    finally:
        engines.close()
    checkpoints = report["checkpoints"].values()
    answers = Tally.from_dicts(each["answers"] for each in checkpoints)
    return {name: value for each in checkpoints for name, value in each["figures"].items()} | {
        "answers": answers.as_dict()
    }


class _Engines:
    """One engine after another; a vLLM is started once and given each checkpoint's weights, as its start takes longer
    than most evaluations."""

    def __init__(self, config: EvaluateStage, chat: ChatFormat, device: str, exchange: Path) -> None:
        self.rollouts, self.chat, self.device, self.exchange = config.rollouts, chat, device, exchange
        self.engine: RolloutEngine | None = None

    def at(self, folder: Path, tokenizer: Any) -> RolloutEngine:
        from nanoalign.models.loading import resolve
        from nanoalign.models.weights import stored_weights
        from nanoalign.rollouts import open_for_eval

        if self.engine is not None and self.rollouts.engine.kind != "hf":
            self.engine.load_weights(stored_weights(resolve(folder)))
            return self.engine
        self.close()
        self.engine = open_for_eval(self.rollouts, folder, tokenizer, self.chat, self.device, exchange=self.exchange)
        return self.engine

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None


def checkpoint_figures(
    checkpoint: str, results: Mapping[str, tuple[SuiteResult, SuiteResult]], curve: Curve | None
) -> Figures:
    """The flat figures of one checkpoint; see :func:`run`."""
    estimates: dict[str, Estimate] = {}
    for name, (on, off) in results.items():
        estimates |= {f"{name}.on": on.score, f"{name}.off": off.score}
    direct = [reading for _, off in results.values() for reading in off.readings]
    estimates["obedience"] = proportion(sum(reading.obeys_no_think for reading in direct), len(direct))
    if curve is not None:
        estimates |= curve.figures()
    return {f"{checkpoint}.{name}": estimate.as_dict() for name, estimate in estimates.items() if estimate.n}


def _show(context: StageContext, checkpoint: str, result: SuiteResult) -> None:
    for score, reading in list(zip(result.scores, result.readings))[:SHOWN]:
        context.log.sample(
            kind="evaluate", stage=checkpoint, suite=result.suite, mode=label(result.mode), prompt=reading.prompt,
            thinking=reading.reasoning, answer=reading.answer, reward=score, well_formed=reading.well_formed,
            thinking_tokens=reading.thinking_tokens, answer_tokens=reading.answer_tokens,
        )  # fmt: skip
