"""Suites: sets of held-out tasks, and how a model does on them in a thinking mode."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoalign.budget_control.measure import Reading, analyse, summary
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import ConfigError
from nanoalign.common.intervals import Estimate, average
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.conversation import Message
from nanoalign.evaluation.benchmarks import benchmark
from nanoalign.evaluation.records import Keeping, Kept, episode_record, label, record, task_names, write_records
from nanoalign.evaluation.result import (
    CORRECT,
    Enforcement,
    SuiteResult,
    over_tasks,
    pass_at,
    share_correct,
)
from nanoalign.evaluation.tasks import JUDGED, Tasks, load_suite, prompt_messages, suite_reward
from nanoalign.reward.base import Reward, Sample, Tally
from nanoalign.rollouts.base import Completion, Mode, sampling
from nanoalign.rollouts.config import Rollouts

if TYPE_CHECKING:
    from nanoalign.rollouts.base import Request, RolloutEngine, Sampling

__all__ = [
    "CORRECT", "JUDGED", "Enforcement", "Job", "SuiteResult", "Tasks", "evaluate", "evaluate_all", "load_suite",
    "make_scorer", "prompt_messages", "suite_reward",
]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One suite to be measured in one mode."""

    tasks: Tasks
    mode: Mode
    reward: Reward
    rollouts: Rollouts
    enforcement: Enforcement = "rule"
    ruled: SuiteResult | None = None
    """For enforcement ``none``: the same suite under the same budget and the rule."""

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.tasks.name}.{label(self.mode)}" + ("" if self.enforcement == "rule" else f".{self.enforcement}")

    def sampling(self, seed: int, number: int) -> "Sampling":
        """The settings of a completion, from its seed and its place."""
        suite, kept = self.tasks.config, self.rollouts
        entry = benchmark(suite.benchmark)[0] if suite.benchmark is not None else None
        temperature = suite.temperature if suite.temperature is not None else entry and entry.temperature
        top_p = suite.top_p if suite.top_p is not None else entry and entry.top_p
        changed = {"temperature": temperature, "top_p": top_p, "grace": 0 if self.enforcement == "hard" else None}
        kept = kept.model_copy(update={key: value for key, value in changed.items() if value is not None})
        if self.enforcement == "none":
            assert self.ruled is not None
            return replace(sampling(kept, Mode(self.mode.thinking), seed),
                           max_tokens=max(1, self.ruled.readings[number].tokens))  # fmt: skip
        return sampling(kept, self.mode, seed)


def evaluate(
    engine: "RolloutEngine",
    chat: ChatFormat,
    tokenizer: Any,
    tasks: Tasks,
    mode: Mode,
    reward: Reward,
    rollouts: Rollouts,
    seed: int = 0,
    *,
    enforcement: Enforcement = "rule",
    ruled: "SuiteResult | None" = None,
    folder: Path | None = None,
) -> SuiteResult:
    """Answers every task in ``mode`` and scores the answers. ``enforcement: none`` takes every completion's number of
    tokens from ``ruled``, the same suite under the same budget and the rule. See :func:`evaluate_all` for ``folder``.

    Without thinking the prompt contains ``/no_think``: obedience is measured on what a user would write. The completion
    of a task has the same seed in every mode and under every budget.

    Raises:
        ConfigError: enforcement ``none`` without ``ruled``, or on an environment, whose episodes have many turns; a
            prompt that is longer than the engine's context.
    """
    job = Job(tasks, mode, reward, rollouts, enforcement, ruled)
    [result] = evaluate_all(engine, chat, tokenizer, [job], seed, folder=folder)
    return result


def evaluate_all(
    engine: "RolloutEngine",
    chat: ChatFormat,
    tokenizer: Any,
    jobs: Sequence[Job],
    seed: int = 0,
    *,
    folder: Path | None = None,
    done: Callable[[Job, SuiteResult], None] = lambda job, result: None,
    ended: Callable[[int, int], None] = lambda answers, of: None,
) -> list[SuiteResult]:
    """Several jobs, their single answers all asked for at once, so that no suite's last long answer leaves an engine
    idle. ``done`` is told of each job's result, in order; ``ended`` how many single answers are there, of how many.

    With ``folder``, completions are kept there as they end (``<suite>.<mode>.completions.jsonl``) and not asked for
    again after a crash; ``<suite>.<mode>.jsonl`` has a record of each once its job is done.
    """
    for job in jobs:
        if job.enforcement == "none" and (job.ruled is None or job.tasks.environment is not None):
            raise ConfigError(
                f"suite {job.tasks.name}: enforcement none needs single answers, and the rule's results first"
            )
    tokens = ThinkingTokens.from_tokenizer(tokenizer, chat.think_open, chat.think_close, chat.stop)
    asked = {
        place: _ask(job, chat, tokenizer, seed, engine.max_length)
        for place, job in enumerate(jobs)
        if job.tasks.environment is None
    }
    answers = _generate(engine, [(jobs[place], each) for place, each in asked.items()], folder, ended)
    results = []
    for place, job in enumerate(jobs):
        if place in asked:
            run = _judge(job, asked[place], answers[job.name], chat, tokenizer, tokens)
        else:
            run = _play(job, engine, chat, tokenizer, tokens, seed, folder)
        if folder is not None and run.rows:
            write_records(folder / f"{job.name}.jsonl", run.rows)
        results.append(_result(job, run))
        done(job, results[-1])
    return results


