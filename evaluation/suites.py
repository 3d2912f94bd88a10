"""Suites: sets of held-out tasks, and how a model does on one of them in one thinking mode."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nanoalign.budget_control.measure import Reading, analyse, summary
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import ConfigError
from nanoalign.common.intervals import Estimate, mean, proportion
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.chat.render import without_signals
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.evaluation.benchmarks import TaskReading, benchmark
from nanoalign.evaluation.config import Suite
from nanoalign.reward.base import Reward, Tally
from nanoalign.reward.config import is_own
from nanoalign.rollouts.base import Mode, sampling
from nanoalign.rollouts.config import Rollouts

if TYPE_CHECKING:
    from nanoalign.rollouts.base import RolloutEngine, Sampling
    from nanoalign.rollouts.environments.base import Environment, Task

Enforcement = Literal["rule", "hard", "none"]
"""How a thinking budget is enforced: by the rule; by a close forced at the budget, mid-sentence or not; or not at all,
where a completion ends after as many tokens in total as under the rule."""

JUDGED = {"preference", "judge"}
"""Rewards that are not verifiers: their scores are averaged, there is no right or wrong."""
CORRECT = 0.5
"""A verifier's score from which a sample counts as correct."""


@dataclass(frozen=True)
class Tasks:
    """A suite's tasks: conversations to be answered, or tasks of an environment to be played."""

    name: str
    config: Suite
    conversations: Sequence[Conversation] = ()
    environment: "Environment | None" = None
    played: "Sequence[Task]" = ()

    def __len__(self) -> int:
        return len(self.played if self.environment else self.conversations)


@dataclass(frozen=True)
class SuiteResult:
    """How one suite went in one mode. Sequences are in the suite's order, so that results can be compared in pairs."""

    suite: str
    mode: Mode
    score: Estimate
    """The share of correct samples (successful episodes), or the mean score where the reward is not a verifier."""
    by_domain: dict[str, Estimate]
    scores: tuple[float, ...]
    readings: tuple[Reading, ...]
    """One per completion; an episode has one per turn."""
    budget: dict[str, Estimate] = field(default_factory=dict)
    """Figures of :func:`budget_control.measure.summary`."""
    enforcement: Enforcement = "rule"
    answers: Tally = field(default_factory=Tally)
    """What was wrong with the completions, and why rewards did not judge some on their merits."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; figures without samples are left out."""
        return {
            "thinking": self.mode.thinking,
            "budget": self.mode.budget,
            "enforcement": self.enforcement,
            "score": self.score.as_dict(),
            "by_domain": {domain: estimate.as_dict() for domain, estimate in self.by_domain.items()},
            **{name: estimate.as_dict() for name, estimate in self.budget.items() if estimate.n},
            "answers": self.answers.as_dict(),
        }


def load_suite(
    name: str, suite: Suite, mixtures: Mapping[str, Mixture], data_root: Path | None, seed: int,
    chat: ChatFormat | None = None, tokenizer: Any = None,
) -> Tasks:  # fmt: skip
    """The tasks of a suite, the same for the same seed; with ``chat``, whose special tokens no task may hold, and the
    model's ``tokenizer`` for a benchmark of an exact length.

    Raises:
        ConfigError: an unknown mixture or environment, a mixture of training data, or a suite without tasks.
        DataError: bad rows, or a benchmark that is neither mirrored nor on the hub.
    """
    if suite.benchmark is not None:
        from nanoalign.evaluation.benchmark_data import checked

        entry, length = benchmark(suite.benchmark)
        reading = TaskReading(suite.benchmark, entry, length, data_root, seed, suite.samples, tokenizer, chat)
        return Tasks(name, suite, checked(reading, entry.load()(reading)))
    if suite.environment is not None:
        from nanoalign.rollouts.environments import environment

        played = environment(suite.environment, data_root)
        tasks = Tasks(name, suite, environment=played, played=played.tasks("test")[: suite.samples])
    else:
        from nanoalign.data_recipes.selection import build

        if suite.data is None or suite.data not in mixtures:
            raise ConfigError(f"suite {name}: unknown mixture {suite.data!r}")
        mixture = mixtures[suite.data]
        if training := [source for source, use in mixture.uses.items() if use.split != "test"]:
            raise ConfigError(f"suite {name}: {', '.join(training)} is training data; take split: test")
        tasks = Tasks(name, suite, build(mixture, data_root, seed, chat=chat).conversations[: suite.samples])
    if not len(tasks):
        raise ConfigError(f"suite {name} has no tasks")
    return tasks


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
) -> SuiteResult:
    """Answers every task once in ``mode`` and scores the answers. ``enforcement: none`` takes every task's number of
    tokens from ``ruled``, the same suite under the same budget and the rule.

    Without thinking the prompt contains ``/no_think``: obedience is measured on what a user would write. The completion
    of a task has the same seed in every mode and under every budget.

    Raises:
        ConfigError: enforcement ``none`` without ``ruled``, or on an environment, whose episodes have many turns.
    """
    if enforcement == "none" and (ruled is None or tasks.environment is not None):
        raise ConfigError(f"suite {tasks.name}: enforcement none needs single answers, and the rule's results first")
    lengths = [reading.tokens for reading in ruled.readings] if ruled else []

    def settings(seed: int, number: int) -> "Sampling":
        if enforcement == "none":
            return replace(sampling(rollouts, Mode(mode.thinking), seed), max_tokens=max(1, lengths[number]))
        kept = rollouts.model_copy(update={"grace": 0}) if enforcement == "hard" else rollouts
        return sampling(kept, mode, seed)

    tokens = ThinkingTokens.from_tokenizer(tokenizer, chat.think_open, chat.think_close, chat.stop)
    run = _play if tasks.environment is not None else _answer
    scores, domains, readings, tally = run(engine, chat, tokenizer, tokens, tasks, mode, reward, settings, seed)
    estimate = _estimator(tasks)
    by_domain = {
        domain: estimate([score for score, other in zip(scores, domains) if other == domain])
        for domain in sorted(set(domains))
    }
    return SuiteResult(
        tasks.name, mode, estimate(scores), by_domain, tuple(scores), tuple(readings), summary(readings), enforcement,
        tally,
    )  # fmt: skip


