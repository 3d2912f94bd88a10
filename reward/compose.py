"""Rewards by name, and their weighted sum with every component kept for the log."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.common.printable import known
from nanoalign.data_recipes.generators import reasoning_gym_names
from nanoalign.reward import arena
from nanoalign.reward.base import FLOOR, Progress, RewardError, Sample, Score
from nanoalign.reward.code import score_programs
from nanoalign.reward.config import Judge, OwnReward, is_own, short_names, weights_of
from nanoalign.reward.final_answer import stated_answer
from nanoalign.reward.judge import JudgeClient
from nanoalign.reward.mathematics import MathVerifier
from nanoalign.reward.own.component import OwnComponent
from nanoalign.reward.sandbox import Limits
from nanoalign.reward.shape import length_factor, score_format
from nanoalign.reward.table import REWARDS, verifiers
from nanoalign.reward.verifier_pool import VerifierPool

Component = Callable[[Sequence[Sample]], Sequence[float]]
"""Scores a batch, one number per sample, in order."""
PLAYED = {
    "workbench": "its tasks are played, not answered in one turn; use `environment: workbench`",
    "nemo_gym": "its tasks are played in NeMo Gym's own databases, which are not here; use `environment: workbench`",
}
"""Kinds of task that no verifier of single answers can judge, and why."""


class Means:
    """What rewards share besides the samples: their processes, models and settings."""

    def __init__(
        self, reward_model: Component | None, judge: Judge | None, workers: int | None, limits: Limits | None,
        compared: Judge | None = None,
    ) -> None:  # fmt: skip
        self.math, self.reasoning_gym = MathVerifier(workers), VerifierPool("reasoning_gym", workers)
        self.reward_model, self.limits = reward_model, limits
        self.judge = JudgeClient(judge) if judge is not None else None
        self.arena = arena.arena_client(compared) if compared is not None else None


class ComposedReward:
    """A weighted sum of named components. Pure and deterministic, given its models and a user's functions; safe to
    share between threads."""

    name = "reward"

    def __init__(
        self, weights: Mapping[str, float], components: Mapping[str, Component], own: Sequence[OwnComponent] = ()
    ) -> None:
        self.weights = dict(weights)
        self._components = dict(components)
        self._own = {each.name: each for each in own}

    def know(self, tasks: Iterable[Mapping[str, Any]]) -> None:
        """Tells a user's functions which columns the data has, before the first batch. Raises RewardError where one
        wants a column that is not there."""
        tasks = list(tasks) if self._own else []
        for own in self._own.values():
            own.know(tasks)
            own.require_columns()

    def components(self, samples: Sequence[Sample], progress: Progress | None = None) -> dict[str, list[float]]:
        """Each component's scores, unweighted: :data:`FLOOR` for malformed samples, which no component sees; a user's
        function that gave less to another sample gives them as little. Raises RewardError where one is not a finite
        number."""
        read = [place for place, sample in enumerate(samples) if not sample.malformed]
        given = [samples[place] for place in read]
        begun = {name: own.start(given, progress or Progress()) for name, own in self._own.items()} if read else {}
        columns: dict[str, list[float]] = {}
        for name in self.weights:
            scores = (begun[name]() if name in begun else self._components[name](given)) if read else []
            scores = _checked(name, scores, len(read))
            columns[name] = [min([FLOOR, *scores]) if name in begun else FLOOR] * len(samples)
            for place, score in zip(read, scores, strict=True):
                columns[name][place] = score
        return columns

    def combine(self, components: Mapping[str, Sequence[float]]) -> list[float]:
        """The weighted sums of what :meth:`components` gave, with the reasons of their parts.
        Arena-Hard's alone stay what they are, with their games."""
        if [*self.weights.items()] == [("arena", 1.0)]:
            return [*components["arena"]]
        return [
            Score(math.fsum(self.weights[name] * part for name, part in row.items()), _reason(row))
            for row in (dict(zip(components, parts)) for parts in zip(*components.values(), strict=True))
        ]

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return self.combine(self.components(samples))


