"""A user's environment (see ``base.py`` for its short form) as the stages see one.

What the user's code does wrong ends the stage with an error that names its line and the task; what a model or a tool
does wrong becomes a text for the model, and is counted.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from nanoalign.common.errors import ConfigError, UserCodeError
from nanoalign.common.printable import nearest
from nanoalign.common.user_code import UserCode, find, load, reason
from nanoalign.data_recipes.conversation import Answer, Message, ToolCall
from nanoalign.rollouts.environments.base import Environment, Outcome, Task
from nanoalign.rollouts.environments.calls import Caller, DeadlineError, submit, wait
from nanoalign.rollouts.environments.guarded import called_here, guarded
from nanoalign.rollouts.environments.mcp_tools import McpServer, McpTool
from nanoalign.rollouts.environments.nemo_gym import NemoGym
from nanoalign.rollouts.environments.openenv_bridge import Local, OpenEnvEnvironment, Remote, Served, is_openenv
from nanoalign.rollouts.environments.reading import kind_of, listed_tools, messages_of, number_of
from nanoalign.rollouts.environments.tools import FunctionTool, as_text, error_text, function_tool
from nanoalign.rollouts.environments.verifiers_bridge import VerifiersEnvironment, is_verifiers_environment

SETUP_S = 600.0
"""Seconds that making an environment, and listing its tasks, may take."""
UNKNOWN, ARGUMENTS, RAISED, DEADLINE = "unknown tool", "wrong arguments", "tool raised", "tool over its deadline"
LOST = "tool server lost"
FAULTS = (UNKNOWN, ARGUMENTS, RAISED, DEADLINE, LOST)
"""What can go wrong with a call; counted for each episode."""
SPLITS = ("train", "test")

AnyTool = FunctionTool | McpTool | Mapping[str, Any]


def open_user_environment(
    code: UserCode, params: Mapping[str, Any], tools: Sequence[Any], deadline_s: float
) -> Environment:
    """Makes a user's environment: the class or function called with ``params``. ``tools`` (functions and MCP servers)
    come on top of its own, and no call takes longer than ``deadline_s`` seconds.

    One that already has the stages' form (``start``) is taken as it is.
    """
    caller = Caller(code.file.parent)
    made = factory = load(code)
    if callable(made):
        what = f"making `{code.name}`"
        if "verifiers" in sys.modules:
            made = called_here(made, code, what, params)
        else:
            made = wait(guarded(caller, code, what, made, deadline_s=SETUP_S, named=params))
    if hasattr(made, "start") and not hasattr(made, "reset"):
        environment: Environment = made
        return environment
    if is_verifiers_environment(made):
        made = VerifiersEnvironment(made)
    if is_openenv(made):
        if not callable(factory):
            raise ConfigError(f"{code.file}: `{code.name}`: name its class: each episode has an environment of its own")
        made = OpenEnvEnvironment(code.name, made, lambda: Local(factory(**params)))
    for method in ("tasks", "reset"):
        if not callable(getattr(made, method, None)):
            raise UserCodeError(f"{code.file}: `{code.name}` has no method `{method}`; it makes a {kind_of(made)}")
    return UserEnvironment(made, code, caller, tuple(tools), deadline_s)


def openenv_server(url: str, deadline_s: float = 60.0) -> Environment:
    """The environment behind an OpenEnv server; no call takes longer than ``deadline_s`` seconds."""
    url = url.rstrip("/")
    code = find("nanoalign.rollouts.environments.user:openenv_server")
    served = Served(url)
    made = OpenEnvEnvironment(served.name, served, lambda: Remote(url, served.action))
    return UserEnvironment(made, code, Caller(code.file.parent), deadline_s=deadline_s)


def nemo_gym_server(url: str, train: str, test: str, deadline_s: float = 60.0) -> Environment:
    """The environment behind a resources server of NeMo Gym, with files of its tasks."""
    code = find("nanoalign.rollouts.environments.user:nemo_gym_server")
    made = NemoGym(url.rstrip("/"), train, test, deadline_s)
    return UserEnvironment(made, code, Caller(code.file.parent), deadline_s=deadline_s)


@dataclass
class UserEnvironment:
    """The stages' form of a user's environment."""

    made: Any
    code: UserCode
    caller: Caller
    more_tools: tuple[Any, ...] = ()
    """On top of those that the environment and its episodes name."""
    deadline_s: float = 10.0
    name: str = field(init=False)
    _rows: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = str(getattr(self.made, "name", self.code.name))

    def tasks(self, split: str) -> list[Task]:
        """Raises UserCodeError where there are none, one is no mapping, or two have one id."""
        for each in SPLITS if split in SPLITS else (split,):
            if each not in self._rows:
                self._rows[each] = self._listed(each, asked=each == split)
        if shared := sorted(self._rows.get("train", {}).keys() & self._rows.get("test", {}).keys()):
            raise UserCodeError(f"{self.code.file}: task {shared[0]!r} is in train and in test: it is not held out")
        if not self._rows[split]:
            raise UserCodeError(f"{self.code.file}: `{self.code.name}` has no tasks for split {split!r}")
        return [self._task(split, id, row) for id, row in self._rows[split].items()]

    def _listed(self, split: str, asked: bool) -> dict[str, Mapping[str, Any]]:
        what = f"tasks({split!r})"

        def every() -> Any:
            found = self.made.tasks(split)
            return list(found) if isinstance(found, Iterable) and not isinstance(found, str | Mapping) else found

        try:
            rows = wait(guarded(self.caller, self.code, what, every, deadline_s=SETUP_S))
        except UserCodeError:
            if asked:
                raise
            return {}  # it will be asked for later, or not at all
        if rows is None:
            rows = []
        if not isinstance(rows, list):
            raise UserCodeError(f"{self.code.file}: {what} gave a {kind_of(rows)}, expected a list of rows")
        found: dict[str, Mapping[str, Any]] = {}
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise UserCodeError(f"{self.code.file}: {what}: row {number} is a {kind_of(row)}, expected a mapping")
            id = str(row.get("id", f"{split}-{number}"))
            if id in found:
                raise UserCodeError(f"{self.code.file}: {what}: two tasks have the id {id!r}")
            found[id] = row
        return found

    def _task(self, split: str, id: str, row: Mapping[str, Any]) -> Task:
        prompt = row.get("prompt", ())
        messages = messages_of(prompt, f"{self.code.file}: task {id!r}: `prompt`")
        return Task(id, messages, (), split, row)

    def start(self, task: Task) -> "UserEpisode":
        return self.start_all([task])[0]

    def start_all(self, tasks: Sequence[Task]) -> "list[UserEpisode]":
        return wait(self._start_all(tasks))

    async def _start_all(self, tasks: Sequence[Task]) -> "list[UserEpisode]":
        return await _together(self._start(task) for task in tasks)

    async def _start(self, task: Task) -> "UserEpisode":
        what = f"task {task.id!r}: reset"
        made = await self.call(what, self.made.reset, dict(task.data))
        place = f"{self.code.file}: task {task.id!r}"
        if not callable(getattr(made, "reward", None)):
            raise UserCodeError(f"{place}: reset gave a {kind_of(made)}, expected an episode with a method `reward`")
        messages = messages_of(getattr(made, "messages", task.prompt), f"{place}: `messages`")
        if not any(message.role == "user" for message in messages):
            near = nearest("prompt", task.data) if task.data else ""
            raise UserCodeError(f"{place}: nothing to answer: the row has no `prompt` with a user message{near}")
        listed = [*listed_tools(made, self.made, place), *self.more_tools]
        tools = await self.tools(listed, place)
        bare = [isinstance(tool, Mapping) for tool in tools.values()]
        own = any(bare)
        if own and not all(bare):
            raise UserCodeError(f"{place}: tools with and without a function: either we run the calls, or `step` does")
        if own and not callable(getattr(made, "step", None)):
            raise UserCodeError(f"{place}: tools without a function need a method `step` that runs their calls")
        schemas = tuple(tool if isinstance(tool, Mapping) else tool.schema for tool in tools.values())
        return UserEpisode(self, task, made, messages, schemas, tools, own)

    async def tools(self, listed: Sequence[Any], place: str) -> dict[str, AnyTool]:
        """Tools by name. Raises UserCodeError where one is none, or two share a name."""
        found: dict[str, AnyTool] = {}
        for each in listed:
            new: list[AnyTool]
            if isinstance(each, McpServer):
                new = list(await each.tools())
            elif isinstance(each, Mapping):
                if not isinstance(each.get("name"), str):
                    raise UserCodeError(f"{place}: a tool's schema without `name`: {dict(each)!r:.80}")
                new = [each]
            elif callable(each):
                new = [function_tool(each)]
            else:
                raise UserCodeError(f"{place}: a tool is a function, a schema or an McpServer, got a {kind_of(each)}")
            for tool in new:
                name = tool["name"] if isinstance(tool, Mapping) else tool.schema["name"]
                if name in found:
                    raise UserCodeError(f"{place}: two tools are called `{name}`")
                found[name] = tool
        return found

    def step_all(self, episodes: "Sequence[UserEpisode]", answers: Sequence[Answer]) -> list[Sequence[Message]]:
        return wait(self._step_all(episodes, answers))

    def step_soon(self, episode: "UserEpisode", answer: Answer) -> "Future[Sequence[Message]]":
        return submit(self._step_one(episode, answer))

    async def _step_one(self, episode: "UserEpisode", answer: Answer) -> Sequence[Message]:
        return (await self._step_all([episode], [answer]))[0]

    async def _step_all(self, episodes: "Sequence[UserEpisode]", answers: Sequence[Answer]) -> list[Sequence[Message]]:
        """The calls of all, together; then the steps of those that made none, in one call where the user has one."""
        for episode in episodes:
            episode.require_running()
        results: list[Any] = await _together(map(UserEpisode.run_calls, episodes, answers))
        rest = [place for place, result in enumerate(results) if result is None]
        steps = await self._steps([episodes[place] for place in rest], [answers[place] for place in rest])
        for place, step in zip(rest, steps, strict=True):
            results[place] = step
        return [episode.took(result) for episode, result in zip(episodes, results, strict=True)]

    async def _steps(self, episodes: "Sequence[UserEpisode]", answers: Sequence[Answer]) -> list[Any]:
        together = getattr(self.made, "step_all", None)
        if together is None or not episodes:
            return await _together(map(UserEpisode.run_step, episodes, answers))
        what = f"step_all of {len(episodes)} episodes (task {episodes[0].task.id!r} first)"
        results = await self.call(what, together, [each.made for each in episodes], list(answers))
        if not isinstance(results, Sequence) or len(results) != len(episodes):
            raise UserCodeError(f"{self.code.file}: {what} gave a {kind_of(results)}, expected one result for each")
        return list(results)

    def end_all(self, episodes: "Sequence[UserEpisode]") -> list[Outcome]:
        return wait(_together(map(UserEpisode.end, episodes)))

    async def call(self, what: str, function: Any, *arguments: Any) -> Any:
        """A method of the user's. Raises UserCodeError, with the user's line, where it raises or hangs."""
        return await guarded(self.caller, self.code, what, function, *arguments, deadline_s=self.deadline_s)


@dataclass
class UserEpisode:
    """An attempt at a task of a user's environment."""

    environment: UserEnvironment
    task: Task
    made: Any
    """The user's episode."""
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    by_name: Mapping[str, AnyTool]
    steps_calls: bool
    """The user's ``step`` runs the calls: there are tools without a function."""
    over: bool = False
    faults: Counter[str] = field(default_factory=Counter)

    def step(self, answer: Answer) -> Sequence[Message]:
        """One answer in, messages out. Raises RuntimeError after the end."""
        return self.environment.step_all([self], [answer])[0]

    def reward(self) -> float:
        return self.outcome().reward

    def success(self) -> bool:
        return self.outcome().success

    def outcome(self) -> Outcome:
        """Of the episode as it is now."""
        return self.environment.end_all([self])[0]

    async def end(self) -> Outcome:
        """The user's number and word, or a reward of 1, of an episode that ended. Raises UserCodeError where the number
        is none between 0 and 1."""
        what = f"task {self.task.id!r}: reward"
        value = await self.environment.call(what, self.made.reward)
        reward = number_of(value, f"{self.environment.code.file}: {what} gave")
        own = getattr(self.made, "success", None)
        success = reward >= 1 if own is None else bool(
            await self.environment.call(f"task {self.task.id!r}: success", own)
        )  # fmt: skip
        return Outcome(success and self.over, reward)

    def require_running(self) -> None:
        if self.over:
            raise RuntimeError("the episode is over: start another one")

    async def run_calls(self, answer: Answer) -> list[Message] | None:
        """The results of an answer's calls, in order; None where the user's ``step`` is to be asked."""
        if self.steps_calls or not answer.tool_calls:
            return None
        return [Message("tool", await self._run(call)) for call in answer.tool_calls]

    async def run_step(self, answer: Answer) -> Any:
        step = getattr(self.made, "step", None)
        return None if step is None else await self.environment.call(f"task {self.task.id!r}: step", step, answer)

    def took(self, result: Any) -> Sequence[Message]:
        """What a step gave, as messages; sets ``over``."""
        what = f"{self.environment.code.file}: task {self.task.id!r}: step gave"
        done = None
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], bool):
            result, done = result
        messages = () if result is None else messages_of(result, what)
        if done is False and not messages:
            raise UserCodeError(f"{what} no messages, and is not done: there is nothing to answer")
        self.over = not messages if done is None else done
        return messages

    async def _run(self, call: ToolCall) -> str:
        """A call's result, whatever the call."""
        tool = self.by_name.get(call.name)
        if tool is None or isinstance(tool, Mapping):
            return self._fault(UNKNOWN, f"there is no tool `{call.name[:64]}`{nearest(call.name[:64], self.by_name)}")
        deadline_s = self.environment.deadline_s
        if isinstance(tool, McpTool):
            text, fault = await tool.call(call.arguments, deadline_s)
            self.faults.update([fault] if fault else [])
            return text
        try:
            arguments = tool.check(call.arguments)
        except ValueError as error:
            return self._fault(ARGUMENTS, str(error))
        try:
            return as_text(await self.environment.caller(tool.function, deadline_s=deadline_s, **arguments))
        except DeadlineError:
            return self._fault(DEADLINE, f"`{call.name}` took longer than {deadline_s:g} s")
        except (Exception, SystemExit) as error:
            return self._fault(RAISED, reason(error))

    def _fault(self, kind: str, message: str) -> str:
        self.faults[kind] += 1
        return error_text(message)


async def _together(coroutines: Iterable[Any]) -> list[Any]:
    """All results, in order; the first error only once all have ended, so that nothing goes on behind it."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
