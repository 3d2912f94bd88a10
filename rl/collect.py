"""One GRPO step's completions: prompts, fresh weights into the engine, answers out of it, proof, and rewards."""

import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanoalign.common.errors import DataError, StaleWeightsError
from nanoalign.common.stage import StageLog
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.models.weights import WholeWeights, is_split, whole_weights
from nanoalign.reward import ComposedReward, Sample
from nanoalign.reward.base import Progress, Tally
from nanoalign.rl.config import GRPOStage
from nanoalign.rollouts.base import Mode, Request, draw_mode, sampling
from nanoalign.rollouts.config import Thinking
from nanoalign.rollouts.samples import judged, never_empty
from nanoalign.rollouts.seeds import derive_seed


@dataclass(frozen=True)
class Prompt:
    """What the model is given, and what a verifier knows of a right answer."""

    ids: tuple[int, ...]
    messages: tuple[Message, ...]
    mode: Mode
    task: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""


def prompts_of(
    conversations: Sequence[Conversation], thinking: Thinking, chat: ChatFormat, tokenizer: Any, seed: int
) -> list[Prompt]:
    """One prompt a conversation. The mode belongs to the prompt, so that a group compares answers of one mode; it is
    drawn from ``seed`` and the conversation's place.

    Raises:
        DataError: a conversation without a user's message to answer.
    """
    prompts = []
    for place, conversation in enumerate(conversations):
        messages = (
            conversation.messages[:-1] if conversation.messages[-1].role == "assistant" else conversation.messages
        )
        if not any(message.role == "user" for message in messages):
            raise DataError(f"{conversation.origin or conversation.id}: no user message to answer")
        mode = draw_mode(thinking, derive_seed(seed, place))
        text = chat.prompt(messages, conversation.tools, thinking=mode.thinking)
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        prompts.append(Prompt(ids, messages, mode, conversation.task or {}, conversation.domain))
    return prompts


def row_schedule(rows: int, needed: int, seed: int) -> list[int]:
    """Which of ``rows`` prompts or tasks are asked, in order: one permutation after the other, whole up to the last. A
    resumed run finds its place in it by counting."""
    schedule: list[int] = []
    generator = random.Random(seed)
    while len(schedule) < needed:
        schedule += generator.sample(range(rows), rows)
    return schedule[:needed]


def mismatch(
    engine: Sequence[Sequence[float]], trainer: Sequence[Sequence[float]], forced: Sequence[Sequence[bool]]
) -> float:
    """Mean exp|difference| of log-probabilities over the sampled tokens: 1 is perfect agreement (NeMo-RL's figure, with
    its bound of 1.05). Forced tokens are left out: engines report them after forcing. 1 where there is no token."""
    ratios = [
        math.exp(min(abs(a - b), 700.0))
        for row_a, row_b, row_forced in zip(engine, trainer, forced, strict=True)
        for a, b, is_forced in zip(row_a, row_b, row_forced, strict=True)
        if not is_forced
    ]
    return math.fsum(ratios) / len(ratios) if ratios else 1.0


def require_fresh(value: float, limit: float, step: int) -> None:
    """Raises StaleWeightsError where ``value`` is above ``limit`` or not a number."""
    if not value <= limit:
        raise StaleWeightsError(
            f"step {step}: the rollout engine's log-probabilities differ from the trainer's by a mean factor of "
            f"{value:.3f}, more than max_mismatch {limit}: it runs on other weights or in another precision"
        )


PROBE = 8
"""Completions per step on which engine and trainer are compared."""

REASON = "reason/"
"""Prefix of the metrics that count completions by fault, or by why a reward did not judge them on their
merits."""

SAMPLE_TABLES = 20
"""How often in a stage rendered samples are kept for the report."""


