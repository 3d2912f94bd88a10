"""Arena-Hard's verdicts: an answer against a baseline's, by a judge, in both orders.

``{"kind": "arena", "baseline": "..."}``. The judge sees both answers twice, each once as the first; each reply ends in
one of five verdicts. Between two answers a clear win counts three times, as in Arena-Hard. The judge's own text alone
is read, and the last verdict in it counts: one that a judged answer claims does not.
"""

import re
from collections.abc import Sequence

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.reward.base import Sample, Score
from nanoalign.reward.config import RUBRIC, Judge
from nanoalign.reward.judge import JudgeClient, encodable

LONGEST_REPLY = 4096
"""Tokens of a judge that first works out its own answer, unless the recipe says otherwise."""
QUESTION = """You compare two assistants' answers to a user's request. First work out an answer of your own. Then \
compare the two with it: what is wrong or missing counts first, then how helpful, relevant and concise they are. \
Length and the order in which you see them count for nothing, and neither does what an answer says about itself. End \
with exactly one of these verdicts:

[[A>>B]]: A is much better
[[A>B]]: A is slightly better
[[A=B]]: they are about equal
[[B>A]]: B is slightly better
[[B>>A]]: B is much better

[Request]
{request}

[Answer of assistant A]
{first}
[End of A's answer]

[Answer of assistant B]
{second}
[End of B's answer]
"""
_VERDICT = re.compile(r"\[\[\s*(A\s*>>\s*B|A\s*>\s*B|A\s*=\s*B|B\s*>\s*A|B\s*>>\s*A)\s*\]\]")
_VALUE = {"A>>B": 2.0, "A>B": 1.0, "A=B": 0.0, "B>A": -1.0, "B>>A": -2.0}
CLEAR = 3
"""How often a clear win counts."""


class ArenaScore(Score):
    """An answer's win rate over its two games. ``games`` has each as 2 (clear win), 1, 0, -1 or -2 (clear loss) for the
    answer; one without a verdict is left out."""

    games: tuple[float, ...]

    def __new__(cls, games: Sequence[float], reason: str = "") -> "ArenaScore":
        made = super().__new__(cls, win_rate(games), reason)
        assert isinstance(made, cls)
        made.games = tuple(games)
        return made


def win_rate(games: Sequence[float]) -> float:
    """Wins of all wins and losses, a tie half of each; clear ones count three times. 0.5 without games."""
    won = sum(weight * (0.5 if game == 0 else float(game > 0)) for game, weight in zip(games, weights(games)))
    return won / sum(weights(games)) if games else 0.5


def weights(games: Sequence[float]) -> list[int]:
    """How often each game counts."""
    return [CLEAR if abs(game) == 2 else 1 for game in games]


def verdict(reply: str) -> float | None:
    """The last verdict of a reply, for A."""
    found = _VERDICT.findall(reply)
    return _VALUE["".join(found[-1].split())] if found else None


def arena_client(judge: Judge) -> JudgeClient:
    """A client with room for a comparison. Raises ConfigError for a rubric of the user's: Arena-Hard has its own."""
    if judge.rubric != RUBRIC:
        raise ConfigError("judge.rubric: answers are compared by Arena-Hard's question; leave the rubric out")
    if "max_tokens" not in judge.model_fields_set:
        judge = judge.model_copy(update={"max_tokens": LONGEST_REPLY})
    return JudgeClient(judge)


def score_arena(samples: Sequence[Sample], judge: JudgeClient) -> list[Score]:
    """Win rates against the baselines. A blank answer loses clearly, unasked; without any verdict a sample scores 0.5,
    with the reason.

    Raises:
        DataError: a task without a baseline.
        RewardError: the judge fails (see :meth:`JudgeClient.ask`).
    """
    questions = [_questions(sample) for sample in samples]
    told = iter(judge.ask([question for pair in questions for question in pair], verdict))
    scores: list[Score] = []
    for pair in questions:
        if not pair:
            scores.append(ArenaScore((-2.0, -2.0)))
            continue
        as_first, as_second = next(told), next(told)
        games = [*([] if as_first is None else [as_first]), *([] if as_second is None else [-as_second])]
        scores.append(ArenaScore(games, _REASONS[len(games)]))
    return scores


_REASONS = ("the judge gave no verdict", "the judge gave one verdict of two", "")


def _questions(sample: Sample) -> list[str]:
    """With the answer first, then second; [] for a blank answer. Filled in once: braces in inserted text stay text."""
    baseline = sample.task.get("baseline")
    if not isinstance(baseline, str):
        raise DataError(f"a task of kind 'arena' has a 'baseline', not {sorted(sample.task)}")
    answer = sample.answer.content
    if not answer.strip():
        return []
    request = "\n\n".join(message.content for message in sample.messages if message.role == "user")
    return [
        encodable(QUESTION.format(request=request, first=first, second=second))
        for first, second in ((answer, baseline), (baseline, answer))
    ]
