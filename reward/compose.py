"""Rewards by name, and their weighted sum with every component kept for the log."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.common.text import nearest
from nanoalign.data_recipes.generators import reasoning_gym_names
from nanoalign.reward.answers import stated_answer
from nanoalign.reward.base import FLOOR, RewardError, Sample, Score
from nanoalign.reward.code import score_programs
from nanoalign.reward.config import Judge
from nanoalign.reward.instructions.score import score_instructions
from nanoalign.reward.judge import JudgeClient
from nanoalign.reward.mathematics import MathVerifier
from nanoalign.reward.sandbox import Limits
from nanoalign.reward.shape import length_factor, score_format
from nanoalign.reward.tools import score_first_turn, score_tools
from nanoalign.reward.verifier_pool import VerifierPool

Component = Callable[[Sequence[Sample]], Sequence[float]]
"""Scores a batch, one number a sample, in order."""
KINDS = ("math", "exact", "instruction", "tools", "code", "reasoning_gym", "bfcl_multi_turn")
"""Kinds of task that a verifier knows."""
PLAYED = {
    "workbench": "its tasks are played, not answered in one turn; use `environment: workbench`",
    "nemo_gym": "its tasks are played in NeMo Gym's own databases, which are not here; use `environment: workbench`",
}
"""Kinds of task that no verifier of single answers can judge, and why."""
COMPONENTS = ("task", *KINDS, "instruction_all", "instruction_loose", "format", "length", "preference", "judge")
"""Names that a recipe may weigh. ``task`` asks the verifier of each sample's own kind."""


class ComposedReward:
    """A weighted sum of named components. Pure and deterministic, given its models; safe to share between threads."""

    name = "reward"

    def __init__(self, weights: Mapping[str, float], components: Mapping[str, Component]) -> None:
        self.weights = dict(weights)
        self._components = dict(components)

    def components(self, samples: Sequence[Sample]) -> dict[str, list[float]]:
        """Each component's scores, unweighted: :data:`FLOOR` for malformed samples, which no component sees. Raises
        RewardError where one is not a finite number."""
        read = [place for place, sample in enumerate(samples) if not sample.malformed]
        columns: dict[str, list[float]] = {}
        for name, component in self._components.items():
            columns[name] = [FLOOR] * len(samples)
            scores = component([samples[place] for place in read]) if read else []
            for place, score in zip(read, _checked(name, scores, len(read)), strict=True):
                columns[name][place] = score
        return columns

    def combine(self, components: Mapping[str, Sequence[float]]) -> list[float]:
        """The weighted sums of what :meth:`components` gave, with the reasons of their parts."""
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
    weights: Mapping[str, float],
    *,
    reward_model: Component | None = None,
    judge: Judge | None = None,
    workers: int | None = None,
    limits: Limits | None = None,
) -> ComposedReward:
    """The weighted sum of the components named in ``weights``.

    ``instruction`` is the share of instructions followed, ``instruction_all`` 1 for all of them and else 0 (as ``task``
    gives), ``instruction_loose`` the share by IFEval's loose rule. ``reward_model`` gives ``preference`` its raw scores
    (log-odds); ``judge`` is the endpoint of ``judge``; ``workers`` processes of each outside verifier (default: one a
    processor, at most 8); ``limits`` of one program. Raises ConfigError for an unknown name (with the nearest one), a
    weight that is not a finite number, or a component that lacks its model.
    """
    if not weights:
        raise ConfigError(f"a reward needs at least one component of {', '.join(COMPONENTS)}")
    for name, weight in weights.items():
        if name not in COMPONENTS:
            raise ConfigError(f"unknown reward `{name}`{nearest(name, COMPONENTS)}")
        if not math.isfinite(weight):
            raise ConfigError(f"reward {name!r}: the weight must be a finite number, not {weight}")
    if "preference" in weights and reward_model is None:
        raise ConfigError("reward 'preference' needs a reward model: set reward_model to a reward_model stage")
    if "judge" in weights and judge is None:
        raise ConfigError("reward 'judge' needs an endpoint: give its url and model")
    verifiers = _verifiers(MathVerifier(workers), workers, limits)
    task = partial(_score_tasks, verifiers)
    known: dict[str, Component] = {
        **verifiers,
        "task": task,
        "instruction": _each("instruction", partial(score_instructions, share=True)),
        "instruction_all": verifiers["instruction"],
        "instruction_loose": _each("instruction", partial(score_instructions, share=True, loose=True)),
        "format": lambda samples: [score_format(sample) for sample in samples],
        "length": partial(_score_lengths, task),
    }
    if reward_model is not None:
        known["preference"] = partial(_score_preferences, reward_model)
    if judge is not None and "judge" in weights:
        known["judge"] = JudgeClient(judge).score
    return ComposedReward(weights, {name: known[name] for name in weights})


