"""Environments of the package ``openenv`` (Meta's and Hugging Face's), in this process or behind their servers, as they
are.

An episode is an instance of the environment's class, or a session at its server. What the model calls or writes becomes
an action, the observation becomes the next message, and the return (the sum of the steps' rewards) is the reward. Their
MCP environments' tools are the model's tools; any other environment's action is one tool, `act`, or, where all that it
needs is one text, simply what the model writes.
"""

import asyncio
import inspect
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args, get_type_hints

from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.conversation import Answer, Message

SEEDS = 1000
"""Tasks of an environment that lists none: it is reset with so many seeds."""
HELD_OUT = 10
"""Where an environment names no test split, every tenth task is one."""
ACT = "act"
BARE = frozenset({"done", "reward", "metadata"})
"""What every observation has."""


class NoActionError(Exception):
    """What the model wrote is no action of the environment."""


def is_openenv(made: Any) -> bool:
    """Whether an object is an environment of that package, without importing it."""
    return all(hasattr(type(made), name) for name in ("reset", "step", "step_async", "state", "get_metadata"))


class OpenEnvEnvironment:
    """An OpenEnv environment in the short form of ``base.py``."""

    def __init__(self, name: str, listed: Any, session: "Callable[[], Local | Remote]") -> None:
        """``listed``: what may list its tasks, by `num_tasks` and `list_splits`. ``session``: opens one."""
        self.name, self.listed, self.session = name, listed, session

    def tasks(self, split: str) -> Iterable[Mapping[str, Any]]:
        """What its task API lists, else seeds. A split of that name, or every tenth task of the training split."""
        names = [each if isinstance(each, str) else _part(each, "name") for each in _splits(self.listed)]
        train = "train" if "train" in names else names[0] if names else None
        test = next((each for each in ("test", "validation", "eval") if each in names and each != train), None)
        name = test if split == "test" and test else train
        for number in range(self.listed.num_tasks(name) if name else SEEDS):
            if test or (number % HELD_OUT == HELD_OUT - 1) == (split == "test"):
                wanted = {"split": name, "index": number} if name else {"seed": number}
                yield {"id": f"{name or 'seed'}-{number}", "reset": wanted}

    async def reset(self, task: Mapping[str, Any]) -> "OpenEnvEpisode":
        """A new session, reset to the task."""
        episode = OpenEnvEpisode(await asyncio.to_thread(self.session))
        await episode.begin(task["reset"])
        return episode


class OpenEnvEpisode:
    """A session, with the rewards so far."""

    messages: list[Message]
    tools: list[Mapping[str, Any]]

    def __init__(self, session: "Local | Remote") -> None:
        self._session, self._return, self._done = session, 0.0, False
        self._text: str | None = None
        """The action's only field, where that is a text."""

    async def begin(self, reset: Mapping[str, Any]) -> None:
        """Raises what the environment raises."""
        self.messages = [Message("user", self._took(await self._session.reset(dict(reset))))]
        if self._session.has_tools:
            found = (await self._session.step({"type": "list_tools"}))["observation"]["tools"]
            self.tools = [
                {"name": tool["name"], "description": tool["description"], "parameters": tool["input_schema"]}
                for tool in found
            ]
            return
        schema = await self._session.schema()
        fields = {name: each for name, each in schema.get("properties", {}).items() if name != "metadata"}
        needed = [name for name in schema.get("required", ()) if name in fields] or list(fields)
        if len(needed) == 1 and fields[needed[0]].get("type") == "string":
            self._text, self.tools = needed[0], []
        else:
            parameters = {key: value for key, value in schema.items() if key != "title"} | {"properties": fields}
            self.tools = [{"name": ACT, "description": schema.get("description", ""), "parameters": parameters}]

    async def step(self, answer: Answer) -> tuple[list[Message], bool]:
        """The observations after an answer. One without an action (no call, where calls are wanted) ends the episode,
        and so does the environment."""
        if self._text is not None:
            return [Message("user", await self._act({self._text: answer.content}))], self._done
        results = []
        for call in answer.tool_calls:
            if self._session.has_tools:
                action = {"type": "call_tool", "tool_name": call.name, "arguments": dict(call.arguments)}
            else:
                action = dict(call.arguments)
            known = any(tool["name"] == call.name for tool in self.tools)
            if self._done or not known:
                why = "the episode is over" if self._done else f"there is no tool `{call.name[:64]}`"
                results.append(Message("tool", f"Error: {why}"))
            else:
                results.append(Message("tool", await self._act(action)))
        return results, self._done or not results

    async def reward(self) -> float:
        """The sum of the steps' rewards, between 0 and 1: what is outside counts as the nearer bound."""
        await self._session.close()
        return min(1.0, max(0.0, self._return))

    async def _act(self, action: dict[str, Any]) -> str:
        try:
            return self._took(await self._session.step(action))
        except NoActionError as error:
            return f"Error: {str(error)[:500]}"

    def _took(self, result: Mapping[str, Any]) -> str:
        """The text of an observation; its reward is added up."""
        self._return += float(result["reward"] or 0.0)
        self._done = self._done or bool(result["done"])
        seen = result["observation"]
        shown = {name: value for name, value in seen.items() if name not in BARE and value is not None}
        if "tool_name" in shown and not shown.get("error"):
            shown = {"result": _result(shown.get("result"))}
        shown = shown or dict(seen.get("metadata") or {}) or {"": "Begin."}
        texts = [value for value in shown.values() if isinstance(value, str)]
        return texts[0] if len(shown) == len(texts) == 1 else json.dumps(shown, ensure_ascii=False, default=str)


