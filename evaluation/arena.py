"""Arena-Hard: prompts with a baseline's answers, the win rate, and the win rate at equal style.

Both versions' files are read as the repository of its authors lays them out (arXiv 2406.11939). The model's win rate
is that of all games together. Style control is a logistic regression of the games' outcomes on how the two answers
differ in length and mark-up: the win rate where they do not differ (arXiv 2404.04475; LMArena's style control).
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.common.intervals import Estimate
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.evaluation.benchmark_data import conversation, rows
from nanoalign.evaluation.benchmarks import TaskReading
from nanoalign.reward.arena import weights, win_rate
from nanoalign.reward.base import Sample

ANSWERED_BY = {"creative_writing": "gemini-2.0-flash-001"}
"""Version 2.0's baseline of a category, where it is not the first of the files."""
DRAWS = 200
"""Resamples of the questions behind an interval."""


def arena_hard(reading: TaskReading) -> Iterable[Conversation]:
    """The prompts, in order; their category is their domain.

    Raises:
        DataError: a row of another layout, or a prompt that its baseline has not answered.
    """
    asked: list[tuple[str, Mapping[str, Any]]] = []
    answers: dict[str, dict[str, str]] = {}
    for origin, raw in rows(reading):
        try:
            if "choices" in raw or "messages" in raw:
                name, model, text = _answer(raw)
                answers.setdefault(model, {})[name] = text
            else:
                asked.append((origin, {"id": _name(raw), "text": _prompt(raw), "category": str(raw["category"])}))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(f"{origin}: benchmark {reading.name}: not a row of it ({error!r})") from None
    for origin, each in asked:
        model = next(iter(answers), "")
        if ANSWERED_BY.get(each["category"]) in answers:
            model = ANSWERED_BY[each["category"]]
        if each["id"] not in answers.get(model, {}):
            raise DataError(
                f"{origin}: benchmark {reading.name}: {model or 'no baseline'} has not answered {each['id']}"
            )
        yield conversation(reading, origin, {
            "id": each["id"], "domain": each["category"], "messages": [{"role": "user", "content": each["text"]}],
            "task": {"kind": "arena", "baseline": answers[model][each["id"]], "baseline_of": model},
        })  # fmt: skip


def _name(raw: Mapping[str, Any]) -> str:
    return str(raw.get("uid") or raw["question_id"])


def _prompt(raw: Mapping[str, Any]) -> str:
    return str(raw["prompt"] if "prompt" in raw else raw["turns"][0]["content"])


def _answer(raw: Mapping[str, Any]) -> tuple[str, str, str]:
    """Question, model and text."""
    if "choices" in raw:
        content = raw["choices"][0]["turns"][0]["content"]
        return _name(raw), str(raw["model_id"]), content if isinstance(content, str) else content["answer"]
    content = raw["messages"][-1]["content"]
    return _name(raw), str(raw["model"]), content if isinstance(content, str) else content["answer"]


def figures(tasks: Sequence[Conversation], samples: Sequence[Sample], scores: Sequence[float]) -> dict[str, Estimate]:
    """``win_rate``; ``length_controlled``: at equal length; ``style_controlled``: at equal length, headings, lists and
    bold text. Intervals are of 200 resamples of the questions, with their two games."""
    games = [tuple(getattr(score, "games", ())) for score in scores]
    style = [_differences(sample.answer.content, str(sample.task["baseline"])) for sample in samples]
    kept = [place for place, each in enumerate(games) if each]
    games, style = [games[place] for place in kept], [style[place] for place in kept]
    return {
        "win_rate": _resampled(games, style, lambda some, _: win_rate([game for each in some for game in each])),
        "length_controlled": _resampled(games, [each[:1] for each in style], controlled),
        "style_controlled": _resampled(games, style, controlled),
    }


def controlled(games: Sequence[Sequence[float]], differences: Sequence[Sequence[float]]) -> float:
    """The win rate where all differences are 0: a logistic regression, its coefficients (not its intercept) held back
    by a standard normal prior on differences of standard deviation 1, so that it exists for separable games too."""
    import numpy as np

    rows = [(each, game) for each, own in zip(differences, games, strict=True) for game in own]
    features = np.array([each for each, _ in rows], dtype=float)
    features /= np.maximum(np.sqrt((features**2).mean(axis=0)), 1e-9)  # of zero, not of the mean: 0 is equal style
    x = np.hstack([np.ones((len(rows), 1)), features])
    y = np.array([0.5 if game == 0 else float(game > 0) for _, game in rows])
    weight = np.array(weights([game for _, game in rows]), dtype=float)
    prior = np.diag([1e-2, *[1.0] * features.shape[1]])
    beta = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        slope = x.T @ (weight * (y - p)) - prior @ beta
        step = np.linalg.solve((x.T * (weight * p * (1 - p))) @ x + prior, slope)
        beta += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    return float(1 / (1 + math.exp(-beta[0])))


def _resampled(games: Sequence[Any], style: Sequence[Any], figure: Any) -> Estimate:
    import numpy as np

    if not games:
        return Estimate(math.nan, math.nan, math.nan, 0)
    draws = np.random.default_rng(0).integers(0, len(games), (DRAWS, len(games)))
    found = [figure([games[place] for place in draw], [style[place] for place in draw]) for draw in draws]
    low, high = np.percentile(found, [2.5, 97.5])
    value = figure(games, style)
    return Estimate(value, min(float(low), value), max(float(high), value), len(games))


_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_MARKS = (
    re.compile(r"^#{1,6} ", re.MULTILINE), re.compile(r"^\s*(?:[-*+]|\d+[.)]) ", re.MULTILINE),
    re.compile(r"(\*\*|__)(?=\S).+?(?<=\S)\1"),
)  # fmt: skip
"""Headings, items of lists, bold text."""


def _differences(answer: str, baseline: str) -> tuple[float, ...]:
    """How much more the answer has of words, headings, items and bold text: (a - b) / (a + b), of marks a word."""
    words = [len(text.split()) for text in (answer, baseline)]
    counts = [[len(mark.findall(_CODE.sub("", text))) for mark in _MARKS] for text in (answer, baseline)]
    densities = [[count / max(1, own) for count in each] for each, own in zip(counts, words)]
    return (_relative(*words), *(_relative(a, b) for a, b in zip(*densities)))


def _relative(a: float, b: float) -> float:
    return (a - b) / (a + b) if a + b else 0.0
