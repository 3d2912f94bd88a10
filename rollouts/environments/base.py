"""What an environment is, as the stages see it: tasks to start from, answers in, messages out, a reward at the end.

A user's own environment may be written in a shorter form, without anything of ours in it (``user.py`` adapts it)::

    class Shop:                                # environment: {name: "my_env.py:Shop", params: {items: 3}}
        def __init__(self, items: int): ...
        def tasks(self, split): ...            # rows for "train" and "test": {"id": ..., "prompt": ..., anything else}
        def reset(self, task): ...             # a row in, an episode out

    class Basket:                              # the episode: an object of any class
        tools = [...]                          # functions (its own methods, say), MCP servers or plain schemas
        messages = [...]                       # optional: what the model is given first, else the row's prompt
        def step(self, answer): ...            # optional: text in (calls are run by us), messages out; see docs
        def reward(self): ...                  # 0 to 1, at the end
        def success(self): ...                 # optional, else reward() >= 1

Each of its methods, and each tool, may be ``async``: those of one turn are awaited together over all episodes. An
environment with ``step_all(episodes, answers)`` takes a whole turn in one call. See docs/own_environment.md.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from nanoalign.data_recipes.conversation import Answer, Message


@dataclass(frozen=True)
class Task:
    """A task of an environment; ``split`` is train or test, and the two never share a task."""

    id: str
    prompt: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    split: str
    data: Mapping[str, Any]


class Episode(Protocol):
    """One attempt at a task, with a state of its own.

    It may say more: ``messages`` and ``tools``, instead of the task's (see :func:`opening`), tools anew after each
    step; ``why()``, in words why it was no success; ``over``, that the last messages end it; ``reward()`` (see
    :func:`end_all`); ``credit()``, how near a failed attempt came, from 0 to 1, which no reward counts; ``faults``, how
    often its tools went wrong, by kind.
    """

    def step(self, answer: Answer) -> Sequence[Message]:
        """Takes what the model wrote, runs its tool calls, returns the tool messages; none means the episode is over. A
        wrong call gets an error text, as from a real tool."""
        ...

    def success(self) -> bool:
        """Whether the end state is the reference's, without side effects beyond it."""
        ...


class Environment(Protocol):
    """It may also have ``start_all(tasks)``, ``step_all(episodes, answers)`` and ``end_all(episodes)``, which take many
    episodes at once, and ``step_soon(episode, answer)`` (see the functions of these names)."""

    name: str

    def tasks(self, split: str) -> Sequence[Task]: ...

    def start(self, task: Task) -> Episode: ...


def start_all(environment: Environment, tasks: Sequence[Task]) -> list[Episode]:
    """An episode of each task, in order; asynchronous environments start them together."""
    together = getattr(environment, "start_all", None)
    return list(together(tasks)) if together else [environment.start(task) for task in tasks]


def step_all(
    environment: Environment, episodes: Sequence[Episode], answers: Sequence[Answer]
) -> list[Sequence[Message]]:
    """The next messages of each episode, in order; asynchronous environments step them together."""
    together = getattr(environment, "step_all", None)
    if together:
        return list(together(episodes, answers))
    return [episode.step(answer) for episode, answer in zip(episodes, answers, strict=True)]


def step_soon(environment: Environment, episode: Episode, answer: Answer) -> "Future[Sequence[Message]]":
    """One episode's next messages, without waiting for them, for episodes that do not go turn by turn. A blocking
    environment's are there at once; an asynchronous one's come while others generate."""
    soon = getattr(environment, "step_soon", None)
    if soon:
        future: Future[Sequence[Message]] = soon(episode, answer)
        return future
    future = Future()
    future.set_result(episode.step(answer))
    return future


def opening(episode: Episode, task: Task) -> tuple[tuple[Message, ...], tuple[Mapping[str, Any], ...]]:
    """The first messages and the tools of an episode: its own, else its task's."""
    return tuple(getattr(episode, "messages", task.prompt)), tuple(getattr(episode, "tools", task.tools))


def is_over(episode: Episode, results: Sequence[Message]) -> bool:
    """Whether a step that gave these messages was the last one."""
    return not results or bool(getattr(episode, "over", False))


@dataclass(frozen=True)
class Outcome:
    """How an episode ended."""

    success: bool
    reward: float
    """Between 0 and 1: the episode's own, else 1 for a success."""


def end_all(environment: Environment, episodes: Sequence[Episode]) -> list[Outcome]:
    """How each episode ended, in order; asynchronous rewards are asked for together."""
    together = getattr(environment, "end_all", None)
    if together:
        return list(together(episodes))
    outcomes = []
    for episode in episodes:
        success = episode.success()
        own = getattr(episode, "reward", None)
        outcomes.append(Outcome(success, float(success) if own is None else float(own())))
    return outcomes
