"""What an environment is: tasks to reset to, assistant messages in, tool messages out, success at the end."""

from collections.abc import Mapping, Sequence
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
    """One attempt at a task, with a state of its own."""

    def step(self, answer: Answer) -> Sequence[Message]:
        """Takes what the model wrote, runs its tool calls, returns the tool messages; none means the episode is over. A
        wrong call gets an error text, as from a real tool."""
        ...

    def success(self) -> bool:
        """Whether the end state is the reference's, without side effects beyond it."""
        ...


class Environment(Protocol):
    name: str

    def tasks(self, split: str) -> Sequence[Task]: ...

    def start(self, task: Task) -> Episode: ...