def score_exact(sample: Sample) -> float:
    """1.0 where the stated answer (see reward/answers.py), or else the whole text, is the task's answer; case, white
    space and a final full stop do not count."""
    text = sample.answer.content
    return float(_plain(stated_answer(text) or text) == _plain(str(sample.task["answer"])) != "")


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".").strip()


def _verifiers(mathematics: MathVerifier, workers: int | None, limits: Limits | None) -> dict[str, Component]:
    """A verifier for each kind of task."""

    def score_math(samples: Sequence[Sample]) -> Sequence[float]:
        return mathematics.scores([(str(sample.task["answer"]), sample.answer.content) for sample in samples])

    return {
        "math": _of_kind("math", score_math),
        "exact": _each("exact", score_exact),
        "instruction": _each("instruction", partial(score_instructions, share=False)),
        "tools": _each("tools", score_tools),
        "code": _of_kind("code", partial(score_programs, limits=limits)),
        "reasoning_gym": _of_kind(
            "reasoning_gym", partial(score_reasoning_gym, VerifierPool("reasoning_gym", workers))
        ),
        "bfcl_multi_turn": _each("bfcl_multi_turn", score_first_turn),
    }


def score_reasoning_gym(pool: VerifierPool, samples: Sequence[Sample]) -> Sequence[float]:
    """1.0 where reasoning-gym's own verifier of ``task["dataset"]`` gives full marks to the stated answer (or the whole
    text). Its partial marks count for nothing: some reward a text that merely contains the answer. Verifiers run in
    walled processes: several evaluate the answer, or raise for it. Raises DataError for an unknown data set, or an
    entry that is none."""
    for sample in samples:
        if (name := sample.task.get("dataset")) not in reasoning_gym_names():
            raise DataError(f"reasoning_gym task: {name!r} is no data set of reasoning-gym")
        if not isinstance(sample.task.get("entry"), Mapping):
            raise DataError("reasoning_gym task: 'entry' must be the data set's whole entry")
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
        verdicts = pool.ask(questions)
    except TypeError as error:
        raise DataError(f"reasoning_gym task: {error}") from error
    for place, verdict in zip(asked, verdicts, strict=True):
        scores[place] = verdict
    return scores


def _of_kind(kind: str, component: Component) -> Component:
    """The component, for samples of its kind only."""

    def score(samples: Sequence[Sample]) -> Sequence[float]:
        for sample in samples:
            if (found := sample.task.get("kind")) != kind:
                raise DataError(f"reward {kind!r} met a task of kind {found!r}: use 'task' for mixed data")
        return component(samples)

    return score


def _each(kind: str, score: Callable[[Sample], float]) -> Component:
    return _of_kind(kind, lambda samples: [score(sample) for sample in samples])


def _score_tasks(verifiers: Mapping[str, Component], samples: Sequence[Sample]) -> list[float]:
    places: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        places.setdefault(str(sample.task.get("kind")), []).append(place)
    scores = [0.0] * len(samples)
    for kind, indices in places.items():
        if kind in PLAYED:
            raise DataError(f"a task of kind {kind!r}: {PLAYED[kind]}")
        if kind not in verifiers:
            raise DataError(f"no verifier for a task of kind {kind!r}; known: {', '.join(verifiers)}")
        for place, score in zip(indices, verifiers[kind]([samples[i] for i in indices]), strict=True):
            scores[place] = score
    return scores


def _score_lengths(task: Component, samples: Sequence[Sample]) -> list[float]:
    """Correctness times :func:`length_factor`; well-formedness stands for correctness where nothing can be checked."""
    checkable = [sample for sample in samples if sample.task.get("kind") in KINDS]
    correct = iter(task(checkable))
    return [
        length_factor(sample) * (next(correct) if sample.task.get("kind") in KINDS else score_format(sample))
        for sample in samples
    ]


def _score_preferences(model: Component, samples: Sequence[Sample]) -> list[float]:
    """The model's log-odds as a probability in (0, 1); the floor for a blank answer, unasked."""
    said = [place for place, sample in enumerate(samples) if sample.answer.content.strip()]
    raw = _checked("preference", model([samples[place] for place in said]) if said else [], len(said))
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