def make_scorer(
    suites: Mapping[str, Tasks],
    rewards: Mapping[str, Reward],
    chat: ChatFormat,
    tokenizer: Any,
    rollouts: Rollouts,
    seed: int = 0,
    tally: Tally | None = None,
) -> "Callable[[str, RolloutEngine, Mode], Estimate]":
    """``score(suite name, engine, mode)``: the suite's score alone, as merge sweeps need it; what was wrong with the
    completions is added to ``tally``."""

    def score(name: str, engine: "RolloutEngine", mode: Mode) -> Estimate:
        result = evaluate(engine, chat, tokenizer, suites[name], mode, rewards[name], rollouts, seed)
        if tally is not None:
            tally.join(result.answers)
        return result.score

    return score


@dataclass
class _Run:
    """What came of a job: scores and domains of its completions, what was read of them, what was wrong with them."""

    scores: list[float]
    domains: list[str]
    """Of the tasks."""
    readings: list[Reading]
    tally: Tally
    rows: list[dict[str, Any]] = field(default_factory=list)
    more: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """A job's questions: ``completions`` requests a task, task by task."""

    histories: "list[tuple[Message, ...]]"
    requests: "list[Request]"


def _ask(job: Job, chat: ChatFormat, tokenizer: Any, seed: int, longest: int | None) -> _Asked:
    from nanoalign.rollouts.base import Request
    from nanoalign.rollouts.seeds import derive_seed

    asked, suite = _Asked([], []), job.tasks.name
    for number, conversation in enumerate(job.tasks.conversations):
        history = conversation.messages
        history = history[:-1] if history[-1].role == "assistant" else history
        if not any(message.role == "user" for message in history):
            raise ConfigError(f"suite {suite}: {conversation.origin or conversation.id}: no user message to answer")
        text = chat.prompt(prompt_messages(history, job.mode), conversation.tools)
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        if longest is not None and len(ids) >= longest:
            raise ConfigError(
                f"suite {suite}: the prompt of task {conversation.id or number} has {len(ids)} tokens, "
                f"and the engine's context ends at {longest}"
            )
        asked.histories.append(history)
        for sample in range(job.tasks.completions):
            own = derive_seed(seed, number, sample) if sample else derive_seed(seed, number)
            asked.requests.append(Request(ids, job.sampling(own, len(asked.requests))))
    return asked


def _generate(
    engine: "RolloutEngine", asked: Sequence[tuple[Job, _Asked]], folder: Path | None, ended: Callable[[int, int], None]
) -> dict[str, list[Completion]]:
    """The completions of each job, by its name: those that were kept, and new ones, all asked for at once."""
    total = sum(len(each.requests) for _, each in asked)
    if folder is None:
        counted = count(1)
        requests = [request for _, each in asked for request in each.requests]
        completions = iter(engine.generate(requests, lambda *_: ended(next(counted), total)))
        return {job.name: [next(completions) for _ in each.requests] for job, each in asked}
    kept = {job.name: Kept(folder / f"{job.name}.completions.jsonl") for job, _ in asked}
    found = {job.name: [kept[job.name].find(request) for request in each.requests] for job, each in asked}
    places = [
        (job.name, place, request)
        for job, each in asked
        for place, request in enumerate(each.requests)
        if found[job.name][place] is None
    ]
    there = count(total - len(places))
    if places:
        ended(next(there), total)

    def keep(number: int, completion: Completion) -> None:
        name, place, request = places[number]
        found[name][place] = completion
        kept[name].keep(request, completion)
        ended(next(there), total)

    try:
        if places:
            engine.generate([request for _, _, request in places], keep)
    finally:
        for each in kept.values():
            each.close()
    return {name: [completion for completion in each if completion is not None] for name, each in found.items()}


