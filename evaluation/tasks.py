"""The tasks of a suite, how they are asked in a mode, and the reward that scores the answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.table import Entry
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.chat.render import without_signals
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.evaluation.benchmarks import TaskReading, benchmark
from nanoalign.evaluation.config import Suite
from nanoalign.reward.base import Reward
from nanoalign.reward.config import is_own
from nanoalign.rollouts.base import Mode

if TYPE_CHECKING:
    from nanoalign.rollouts.environments.base import Environment, Task

JUDGED = {"preference", "judge"}
"""Rewards that are not verifiers: their scores are averaged, there is no right or wrong."""


@dataclass(frozen=True)
class Tasks:
    """A suite's tasks: conversations to be answered, or tasks of an environment to be played. A benchmark that is
    played has conversations too, of its requests alone."""

    name: str
    config: Suite
    conversations: Sequence[Conversation] = ()
    environment: "Environment | None" = None
    played: "Sequence[Task]" = ()

    def __len__(self) -> int:
        return len(self.played if self.environment else self.conversations)

    @property
    def completions(self) -> int:
        """Answers to each task."""
        if self.config.completions is not None or self.config.benchmark is None:
            return self.config.completions or 1
        return benchmark(self.config.benchmark)[0].completions

    @property
    def max_turns(self) -> int:
        """Answers in an episode, at most."""
        return self.config.max_turns if self.config.benchmark is None else benchmark(self.config.benchmark)[0].turns

    @property
    def judged(self) -> bool:
        """Scores are averaged; there is no right or wrong."""
        if self.config.benchmark is not None:
            entry, _ = benchmark(self.config.benchmark)
            return entry.judged or entry.graded
        return self.environment is None and any(name in JUDGED or is_own(name) for name in self.config.reward)


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
        entry = entry.pinned(suite.revision)
        reading = TaskReading(suite.benchmark, entry, length, data_root, seed, suite.samples, tokenizer, chat)
        conversations = checked(reading, entry.load()(reading))
        if not entry.environment:
            return Tasks(name, suite, conversations)
        made = Entry(entry.environment, "").load()(conversations, data_root)
        return Tasks(name, suite, conversations, made, made.tasks("test"))
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


def read_from(suite: Suite, data_root: Path | None) -> list[dict[str, str]]:
    """The files or the hub's data sets behind a benchmark, as ``benchmark_data.provenance`` names them; [] for suites
    of your own."""
    from nanoalign.evaluation.benchmark_data import provenance

    if suite.benchmark is None:
        return []
    return provenance(benchmark(suite.benchmark)[0].pinned(suite.revision), data_root)


def suite_reward(suite: Suite, models: Mapping[str, Path], device: str) -> Reward:
    """The reward that scores a suite; ``models`` holds the folder of its reward model under that stage's name."""
    from nanoalign.reward.compose import make_reward

    judge = None
    if suite.reward_model is not None:
        from nanoalign.reward.preference import load_reward_model

        judge = load_reward_model(models[suite.reward_model], device)
    return make_reward(suite.scored_by, reward_model=judge, judge=suite.judge)


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