@dataclass(frozen=True)
class Collected:
    """What one optimizer step trains on, on this process: a row for each completion (for an episode, one for each part
    of it that no later prompt extends); those of a group are neighbours."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    logprobs: list[list[float]]
    """The engine's, at temperature 1."""
    trained: list[list[int]]
    """0 where the budget rule wrote the token: excluded from the loss and the importance ratios."""
    rewards: dict[str, list[float]]
    """By reward name, unweighted; one for each completion or episode."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Figures of the step for the log, averaged over the processes."""
    counts: Counter[str] = field(default_factory=Counter)
    """Completions counted by reason, for the log, added up over the processes."""
    versions: list[tuple[int, ...]] = field(default_factory=list)
    """Optimizer steps behind the weights that drew each token, where the engine counts them."""
    episodes: list[int] | None = None
    """Which episode each row belongs to; None where each row is a completion of its own."""

    def part(self, first: int, count: int) -> "Collected":
        """These completions alone; figures and counts are the first part's."""
        episodes = range(len(self.prompt_ids)) if self.episodes is None else self.episodes
        rows = [row for row, episode in enumerate(episodes) if first <= episode < first + count]
        return Collected(
            [self.prompt_ids[row] for row in rows],
            [self.completion_ids[row] for row in rows],
            [self.logprobs[row] for row in rows],
            [self.trained[row] for row in rows],
            {name: values[first : first + count] for name, values in self.rewards.items()},
            self.metrics,
            Counter() if first else self.counts,
            [self.versions[row] for row in rows if self.versions],
            None if self.episodes is None else [self.episodes[row] - first for row in rows],
        )


Collect = Callable[[int, int, int], Collected]
"""(optimizer step, first completion, number of completions) to completions: this process's part of the step's."""