def suite_reward(suite: Suite, models: Mapping[str, Path], device: str) -> Reward:
    """The reward that scores a suite; ``models`` holds the folder of its reward model under that stage's name."""
    from nanoalign.reward.compose import make_reward

    judge = None
    if suite.reward_model is not None:
        from nanoalign.reward.preference import load_reward_model

        judge = load_reward_model(models[suite.reward_model], device)
    return make_reward(suite.scored_by, reward_model=judge, judge=suite.judge)


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


def prompt_messages(messages: Sequence[Message], mode: Mode) -> tuple[Message, ...]:
    """The messages as a user who wants ``mode`` would write them: ``/no_think`` ends the last user message, unless
    thinking is on. Signals that were there before are removed."""
    told = [
        replace(message, content=without_signals(message.content)) if message.role in ("system", "user") else message
        for message in messages
    ]
    if not mode.thinking:
        last = max(place for place, message in enumerate(told) if message.role == "user")
        told[last] = replace(told[last], content=f"{told[last].content} /no_think")
    return tuple(told)


Run = tuple[list[float], list[str], list[Reading], Tally]
"""Scores and domains of the tasks, what was read of the completions, and what was wrong with them."""
Settings = Callable[[int, int], "Sampling"]
"""The settings of a completion, from its seed and its task's number."""


def _answer(
    engine: "RolloutEngine", chat: ChatFormat, tokenizer: Any, tokens: ThinkingTokens, tasks: Tasks, mode: Mode,
    reward: Reward, settings: Settings, seed: int,
) -> Run:  # fmt: skip
    from nanoalign.rollouts.base import Request
    from nanoalign.rollouts.samples import judged
    from nanoalign.rollouts.seeds import derive_seed

    histories, requests = [], []
    for number, conversation in enumerate(tasks.conversations):
        history = conversation.messages
        history = history[:-1] if history[-1].role == "assistant" else history
        if not any(message.role == "user" for message in history):
            raise ConfigError(
                f"suite {tasks.name}: {conversation.origin or conversation.id}: no user message to answer"
            )
        text = chat.prompt(prompt_messages(history, mode), conversation.tools)
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        histories.append(history)
        requests.append(Request(ids, settings(derive_seed(seed, number), number)))
    samples, readings = [], []
    completions = engine.generate(requests)
    for conversation, history, request, completion in zip(tasks.conversations, histories, requests, completions):
        sample = judged(
            history, mode, request.prompt_ids, completion, tokens, chat, tokenizer, conversation.task
        )  # fmt: skip
        reading = analyse(
            tokens, tokenizer, request.prompt_ids, completion.token_ids, completion.forced, thinking=mode.thinking,
            budget=mode.budget, finished=completion.finish == "stop",
        )  # fmt: skip
        samples.append(sample)
        readings.append(reading)
    scores, tally = reward.score(samples), Tally()
    tally.add((sample.answer for sample in samples), scores)
    return scores, [each.domain or each.source for each in tasks.conversations], readings, tally


def _play(
    engine: "RolloutEngine", chat: ChatFormat, tokenizer: Any, tokens: ThinkingTokens, tasks: Tasks, mode: Mode,
    reward: Reward, settings: Settings, seed: int,
) -> Run:  # fmt: skip
    from nanoalign.rollouts.episodes import play
    from nanoalign.rollouts.seeds import derive_seed

    assert tasks.environment is not None
    records = play(
        engine, tasks.environment, tasks.played, 1,
        lambda number, sample, turn: (mode, settings(derive_seed(seed, number, turn), number)),
        chat, tokenizer, tasks.config.max_turns,
    )  # fmt: skip
    readings = [
        analyse(
            tokens,
            tokenizer,
            turn.prompt_ids,
            turn.completion.token_ids,
            turn.completion.forced,
            thinking=mode.thinking,
            budget=mode.budget,
            finished=turn.completion.finish == "stop",
        )
        for record in records
        for turn in record.turns
    ]
    domains = [str(record.task.data.get("kind", tasks.environment.name)) for record in records]
    tally = Tally()
    tally.add(turn.answer for record in records for turn in record.turns)
    for record in records:
        tally.reasons.update(record.faults)
    return [float(record.success) for record in records], domains, readings, tally


def _estimator(tasks: Tasks) -> Callable[[Sequence[float]], Estimate]:
    if tasks.environment is None and any(name in JUDGED or is_own(name) for name in tasks.config.scored_by):
        return mean
    return lambda scores: proportion(sum(score >= CORRECT for score in scores), len(scores))