def _judge(
    job: Job, asked: _Asked, completions: Sequence[Completion], chat: ChatFormat, tokenizer: Any, tokens: ThinkingTokens
) -> _Run:
    from nanoalign.rollouts.samples import judged

    samples, readings, each = [], [], job.tasks.completions
    for place, (request, completion) in enumerate(zip(asked.requests, completions, strict=True)):
        conversation, history = job.tasks.conversations[place // each], asked.histories[place // each]
        samples.append(judged(
            history, job.mode, request.prompt_ids, completion, tokens, chat, tokenizer, conversation.task
        ))  # fmt: skip
        readings.append(analyse(
            tokens, tokenizer, request.prompt_ids, completion.token_ids, completion.forced,
            thinking=job.mode.thinking, budget=job.mode.budget, finished=completion.finish == "stop",
        ))  # fmt: skip
    scores, tally = job.reward.score(samples), Tally()
    tally.add((sample.answer for sample in samples), scores)
    domains = [each.domain or each.source for each in job.tasks.conversations]
    return _Run(scores, domains, readings, tally, _rows(job, samples, readings, scores, domains),
                _more(job.tasks, samples, scores))  # fmt: skip


def _rows(
    job: Job, samples: Sequence[Sample], readings: Sequence[Reading], scores: Sequence[float], domains: Sequence[str]
) -> list[dict[str, Any]]:
    names, each = task_names([task.id for task in job.tasks.conversations]), job.tasks.completions
    return [
        record(job.tasks.name, job.mode, names[place // each], place % each, domains[place // each], sample,
               readings[place], scores[place])
        for place, sample in enumerate(samples)
    ]  # fmt: skip


def _more(tasks: Tasks, samples: Sequence[Sample], scores: Sequence[float]) -> dict[str, Estimate]:
    """A benchmark's further figures."""
    entry = benchmark(tasks.config.benchmark)[0] if tasks.config.benchmark is not None else None
    figures = entry.further() if entry is not None else None
    return dict(figures(tasks.conversations, samples, scores)) if figures is not None else {}


def _play(
    job: Job, engine: "RolloutEngine", chat: ChatFormat, tokenizer: Any, tokens: ThinkingTokens, seed: int,
    folder: Path | None,
) -> _Run:  # fmt: skip
    from nanoalign.rollouts.episodes import play
    from nanoalign.rollouts.seeds import derive_seed

    tasks, mode = job.tasks, job.mode
    assert tasks.environment is not None
    kept = Kept(folder / f"{job.name}.completions.jsonl") if folder is not None else None
    player: Any = engine if kept is None else Keeping(engine, kept)
    try:
        records = play(
            player, tasks.environment, tasks.played, 1,
            lambda number, sample, turn: (mode, job.sampling(derive_seed(seed, number, turn), number)),
            chat, tokenizer, tasks.max_turns,
        )  # fmt: skip
    finally:
        if kept is not None:
            kept.close()
    readings = [
        analyse(
            tokens, tokenizer, turn.prompt_ids, turn.completion.token_ids, turn.completion.forced,
            thinking=mode.thinking, budget=mode.budget, finished=turn.completion.finish == "stop",
        )
        for record in records
        for turn in record.turns
    ]  # fmt: skip
    domains = [str(record.task.data.get("kind", tasks.environment.name)) for record in records]
    tally = Tally()
    tally.add(turn.answer for record in records for turn in record.turns)
    for each in records:
        tally.reasons.update(each.faults)
    scores = [float(each.success) for each in records]
    names = task_names([each.task.id for each in records])
    rows = [episode_record(tasks.name, mode, name, domain, each) for name, domain, each in zip(names, domains, records)]
    return _Run(scores, domains, readings, tally, rows, _more(tasks, (), scores))


def _result(job: Job, run: _Run) -> SuiteResult:
    tasks, each = job.tasks, job.tasks.completions
    estimator = average if tasks.judged else share_correct
    by_domain = {
        domain: over_tasks(
            [score for place, score in enumerate(run.scores) if run.domains[place // each] == domain], each, estimator
        )
        for domain in sorted(set(run.domains))
    }
    return SuiteResult(
        tasks.name, job.mode, over_tasks(run.scores, each, estimator), by_domain, tuple(run.scores),
        tuple(run.readings), summary(run.readings), job.enforcement, run.tally, each,
        {} if tasks.judged else pass_at(run.scores, each), run.more,
    )  # fmt: skip