@dataclass
class StepRollouts:
    """What a step asks, and what becomes of the answers, whoever gives them."""

    stage: GRPOStage
    prompts: Sequence[Prompt]
    scorer: Any
    """An :class:`rollouts.hf.HFEngine` on the trainer's own model."""
    chat: ChatFormat
    tokenizer: Any
    seed: int
    log: StageLog
    rewards: ComposedReward | None
    """None on processes that judge nothing."""
    steps: int
    """Optimizer steps of the stage."""
    held_out: bool = False
    """All prompts make up one step, number 0: answers are greedy, one for each prompt, and are measured by the rewards
    as they are when the stage ends, not trained on."""

    def __post_init__(self) -> None:
        self.rollouts, self.group_size = self.stage.rollouts, self.stage.group_size
        self.groups = self.stage.train.batch_size // self.group_size
        if self.held_out:
            self.rollouts = self.rollouts.model_copy(update={"temperature": 0.0})
            self.group_size, self.groups, self.schedule = 1, len(self.prompts), list(range(len(self.prompts)))
        else:
            self.schedule = row_schedule(len(self.prompts), self.steps * self.groups, self.seed)

    def progress(self, step: int) -> Progress:
        """How far training is, for rewards that follow a schedule."""
        return Progress(self.steps if self.held_out else step, self.steps)

    def asked(self, step: int, first: int, count: int) -> list[Prompt]:
        """The prompt of each completion."""
        places = range(first, first + count)
        return [self.prompts[self.schedule[step * self.groups + place // self.group_size]] for place in places]

    def begin(self, engine: Any, step: int, first: int, count: int) -> Callable[[], list[Any]]:
        """Asks an engine that takes questions at any time; what is returned waits for the answers, or asks now."""
        requests = [
            Request(prompt.ids, sampling(self.rollouts, prompt.mode, derive_seed(self.seed, step, first + place)))
            for place, prompt in enumerate(self.asked(step, first, count))
        ]
        if not hasattr(engine, "submit"):
            return lambda: engine.generate(requests)
        answers = engine.submit(requests)
        return lambda: [each.result() for each in answers]

    def judge(self, step: int, first: int, answers: Sequence[Any]) -> Collected:
        """The completions with their rewards."""
        assert self.rewards is not None
        asked = self.asked(step, first, len(answers))
        stop_id = min(self.scorer.thinking.stop_ids)
        completions = [never_empty(each, stop_id) for each in answers]
        started = time.perf_counter()
        samples = [
            judged(prompt.messages, prompt.mode, prompt.ids, completion, self.scorer.thinking, self.chat,
                   self.tokenizer, prompt.task)
            for prompt, completion in zip(asked, completions, strict=True)
        ]  # fmt: skip
        scores = self.rewards.components(samples, self.progress(step))
        total = self.rewards.combine(scores)
        tally = Tally()
        tally.add((sample.answer for sample in samples), total)
        tokens = sum(len(each.token_ids) for each in completions)
        metrics = {
            "reward_s": time.perf_counter() - started,
            "forced_share": sum(sum(each.forced) for each in completions) / tokens,
            "closed_share": statistics.fmean(sample.closed for sample in samples),
            "completions/clipped_ratio": statistics.fmean(each.finish == "length" for each in completions),
        }
        self.keep_samples(asked, samples, scores, total, step, first)
        return Collected(
            prompt_ids=[list(prompt.ids) for prompt in asked],
            completion_ids=[list(completion.token_ids) for completion in completions],
            logprobs=[list(completion.logprobs) for completion in completions],
            trained=[[int(not forced) for forced in completion.forced] for completion in completions],
            rewards=scores,
            metrics=metrics,
            counts=Counter({f"{REASON}{reason}": count for reason, count in tally.reasons.items()}),
            versions=[completion.versions for completion in completions],
        )

    def require_fresh(self, collected: Collected, step: int) -> float:
        """How far engine and trainer are apart on completions that the trainer's weights drew. Under ZeRO-3 all
        processes must ask at once.

        Raises:
            StaleWeightsError: further than the stage allows.
        """
        difference = self._probe(collected, PROBE)
        if not difference <= self.stage.max_mismatch:  # a few completions are a small sample
            difference = self._probe(collected, len(collected.completion_ids))
        require_fresh(difference, self.stage.max_mismatch, step)
        return difference

    def _probe(self, collected: Collected, count: int) -> float:
        """The mismatch over about ``count`` completions, spread over the prompts."""
        places = range(0, len(collected.completion_ids), max(1, len(collected.completion_ids) // count))
        scores = self.scorer.score(
            [[*collected.prompt_ids[place], *collected.completion_ids[place]] for place in places]
        )
        return mismatch(
            [collected.logprobs[place] for place in places],
            [score[len(collected.prompt_ids[place]) - 1 :] for place, score in zip(places, scores, strict=True)],
            [[not trained for trained in collected.trained[place]] for place in places],
        )

    def scores(self, step: int, first: int, answers: Sequence[Any]) -> list[list[float]]:
        """The rewards alone, in the order of the recipe's, of each of :meth:`judge`'s completions."""
        if not answers:
            return []
        rewards = self.judge(step, first, answers).rewards
        return [list(row) for row in zip(*(rewards[name] for name in self.stage.weights), strict=True)]

    def keep_samples(
        self, asked: Sequence[Prompt], samples: Sequence[Sample], scores: Mapping[str, list[float]],
        total: Sequence[float], step: int, first: int,
    ) -> None:  # fmt: skip
        """The best and the worst answer to the step's first prompt, every so often; on the first process."""
        if self.held_out or first or step % max(1, self.steps // SAMPLE_TABLES):
            return
        group = range(min(self.stage.group_size, len(samples)))  # a process may have a part of a group
        for place in sorted({max(group, key=total.__getitem__), min(group, key=total.__getitem__)}):
            sample = samples[place]
            self.log.sample(
                kind="grpo", step=step, domain=asked[place].domain, prompt=sample.messages[-1].content,
                thinking=sample.answer.reasoning, answer=sample.answer.content, reward=total[place],
                budget=sample.thinking_budget, faults=list(sample.answer.faults),
                rewards={name: values[place] for name, values in scores.items()},
            )  # fmt: skip


@dataclass
class OwnEngine:
    """A :data:`Collect` on an engine of this process, which works while the trainer waits."""

    rollouts: StepRollouts
    engine: Any
    """A :class:`rollouts.base.RolloutEngine`; a vLLM also streams weights."""

    def __call__(self, step: int, first: int, count: int) -> Collected:
        sync_at = time.perf_counter()
        self._give_weights()
        started = time.perf_counter()
        answers = self.rollouts.begin(self.engine, step, first, count)()
        seconds = time.perf_counter() - started
        self.engine.sleep()
        collected = self.rollouts.judge(step, first, answers)
        collected.metrics.update(
            mismatch=self.rollouts.require_fresh(collected, step), rollout_s=seconds, sync_s=started - sync_at,
            rollout_tokens_per_s=sum(map(len, collected.completion_ids)) / seconds,
        )  # fmt: skip
        if self.engine is not self.rollouts.scorer:
            collected.metrics["engines_lost"] = self.engine.lost
        return collected

    def measure(self, held_out: StepRollouts, step: int, process: int, processes: int) -> list[list[float]]:
        """The rewards of this process's share of answers to ``held_out``, by the weights after ``step`` steps."""
        self._give_weights()
        first, end = (len(held_out.prompts) * part // processes for part in (process, process + 1))
        answers = held_out.begin(self.engine, 0, first, end - first)() if end > first else []
        self.engine.sleep()
        return held_out.scores(0, first, answers)

    def _give_weights(self) -> None:
        if self.engine is self.rollouts.scorer:
            return
        model = self.rollouts.scorer.model
        if is_split(model):
            self.engine.stream_weights(whole_weights(model))
        else:
            self.engine.load_weights(WholeWeights(model))

    def close(self) -> None:
        self.engine.close()
