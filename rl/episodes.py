"""GRPO in an environment: a step's episodes, and what of them is trained on."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.conversation import Message
from nanoalign.reward.base import Sample, Tally
from nanoalign.rl.collect import REASON, Collected, Prompt, StepRollouts
from nanoalign.rollouts.base import Mode, Sampling, draw_mode, sampling
from nanoalign.rollouts.config import Thinking
from nanoalign.rollouts.environments.base import Environment, Task
from nanoalign.rollouts.episodes import EpisodeRecord, Limits, Turn, begin
from nanoalign.rollouts.samples import judged
from nanoalign.rollouts.seeds import derive_seed


def prompts_of_tasks(
    tasks: Sequence[Task], thinking: Thinking, chat: ChatFormat, tokenizer: Any, seed: int
) -> list[Prompt]:
    """Each task with the mode that its episodes have, and with its first prompt as far as the task knows it."""
    prompts = []
    for place, task in enumerate(tasks):
        mode = draw_mode(thinking, derive_seed(seed, place))
        messages = task.prompt or (Message("user", task.id),)
        text = chat.prompt(messages, task.tools, thinking=mode.thinking)
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        prompts.append(Prompt(ids, tuple(messages), mode, task.data))
    return prompts


@dataclass
class Row:
    """A stretch of an episode in which every prompt extends what came before it."""

    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    """What the model wrote, and between its turns what the chat format and the environment put there."""
    logprobs: list[float] = field(default_factory=list)
    """0 where the model did not write."""
    trained: list[int] = field(default_factory=list)
    """1 where it did, and was not forced to."""
    versions: list[int] = field(default_factory=list)


def rows_of(turns: Sequence[Turn]) -> list[Row]:
    """The turns of an episode with no token twice: one row where each prompt extends the prompt and the completion
    before it, a further one wherever the chat format rewrote what came before."""
    rows: list[Row] = []
    for turn in turns:
        given = list(turn.prompt_ids)
        so_far = [*rows[-1].prompt_ids, *rows[-1].completion_ids] if rows else []
        if not rows or given[: len(so_far)] != so_far:
            rows.append(Row(given))
        else:
            between = given[len(so_far) :]
            _extend(rows[-1], between, [0.0] * len(between), [0] * len(between), [0] * len(between))
        completion = turn.completion
        trained = [int(not forced) for forced in completion.forced]
        versions = completion.versions or [0] * len(trained)
        _extend(rows[-1], completion.token_ids, completion.logprobs, trained, versions)
    return rows


def _extend(
    row: Row, ids: Sequence[int], logprobs: Sequence[float], trained: Sequence[int], versions: Sequence[int]
) -> None:
    row.completion_ids += ids
    row.logprobs += logprobs
    row.trained += trained
    row.versions += versions


@dataclass
class EpisodeRollouts(StepRollouts):
    """:class:`rl.collect.StepRollouts` of episodes: ``prompts`` are those of ``tasks``, in their order."""

    environment: Environment = field(kw_only=True)
    tasks: Sequence[Task] = field(kw_only=True)

    def begin(self, engine: Any, step: int, first: int, count: int) -> Callable[[], list[EpisodeRecord]]:
        group = self.group_size
        places = range(first, first + count)
        rows = [self.schedule[step * self.groups + place // group] for place in places]

        def settings(place: int, turn: int) -> tuple[Mode, Sampling]:
            mode = self.prompts[rows[place]].mode
            return mode, sampling(self.rollouts, mode, derive_seed(self.seed, step, first + place, turn))

        attempts = [(self.tasks[row], place % group) for row, place in zip(rows, places, strict=True)]
        limits = Limits(self.stage.max_turns, self.stage.episode_tokens, self.stage.budget_per == "episode")
        return begin(engine, self.environment, attempts, settings, self.chat, self.tokenizer, limits)

    def judge(self, step: int, first: int, answers: Sequence[EpisodeRecord]) -> Collected:
        """The episodes with their rewards: the environment's of the whole, all others of the last turn."""
        assert self.rewards is not None
        started = time.perf_counter()
        samples = [self._sample(record) for record in answers]
        scores = self.rewards.components(samples, self.progress(step))
        total = self.rewards.combine(scores)
        tally = Tally()
        tally.add((turn.answer for record in answers for turn in record.turns), total)
        for record in answers:
            tally.reasons.update(record.faults)
        rows = [(episode, row) for episode, record in enumerate(answers) for row in rows_of(record.turns)]
        turns = [turn for record in answers for turn in record.turns]
        written = sum(len(turn.completion.token_ids) for turn in turns)
        ended = Counter(record.ended for record in answers)
        metrics = {
            "reward_s": time.perf_counter() - started,
            "forced_share": sum(sum(turn.completion.forced) for turn in turns) / written,
            "closed_share": statistics.fmean(sample.closed for sample in samples),
            "completions/clipped_ratio": ended["length"] / len(answers),
            "success": statistics.fmean(record.success for record in answers),
            "episodes/turns": len(turns) / len(answers),
            "episodes/tokens": written / len(answers),
            "episodes/rows": len(rows) / len(answers),
            "episodes/unended": 1 - ended["done"] / len(answers),
        }
        self.keep_samples(self.asked(step, first, len(answers)), samples, scores, total, step, first)
        return Collected(
            prompt_ids=[row.prompt_ids for _, row in rows],
            completion_ids=[row.completion_ids for _, row in rows],
            logprobs=[row.logprobs for _, row in rows],
            trained=[row.trained for _, row in rows],
            rewards=scores,
            metrics=metrics,
            counts=Counter({f"{REASON}{reason}": count for reason, count in tally.reasons.items()}),
            versions=[tuple(row.versions) for _, row in rows],
            episodes=[episode for episode, _ in rows],
        )

    def _sample(self, record: EpisodeRecord) -> Sample:
        last = record.turns[-1]
        asked = max(place for place, message in enumerate(record.messages) if message.role == "assistant")
        return judged(
            record.messages[:asked], record.mode, last.prompt_ids, last.completion, self.scorer.thinking, self.chat,
            self.tokenizer, record.task.data, record.reward,
        )  # fmt: skip
