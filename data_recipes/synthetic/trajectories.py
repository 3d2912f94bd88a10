"""Tool trajectories by simulation: the model works at a desk that answers its calls; what ends as it should is kept."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from nanoalign.data_recipes.chat.answers import as_answer
from nanoalign.data_recipes.conversation import Answer, Conversation, Message
from nanoalign.data_recipes.synthetic.driver import Made, Maker
from nanoalign.data_recipes.synthetic.rejection import fault_of
from nanoalign.data_recipes.synthetic.served import Query, Reply


class EpisodeLike(Protocol):
    """An attempt at a task in a simulator; see rollouts/environments, whose episodes are such."""

    def step(self, answer: Answer) -> Sequence[Message]: ...

    def success(self) -> bool: ...


def trajectory(task: Conversation, start: Callable[[], EpisodeLike], tries: int, turns: int, seed: int = 0) -> Maker:
    """Attempts a task up to ``tries`` times, one after the other; keeps the first success. ``task`` gives the tools and
    what is known of the sample, its messages are the prompt; ``start`` begins an attempt."""
    made = Made()
    for number in range(tries):
        messages = list(task.messages)
        fault = yield from _attempt(start(), messages, task.tools, turns, seed * tries + number)
        sample = replace(task, messages=tuple(messages))
        fault = fault or fault_of(sample) or ""
        if not fault:
            made.samples.append(sample)
            break
        made.reasons[fault] += 1
    return made


def _attempt(
    episode: EpisodeLike, messages: list[Message], tools: tuple[Mapping[str, Any], ...], turns: int, number: int
) -> Generator[list[Query], list[Reply], str]:
    """Plays one attempt, adding to ``messages``; returns what went wrong, "" where nothing did."""
    for _ in range(turns):
        [reply] = yield [Query(tuple(messages), tools, number)]
        if reply.message is None:
            return reply.fault
        results = episode.step(as_answer(reply.message))
        messages += [reply.message, *results]
        if not results:
            return "" if episode.success() else "the end state is another one"
    return "too many turns"
