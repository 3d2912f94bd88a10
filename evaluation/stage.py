"""``kind: evaluate``: every checkpoint on every suite, with thinking and without, and under every thinking budget."""

import json
from collections.abc import Mapping
from typing import Any

from nanoalign.common.files import write_json
from nanoalign.common.intervals import Estimate, proportion
from nanoalign.common.stage import StageContext
from nanoalign.data_recipes.config import Mixture
from nanoalign.evaluation.budget_curve import Curve, budget_curve, label
from nanoalign.evaluation.config import EvaluateStage, Suite
from nanoalign.evaluation.contamination import clean_score, look
from nanoalign.evaluation.engines import Engines
from nanoalign.evaluation.suites import Job, SuiteResult, load_suite, suite_reward
from nanoalign.evaluation.tasks import read_from
from nanoalign.reward.base import Tally
from nanoalign.rollouts.base import Mode

SHOWN = 4
"""Samples of each suite and mode written to samples.jsonl."""

Figures = dict[str, float | dict[str, Any]]


def run(
    config: EvaluateStage, mixtures: Mapping[str, Mixture], context: StageContext, suites: Mapping[str, Suite]
) -> Figures:
    """Measures the checkpoint ``context.inputs[name]`` for each name in ``config.of``.

    Writes ``evaluation.json``, after every checkpoint: ``checkpoints.<name>.suites.<suite>.{on, off}`` and
    ``checkpoints.<name>.budget_curve``, a list of points; and ``records/<name>/<suite>.<mode>.jsonl``, a row a
    completion. A stage that was stopped goes on after the completions that had ended. Returns figures with intervals:

    - ``<checkpoint>.<suite>.on`` and ``.off``: accuracy, or a judge's mean score
    - ``<checkpoint>.<suite>.budget_<n>``: the same under a budget of ``suite_budgets``
    - ``<checkpoint>.<suite>.on.pass_at_<k>`` and a benchmark's further figures, likewise ``.off``
    - ``<suite>.contaminated``: the share of a benchmark's tasks that the recipe's training data holds
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
    tokenizer = load_tokenizer(context.inputs[config.of[0]])
    tasks = {
        name: load_suite(name, suites[name], mixtures, context.data_root, context.seed, chat, tokenizer)
        for name in names
    }
    rewards = {name: suite_reward(suites[name], context.inputs, device) for name in names}
    limited = [budget for budget in config.budgets if budget is not None] if config.budget_suite else []
    curved = config.of if config.budget_of is None else config.budget_of
    per_suite = [Mode(True), Mode(False), *(Mode(True, budget) for budget in config.suite_budgets)]
    asked = [(name, mode) for name in names for mode in dict.fromkeys(per_suite)]
    more = [(config.budget_suite or "", Mode(True, budget)) for budget in dict.fromkeys(limited)]
    more = [each for each in more if each not in asked]
    total = len(config.of) * len(asked) + len(curved) * len(more)
    record = context.folder / "evaluation.json"
    read = {name: files for name in names if (files := read_from(suites[name], context.data_root))}
    counts = {name: len(each) for name, each in tasks.items()}
    report: dict[str, Any] = {"tasks": counts, "read": read, "checkpoints": {}}
    if record.exists():  # this very stage was stopped: the runner clears the folder where anything has changed
        report = json.loads(record.read_text(encoding="utf-8"))
    seen = look(list(tasks.values()), mixtures, context.data_root, context.seed) if config.contamination else {}
    if seen:
        report["contamination"] = {name: each.as_dict() for name, each in seen.items()}
    done = sum(len(asked) + len(more) * (name in curved) for name in report["checkpoints"])

    engines = Engines(rollouts, chat, device, context.folder / "exchange")
    try:
        for checkpoint in config.of:
            if checkpoint in report["checkpoints"]:
                continue
            folder = context.inputs[checkpoint]
            tally = Tally()

            def note(job: Job, result: SuiteResult, checkpoint=checkpoint, tally=tally) -> None:  # type: ignore[no-untyped-def]
                nonlocal done
                done += 1
                tally.join(result.answers)
                phase = f"{checkpoint}, {result.suite}, {label(result.mode)}"
                context.log.metrics(done, total, score=result.score.value, phase=phase)
                _show(context, checkpoint, result)

            jobs = [
                Job(tasks[name], mode, rewards[name], rollouts)
                for name, mode in [*asked, *(more if checkpoint in curved else [])]
            ]
            records = context.folder / "records" / checkpoint
            measured = engines.measure(folder, jobs, load_tokenizer(folder), records, context.seed, note)
            results = {name: (measured[name, Mode(True)], measured[name, Mode(False)]) for name in names}
            curve = None
            if config.budget_suite is not None and checkpoint in curved:
                points = [measured[config.budget_suite, Mode(True, budget)] for budget in limited]
                curve = budget_curve(points, *results[config.budget_suite])
            budgets = {
                name: {budget: measured[name, Mode(True, budget)] for budget in config.suite_budgets} for name in names
            }
            report["checkpoints"][checkpoint] = {
                "suites": {
                    name: {"on": on.as_dict(), "off": off.as_dict()}
                    | (
                        {"budgets": {str(n): each.as_dict() for n, each in budgets[name].items()}}
                        if budgets[name]
                        else {}
                    )
                    | ({"clean": clean_score(on, seen[name]).as_dict()} if name in seen and seen[name].met else {})
                    for name, (on, off) in results.items()
                },
                "budget_curve": curve.as_dict() if curve else None,
                "figures": checkpoint_figures(checkpoint, results, curve, budgets),
                "answers": tally.as_dict(),
            }
            write_json(record, report)
    finally:
        engines.close()
    checkpoints = report["checkpoints"].values()
    answers = Tally.from_dicts(each["answers"] for each in checkpoints)
    met = {f"{name}.contaminated": proportion(len(each.met), each.tasks).as_dict() for name, each in seen.items()}
    return (
        {name: value for each in checkpoints for name, value in each["figures"].items()}
        | met
        | {"answers": answers.as_dict()}
    )


def checkpoint_figures(
    checkpoint: str, results: Mapping[str, tuple[SuiteResult, SuiteResult]], curve: Curve | None,
    budgets: Mapping[str, Mapping[int, SuiteResult]] | None = None,
) -> Figures:  # fmt: skip
    """The flat figures of one checkpoint; see :func:`run`."""
    estimates: dict[str, Estimate] = {}
    for name, (on, off) in results.items():
        estimates |= {f"{name}.on": on.score, f"{name}.off": off.score}
    direct = [reading for _, off in results.values() for reading in off.readings]
    estimates["obedience"] = proportion(sum(reading.obeys_no_think for reading in direct), len(direct))
    for name, each in (budgets or {}).items():
        estimates |= {f"{name}.budget_{budget}": result.score for budget, result in each.items()}
    for name, pair in results.items():
        for way, result in zip(("on", "off"), pair):
            estimates |= {f"{name}.{way}.pass_at_{k}": each for k, each in result.pass_at.items()}
            estimates |= {f"{name}.{way}.{figure}": each for figure, each in result.more.items()}
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