def _reason(row: Mapping[str, float]) -> str:
    said = {f"{name}: {part.reason}" for name, part in row.items() if isinstance(part, Score) and part.reason}
    return "; ".join(sorted(said))


def make_reward(
    weights: Mapping[str, float | OwnReward | Mapping[str, Any]],
    *,
    reward_model: Component | None = None,
    judge: Judge | None = None,
    workers: int | None = None,
    limits: Limits | None = None,
) -> ComposedReward:
    """The weighted sum of the components named in ``weights``, a recipe's `reward`; a user's own (FILE.py:FUNCTION or
    MODULE:FUNCTION) are imported here, and are components under their short names (``config.short_names``).

    ``reward_model`` gives ``preference`` its raw scores
    (log-odds); ``judge`` is the endpoint of ``judge``; ``workers`` processes of each outside verifier (default: one
    per processor, at most 8); ``limits`` of one program. Raises ConfigError for an unknown name (with the nearest one),
    a weight that is not a finite number, a component that lacks its model, or a user's function that cannot be called.
    """
    if not weights:
        raise ConfigError(f"a reward needs at least one component of {', '.join(REWARDS)}")
    for name in weights:
        if not is_own(name):
            known("reward", name, REWARDS)
    names, shares = short_names(weights), weights_of(weights)
    for name, weight in shares.items():
        if not math.isfinite(weight):
            raise ConfigError(f"reward {name!r}: the weight must be a finite number, not {weight}")
    if "preference" in weights and reward_model is None:
        raise ConfigError("reward 'preference' needs a reward model: set reward_model to a reward_model stage")
    for name in ("judge", "arena"):
        if name in weights and judge is None:
            raise ConfigError(f"reward '{name}' needs an endpoint: give its url and model")
    asked = [judge if name in weights else None for name in ("judge", "arena")]
    means = Means(reward_model, asked[0], workers, limits, asked[1])
    own = [OwnComponent(key, names[key], value) for key, value in weights.items() if is_own(key)]
    return ComposedReward(shares, {name: component(name, means) for name in weights if not is_own(name)}, own)


def component(name: str, means: Means) -> Component:
    """The reward of that name in the table. It refuses tasks of another kind than it reads, with a DataError."""
    entry = REWARDS[name]
    code = entry.load()

    def score(samples: Sequence[Sample]) -> Sequence[float]:
        for kind in (sample.task.get("kind") for sample in samples):
            if entry.kind not in ("", "any", kind):
                raise DataError(f"reward {name!r} met a task of kind {kind!r}: use 'task' for mixed data")
        return [code(sample) for sample in samples] if entry.each else code(samples, means)

    return score


def score_exact(sample: Sample) -> float:
    """1.0 where the stated answer (see reward/final_answer.py), or else the whole text, is the task's answer; case,
    white space and a final full stop do not count."""
    text = sample.answer.content
    return float(_plain(stated_answer(text) or text) == _plain(str(sample.task["answer"])) != "")


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".").strip()


def score_math(samples: Sequence[Sample], means: Means) -> Sequence[float]:
    """1.0 where the final answer equals the task's, in its text alone; see reward/mathematics.py."""
    return means.math.scores([(str(sample.task["answer"]), sample.answer.content) for sample in samples])


def score_code(samples: Sequence[Sample], means: Means) -> Sequence[float]:
    """1.0 where all of the task's tests pass; see reward/code.py."""
    return score_programs(samples, means.limits)


