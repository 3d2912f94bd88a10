"""BFCL's multi-turn tasks as episodes: several requests, each worked on until an answer without a call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanoalign.data_recipes.conversation import Answer, Conversation, Message, ToolCall
from nanoalign.data_recipes.workplace.bfcl import STEPS, World, load_classes, verdict
from nanoalign.rollouts.environments.base import Task

MORE_FUNCTIONS = "I have updated some more functions you can choose from. What about now?"
"""What a user says where held-out functions come in (bfcl-eval's words)."""


class BfclMultiTurn:
    """Tasks of ``evaluation.multi_turn``, all of them held out."""

    name = "bfcl-multi-turn"

    def __init__(self, conversations: Sequence[Conversation], data_root: Path | None) -> None:
        """Raises DataError where bfcl-eval's simulators cannot be had."""
        self._data_root = data_root
        load_classes(sorted({name for each in conversations for name in (each.task or {})["classes"]}), data_root)
        self._tasks = [
            Task(each.id, (), each.tools, "test", {**(each.task or {}), "kind": each.domain}) for each in conversations
        ]

    def tasks(self, split: str) -> Sequence[Task]:
        return self._tasks if split == "test" else []

    def start(self, task: Task) -> "BfclEpisode":
        return BfclEpisode(task, self._data_root)


class BfclEpisode:
    """One attempt. ``tools`` grows where a request brings further functions."""

    def __init__(self, task: Task, data_root: Path | None) -> None:
        self._task, self._data_root = task.data, data_root
        self._world = World(task.data, data_root)
        self.turns: list[list[tuple[ToolCall, ...]]] = [[]]
        """Request by request, the calls of each answer that held some."""
        self.over = False
        held = {name for names in self._held_out.values() for name in names}
        self._all_tools = task.tools
        self.tools = tuple(tool for tool in task.tools if tool["name"] not in held)
        self.messages = self._request()

    @property
    def _held_out(self) -> Mapping[str, Sequence[str]]:
        held: Mapping[str, Sequence[str]] = self._task["held_out"]
        return held

    def _request(self) -> list[Message]:
        """The request at hand; functions that come with it are added to the tools."""
        number = len(self.turns) - 1
        new = set(self._held_out.get(str(number), ()))
        self.tools += tuple(tool for tool in self._all_tools if tool["name"] in new)
        said = self._task["turns"][number]
        return [Message("user", MORE_FUNCTIONS)] if new else [Message(each["role"], each["content"]) for each in said]

    def step(self, answer: Answer) -> Sequence[Message]:
        """The results of an answer's calls; after one without calls the next request. Raises RuntimeError after the
        end."""
        if self.over:
            raise RuntimeError("the episode is over: start another one")
        if answer.tool_calls:
            self.turns[-1].append(answer.tool_calls)
            self.over = len(self.turns[-1]) > STEPS
            return [Message("tool", self._world.call(call.name, call.arguments)) for call in answer.tool_calls]
        if len(self.turns) == len(self._task["turns"]):
            self.over = True
            return ()
        self.turns.append([])
        return self._request()

    def success(self) -> bool:
        """Whether the benchmark counts the attempt as right."""
        return not self.why()

    def why(self) -> str:
        """Why it does not; "" where it does."""
        if not self.over:
            return f"ended in request {len(self.turns)} of {len(self._task['turns'])}"
        return verdict(self._task, self.turns, self._data_root)


def turns_of(messages: Sequence[Mapping[str, Any]]) -> list[list[list[ToolCall]]]:
    """What :func:`verdict` judges, from the messages of an episode's record."""
    turns: list[list[list[ToolCall]]] = []
    for message in messages:
        if message["role"] == "user":
            turns.append([])
        elif message["role"] == "assistant" and message["tool_calls"]:
            turns[-1].append([ToolCall(each["name"], each["arguments"]) for each in message["tool_calls"]])
    return turns
