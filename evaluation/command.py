"""``nanoalign evaluate MODEL``: models outside a recipe on public benchmarks and a recipe's suites."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.files import content_hash, write_json
from nanoalign.common.intervals import Estimate
from nanoalign.data_recipes.config import Mixture
from nanoalign.evaluation.benchmarks import BENCHMARKS, benchmark
from nanoalign.evaluation.config import Suite
from nanoalign.evaluation.contamination import Found, clean_score, look
from nanoalign.evaluation.engines import Engines
from nanoalign.evaluation.records import label
from nanoalign.evaluation.result import SuiteResult
from nanoalign.evaluation.suites import Job
from nanoalign.evaluation.tasks import Tasks, load_suite, read_from, suite_reward
from nanoalign.rollouts.base import Mode
from nanoalign.rollouts.config import Rollouts

MODES = ("think", "no_think")


@dataclass(frozen=True)
class Question:
    """What is to be measured."""

    models: Mapping[str, str]
    """Name to a model's spec."""
    suites: Mapping[str, Suite]
    modes: Sequence[Mode]
    rollouts: Rollouts
    """``max_tokens`` is replaced where ``room`` is given."""
    max_tokens: int | None = None
    """Of every completion; None: as much as the suite, the mode and the model's context leave (:func:`room`)."""
    chat: str = "nemotron-nano-v2"
    device: str = "auto"
    seed: int = 0
    data_root: Path | None = None
    mixtures: Mapping[str, Mixture] = field(default_factory=dict)
    """A recipe's, for its own suites; those that it trains on are looked through for the benchmarks' questions."""


def modes_of(names: Sequence[str], budgets: Sequence[int | None]) -> list[Mode]:
    """``think`` under each budget (None: unlimited), and ``no_think``. Raises ConfigError for another name."""
    from nanoalign.common.printable import known

    modes = []
    for name in names:
        known("mode", name, MODES)
        modes += [Mode(True, budget) for budget in budgets or [None]] if name == "think" else [Mode(False)]
    return list(dict.fromkeys(modes))


def named(specs: Sequence[str]) -> dict[str, str]:
    """Models by short names for folders and tables: the last part of each spec, all of it where two share that. A
    stage's RUN/STAGE/model is RUN-STAGE: every stage's folder ends in `model`."""
    short = {spec: _slug(_last(spec.rstrip("/")) or spec) for spec in dict.fromkeys(specs)}
    taken = list(short.values())
    names: dict[str, str] = {}
    for spec, name in short.items():
        name = name if taken.count(name) == 1 else _slug(spec)
        while name in names:  # ../x and ./x
            name += "-other"
        names[name] = spec
    return names


def _last(spec: str) -> str:
    *before, last = spec.split("/")
    return "-".join(before[-2:]) if last == "model" and any(before) else last


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"