def score_reasoning_gym(samples: Sequence[Sample], means: Means) -> Sequence[float]:
    """1.0 where reasoning-gym's own verifier of ``task["dataset"]`` gives full marks to the stated answer (or the whole
    text). Its partial marks count as 0: some reward a text that merely contains the answer. Verifiers run in sandboxed
    processes: several evaluate the answer, or raise for it. Raises DataError for an unknown data set, or an
    entry that is none."""
    for sample in samples:
        if (name := sample.task.get("dataset")) not in reasoning_gym_names():
            raise DataError(f"reasoning_gym task: {name!r} is not a data set of reasoning-gym")
        if not isinstance(sample.task.get("entry"), Mapping):
            raise DataError("reasoning_gym task: 'entry' must be the data set's complete entry")
    texts = [sample.answer.content for sample in samples]
    asked = [place for place, text in enumerate(texts) if text.strip()]
    questions = [
        (
            samples[place].task["dataset"],
            stated_answer(texts[place]) or texts[place].strip(),
            samples[place].task["entry"],
        )
        for place in asked
    ]
    scores = [0.0] * len(samples)
    try:
        verdicts = means.reasoning_gym.ask(questions)
    except TypeError as error:
        raise DataError(f"reasoning_gym task: {error}") from error
    for place, verdict in zip(asked, verdicts, strict=True):
        scores[place] = verdict
    return scores


def score_tasks(samples: Sequence[Sample], means: Means) -> Sequence[float]:
    """What each sample's own verifier says. Raises DataError for a kind of task that has none."""
    judged = verifiers()
    places: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        places.setdefault(str(sample.task.get("kind")), []).append(place)
    scores = [0.0] * len(samples)
    for kind, indices in places.items():
        if kind in PLAYED:
            raise DataError(f"a task of kind {kind!r}: {PLAYED[kind]}")
        if kind not in judged:
            raise DataError(f"no verifier for a task of kind {kind!r}; known: {', '.join(judged)}")
        verified = component(judged[kind], means)([samples[place] for place in indices])
        for place, score in zip(indices, verified, strict=True):
            scores[place] = score
    return scores


def score_lengths(samples: Sequence[Sample], means: Means) -> Sequence[float]:
    """Correctness times :func:`length_factor`; well-formedness replaces correctness where nothing can be checked."""
    checkable = [sample.task.get("kind") in verifiers() for sample in samples]
    correct = iter(score_tasks([sample for sample, can in zip(samples, checkable) if can], means))
    return [
        length_factor(sample) * (next(correct) if can else score_format(sample))
        for sample, can in zip(samples, checkable)
    ]


def score_judged(samples: Sequence[Sample], means: Means) -> Sequence[float]:
    """The judge's scores; see reward/judge.py."""
    assert means.judge is not None  # make_reward saw to it
    return means.judge.score(samples)


def score_arena(samples: Sequence[Sample], means: Means) -> Sequence[float]:
    """Win rates against the tasks' baselines; see reward/arena.py."""
    assert means.arena is not None  # make_reward saw to it
    return arena.score_arena(samples, means.arena)


def score_preferences(samples: Sequence[Sample], means: Means) -> Sequence[float]:
    """The reward model's log-odds as a probability in (0, 1); the floor for a blank answer, without asking the
    model."""
    assert means.reward_model is not None  # make_reward saw to it
    said = [place for place, sample in enumerate(samples) if sample.answer.content.strip()]
    raw = _checked("preference", means.reward_model([samples[place] for place in said]) if said else [], len(said))
    scores = [FLOOR] * len(samples)
    for place, value in zip(said, raw, strict=True):
        scores[place] = _sigmoid(value)
    return scores


def _sigmoid(value: float) -> float:
    return 0.5 * (1.0 + math.tanh(value / 2.0))


def _checked(name: str, scores: Sequence[float], count: int) -> list[float]:
    if len(scores) != count:
        raise RewardError(f"reward {name!r} gave {len(scores)} scores for {count} samples")
    for place, score in enumerate(scores):
        if not math.isfinite(score):
            raise RewardError(f"reward {name!r} gave {score} for sample {place} of the batch")
    return [score if isinstance(score, Score) else float(score) for score in scores]