class Local:
    """An environment in this process."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.has_tools = hasattr(environment, "mcp_session")

    async def reset(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        return _observed(await self._call("reset", **wanted))

    async def step(self, action: dict[str, Any]) -> dict[str, Any]:
        """Raises NoActionError where the action is none of the environment's."""
        return _observed(await self._call("step", self._action(action)))

    async def schema(self) -> dict[str, Any]:
        found: dict[str, Any] = self._class().model_json_schema()
        return found

    async def close(self) -> None:
        if callable(close := getattr(self.environment, "close", None)):
            await asyncio.to_thread(close)

    async def _call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Its own asynchronous method; else its other one, on a thread, unless it wants to stay on one."""
        theirs = getattr(type(self.environment), f"{name}_async")
        if not theirs.__module__.endswith("env_server.interfaces"):
            return await getattr(self.environment, f"{name}_async")(*arguments, **named)
        function = getattr(self.environment, name)
        if getattr(self.environment, "REQUIRES_SINGLE_THREAD_EXECUTOR", False):
            return function(*arguments, **named)
        return await asyncio.to_thread(function, *arguments, **named)

    def _action(self, action: dict[str, Any]) -> Any:
        if self.has_tools:
            from openenv.core.env_server.mcp_types import CallToolAction, ListToolsAction

            return (ListToolsAction if action["type"] == "list_tools" else CallToolAction)(**action)
        try:
            return self._class().model_validate(action)
        except ValueError as error:
            raise NoActionError(str(error)) from error

    def _class(self) -> Any:
        """Of its actions, by the types that it is written with. Raises TypeError where it is written without."""
        cls = type(self.environment)
        named = [name for name in inspect.signature(cls.step).parameters if name != "self"]
        found = get_type_hints(cls.step).get(named[0]) if named else None
        if not hasattr(found, "model_validate"):
            bases = [get_args(base) for base in getattr(cls, "__orig_bases__", ())]
            found = next((each[0] for each in bases if each and hasattr(each[0], "model_validate")), None)
        if found is None:
            raise TypeError(f"{cls.__name__}.step: its action has no type, so that its fields are not known")
        return found


class Remote:
    """A session at an environment's server, by the messages of its WebSocket: the package is not needed here, where it
    could not be beside vLLM (openenv 0.10 takes fastmcp 3 and mcp<2, vLLM 0.31 mcp>=2)."""

    def __init__(self, url: str, action: dict[str, Any]) -> None:
        """``action``: its JSON schema. Raises ConfigError where the package websockets is missing."""
        try:
            import websockets  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"openenv: pip install websockets, by which {url} is asked") from error
        self.url, self._action = url, action
        self.has_tools = "tool_name" in action.get("properties", {})
        self._socket: Any = None

    async def reset(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        from websockets.asyncio.client import connect

        self._socket = await connect(f"ws{self.url.removeprefix('http')}/ws", max_size=None, proxy=None)
        return await self._say("reset", wanted)

    async def step(self, action: dict[str, Any]) -> dict[str, Any]:
        """Raises NoActionError where the server refuses the action."""
        return await self._say("step", action)

    async def schema(self) -> dict[str, Any]:
        return self._action

    async def close(self) -> None:
        await self._socket.close()

    async def _say(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        await self._socket.send(json.dumps({"type": kind, "data": data}))
        answer: dict[str, Any] = json.loads(await self._socket.recv())
        said = answer["data"]
        if answer["type"] == "error":
            if said.get("code") == "VALIDATION_ERROR" and kind == "step":
                raise NoActionError(json.dumps(said.get("errors", said), default=str))
            raise RuntimeError(f"{self.url}: {said.get('message')} ({said.get('code')})")
        return {"observation": said["observation"], "reward": said.get("reward"), "done": said.get("done", False)}


class Served:
    """What a server says of its environment."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError where it cannot be reached."""
        self.url, self.name = url, str(_ask(f"{url}/list_environments")[0])
        self.action: dict[str, Any] = _ask(f"{url}/schema")["action"]

    def list_splits(self) -> list[Any]:
        found: list[Any] = _ask(f"{self.url}/{self.name}/splits", missing=[])
        return found

    def num_tasks(self, split: str) -> int:
        return int(_ask(f"{self.url}/{self.name}/num_tasks", {"split": split})["num_tasks"])


def _ask(url: str, body: Mapping[str, Any] | None = None, missing: Any = None) -> Any:
    """JSON of a server. ``missing``: what it is where the server has no such thing (501). Raises ConfigError where it
    cannot be reached."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 501 and missing is not None:
            return missing
        raise ConfigError(f"openenv: {url} answers {error.code}: is it an OpenEnv server?") from error
    except OSError as error:
        raise ConfigError(f"openenv: no answer from {url}: {error}") from error


def _splits(listed: Any) -> list[Any]:
    return list(listed.list_splits()) if hasattr(listed, "num_tasks") else []


def _observed(observation: Any) -> dict[str, Any]:
    seen = observation.model_dump(mode="json")
    return {"observation": seen, "reward": observation.reward, "done": observation.done}


def _result(value: Any) -> Any:
    """What a tool gave: MCP's own wrappings taken off."""
    if isinstance(value, Mapping):
        if "data" in value and value["data"] is not None:
            return _result(value["data"])
        if isinstance(content := value.get("content"), list) and all("text" in part for part in content):
            return "\n".join(part["text"] for part in content)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _part(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