def room(suite: Suite, mode: Mode, grace: int, asked: int | None, context: int | None) -> int:
    """Tokens of a completion: as asked; else of a benchmark what its answer needs, after the budget and its grace or
    without thinking, and with unlimited thinking all that it allows; half of the model's context at most."""
    if asked is not None:
        return asked
    entry = benchmark(suite.benchmark)[0] if suite.benchmark is not None else BENCHMARKS["math500"]
    if mode.thinking and mode.budget is None:
        wanted = entry.max_tokens
    else:
        wanted = entry.answer_tokens + (mode.budget + grace if mode.thinking and mode.budget is not None else 0)
    return wanted if context is None else min(wanted, max(1, context // 2))


def run(question: Question, out: Path, note: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measures every model on every suite in every mode, with one engine, and returns what ``out/evaluation.json``
    holds: ``models.<name>.suites.<suite>.<mode>``, and ``contamination``. ``out/records/<name>/<suite>.<mode>.jsonl``
    has a row a completion. The same question in the same folder goes on where it was stopped.

    Raises:
        ConfigError: another question was asked in this folder; a suite or a model that cannot be had.
        DataError: a benchmark that is neither mirrored nor on the hub.
    """
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.loading import describe_model, load_tokenizer, resolve
    from nanoalign.models.training import resolve_device

    chat, device = chat_format(question.chat), resolve_device(question.device)
    folders = {name: resolve(spec) for name, spec in question.models.items()}
    first = load_tokenizer(next(iter(folders.values())))
    suites = {
        name: load_suite(name, suite, question.mixtures, question.data_root, question.seed, chat, first)
        for name, suite in question.suites.items()
    }
    report = _report(question, folders, suites, out)
    seen = look(list(suites.values()), question.mixtures, question.data_root, question.seed)
    report["contamination"] = {name: found.as_dict() for name, found in seen.items()}
    rewards = {name: suite_reward(suite, {}, device) for name, suite in question.suites.items()}
    engines = Engines(question.rollouts, chat, device, None)
    try:
        for name, folder in folders.items():
            if name in report["models"]:
                continue
            context = describe_model(folder)["max_length"]
            for suite, length in _lengths(question.suites):
                if context is not None and length > context:
                    note(f"NOTE: {suite} has {length:,} tokens, and {name} is made for {context:,}")

            def rollouts(suite: str, mode: Mode, context: int | None = context) -> Rollouts:
                tokens = room(question.suites[suite], mode, question.rollouts.grace, question.max_tokens, context)
                return question.rollouts.model_copy(update={"max_tokens": tokens})

            def done(job: Job, result: SuiteResult, name: str = name) -> None:
                note(f"{name}, {result.suite}, {label(result.mode)}: {shown(result.score.as_dict())}")

            jobs = [
                Job(tasks, mode, rewards[suite], rollouts(suite, mode))
                for suite, tasks in suites.items()
                for mode in question.modes
            ]
            results = engines.measure(
                folder, jobs, load_tokenizer(folder), out / "records" / name, question.seed, done, _Ticker(name, note)
            )
            report["models"][name] = {"spec": question.models[name], "suites": _by_suite(results, seen)}
            write_json(out / "evaluation.json", report)
    finally:
        engines.close()
    write_json(out / "evaluation.json", report)
    return report


class _Ticker:
    """Notes how many answers are there: at the beginning where some are, then every 30 seconds."""

    def __init__(self, name: str, note: Callable[[str], None], every_s: float = 30.0) -> None:
        self.name, self.note, self.every_s, self.last = name, note, every_s, time.monotonic()
        self.begun = False

    def __call__(self, answers: int, of: int) -> None:
        if not self.begun and answers:
            self.note(f"{self.name}: going on, {answers:,} of {of:,} answers are there")
        elif time.monotonic() - self.last >= self.every_s:
            self.last = time.monotonic()
            self.note(f"{self.name}: {answers:,} of {of:,} answers")
        self.begun = True


def _lengths(suites: Mapping[str, Suite]) -> Iterator[tuple[str, int]]:
    """The suites whose name holds a number of tokens."""
    for name, suite in suites.items():
        length = benchmark(suite.benchmark)[1] if suite.benchmark is not None else None
        if length is not None:
            yield name, length


def _report(question: Question, folders: Mapping[str, Path], suites: Mapping[str, Tasks], out: Path) -> dict[str, Any]:
    """What an earlier run of the same question left in the folder, or a new report."""
    parts = {
        "models": {name: [str(folder), _files(folder)] for name, folder in folders.items()},
        "suites": {name: suite.identity() for name, suite in question.suites.items()},
        "tasks": {name: [str(each.messages) for each in tasks.conversations] for name, tasks in suites.items()},
        "modes": [label(mode) for mode in question.modes], "max_tokens": question.max_tokens,
        "rollouts": question.rollouts.identity(), "chat": question.chat, "seed": question.seed,
    }  # fmt: skip
    identity = {part: content_hash(value) for part, value in parts.items()}
    file = out / "evaluation.json"
    if file.exists():
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        before = report.get("identity")
        if before != identity:
            others = [part for part in identity if not isinstance(before, dict) or before.get(part) != identity[part]]
            raise ConfigError(f"{out} holds another evaluation (other {', '.join(others)}); choose another --out")
        return report
    report = {
        "identity": identity,
        "suites": {
            name: {
                "tasks": len(tasks), "completions": tasks.completions, "metric": metric(question.suites[name]),
                "data": content_hash([[str(each.messages), str(each.task)] for each in tasks.conversations]),
                "read": read_from(question.suites[name], question.data_root),
            }
            for name, tasks in suites.items()
        },
        "modes": [label(mode) for mode in question.modes],
        "models": {},
    }  # fmt: skip
    write_json(file, report)
    return report


def _files(folder: Path) -> list[tuple[str, int, int]]:
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.safetensors"))]


def _by_suite(results: Mapping[tuple[str, Mode], SuiteResult], seen: Mapping[str, Found]) -> dict[str, Any]:
    suites: dict[str, Any] = {}
    for (suite, mode), result in results.items():
        row = result.as_dict()
        if suite in seen and seen[suite].met:
            row["clean"] = clean_score(result, seen[suite]).as_dict()
        suites.setdefault(suite, {})[label(mode)] = row
    return suites


def metric(suite: Suite) -> str:
    """What a suite's score is called."""
    return benchmark(suite.benchmark)[0].metric if suite.benchmark is not None else "score"


def shown(estimate: Mapping[str, float]) -> str:
    """A share in percent with its interval; a score outside [0, 1] as it is."""
    scale = 100.0 if 0 <= estimate["value"] <= 1 else 1.0
    value, low, high = (scale * estimate[part] for part in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def points(difference: Estimate) -> str:
    """A difference of shares in points, with its sign and interval."""
    value, low, high = (100 * each for each in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The report as rows of text: model, suite, mode, the score and, where there are any, pass@k, a benchmark's further
    figures, the share of tasks found in training data and the score without them."""
    rows = []
    for name, model in report["models"].items():
        for suite, modes in model["suites"].items():
            for mode, result in modes.items():
                about = report["suites"][suite]
                several = about["completions"] > 1
                row = {"model": name} if len(report["models"]) > 1 else {}
                row |= {"suite": suite, "mode": mode, "tasks": str(about["tasks"])}
                row["score"] = shown(result["score"]) + (f" avg@{about['completions']}" if several else "")
                best = max(map(int, result.get("pass_at", {"0": None})), default=0)
                if best:
                    row[f"pass@{best}"] = shown(result["pass_at"][str(best)])
                row["thinking tokens"] = (
                    f"{result['thinking_tokens']['value']:.0f}" if "thinking_tokens" in result else ""
                )
                row["finished"] = f"{100 * result['finished']['value']:.0f}%" if "finished" in result else ""
                row |= {figure: shown(each) for figure, each in result.get("more", {}).items()}
                met = report.get("contamination", {}).get(suite, {"met": 0})["met"]
                if met:
                    row["seen in training"] = f"{met} of {about['tasks']}"
                    row["score without them"] = shown(result["clean"])
                rows.append(row)
    return rows
