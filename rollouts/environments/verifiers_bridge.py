"""Environments of the package ``verifiers`` (Prime Intellect's hub format), as they are.

Their own rollout runs, with its stops, tools and clean-up; where it asks its client for an answer, our engine gives it,
and their rubric scores the end. Versions 0.1.14 to 0.3 are bridged; 0.4 dropped this interface (``load_environment()``
that returns an environment with a rubric) for tasksets behind HTTP endpoints.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.conversation import Answer, Message

HELD_OUT = 10
"""Where an environment has no data for evaluation, every tenth row of its training data is the test split."""


def is_verifiers_environment(made: Any) -> bool:
    """Whether an object is an environment of that package, without importing it."""
    return all(hasattr(made, name) for name in ("rollout", "rubric", "get_dataset", "get_eval_dataset"))


class VerifiersEnvironment:
    """A verifiers environment in the short form of ``base.py``."""

    def __init__(self, environment: Any) -> None:
        """Raises ConfigError where its rewards compare the episodes of a group: each is scored alone here."""
        if getattr(environment, "requires_group_rollouts", False):
            raise ConfigError("its rubric scores groups of rollouts together; only rewards of single ones are bridged")
        self.environment = environment
        self.name = str(getattr(environment, "env_id", None) or type(environment).__name__)

    def tasks(self, split: str) -> Iterable[Mapping[str, Any]]:
        """The rows of its training or evaluation data set."""
        self.environment.build_eval_dataset()
        if getattr(self.environment, "eval_dataset", None) is not None:
            rows = self.environment.get_eval_dataset() if split == "test" else self.environment.get_dataset()
        else:
            rows = [
                row for number, row in enumerate(self.environment.get_dataset())
                if (number % HELD_OUT == HELD_OUT - 1) == (split == "test")
            ]  # fmt: skip
        for number, row in enumerate(rows):
            kind = {"kind": row["task"]} if isinstance(row.get("task"), str) else {}
            yield {"id": f"{split}-{row.get('example_id', number)}", "row": dict(row), **kind}

    async def reset(self, task: Mapping[str, Any]) -> "VerifiersEpisode":
        """Starts its rollout, up to the first question."""
        episode = VerifiersEpisode(self.environment, task["row"])
        await episode.begin()
        return episode


class VerifiersEpisode:
    """A rollout that waits for our engine's answers."""

    messages: list[Message]
    tools: list[Mapping[str, Any]]

    def __init__(self, environment: Any, row: Mapping[str, Any]) -> None:
        self._environment = environment
        self._client = _client()
        self._rollout = asyncio.create_task(
            environment.rollout(dict(row), self._client, "nanoalign", {})
        )  # fmt: skip
        self._seen: list[Any] = []

    async def begin(self) -> None:
        """Raises RuntimeError where the rollout ends before it asks for an answer."""
        question = await self._question()
        if question is None:
            error = self._client.state.get("error") if self._client.state else None
            raise RuntimeError(f"the rollout ended before its first question{f': {error!r}' if error else ''}")
        self._seen = list(question.prompt)
        self.messages = [_message(message) for message in question.prompt]
        self.tools = [
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
            for tool in question.tools or ()
        ]

    async def step(self, answer: Answer) -> tuple[list[Message], bool]:
        """The environment's messages after an answer, and whether the rollout is over."""
        self._client.answer(answer)
        question = await self._question()
        if question is None:
            final = self._rollout.result().get("final_env_response") or []
            return [_message(message) for message in ([final] if isinstance(final, str) else final)], True
        before = len(self._seen) + 1
        if len(question.prompt) <= before or list(question.prompt)[: before - 1] != self._seen:
            raise RuntimeError("the environment rewrites earlier messages; only what comes after them can be bridged")
        self._seen = list(question.prompt)
        return [_message(message) for message in question.prompt[before:]], False

    async def reward(self) -> float:
        """Its rubric's number, between 0 and 1: what is outside counts as the nearer bound. An episode that we end (out
        of turns or room) is scored as far as it came."""
        if not self._rollout.done():
            self._rollout.cancel()
            with suppress(asyncio.CancelledError):
                await self._rollout
        state = self._client.state if self._rollout.cancelled() else self._rollout.result()
        if state is None:
            return 0.0
        await self._environment.rubric.score_rollout(state)
        await self._environment.rubric.cleanup(state)
        return min(1.0, max(0.0, float(state["reward"])))

    async def _question(self) -> Any:
        """The next one, or None where the rollout is over. Raises what the rollout raises."""
        waiting = asyncio.ensure_future(self._client.questions.get())
        await asyncio.wait([waiting, self._rollout], return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        waiting.cancel()
        self._rollout.result()
        return None


def _client() -> Any:
    """A client of verifiers whose answers come from :meth:`answer`."""
    from verifiers.clients.client import Client
    from verifiers.types import Response, ResponseMessage, ToolCall

    class Question:
        def __init__(self, prompt: Sequence[Any], tools: Any) -> None:
            self.prompt, self.tools = list(prompt), tools
            self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    class EngineClient(Client):
        def __init__(self) -> None:
            super().__init__(None)
            self.questions: asyncio.Queue[Question] = asyncio.Queue()
            self.state: Any = None
            self._open: Question | None = None
            self._calls = 0

        async def get_response(
            self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **given: Any
        ) -> Any:
            self.state = given.get("state", self.state)
            self._open = Question(prompt, tools)
            self.questions.put_nowait(self._open)
            return await self._open.answer

        def answer(self, answer: Answer) -> None:
            calls = []
            for call in answer.tool_calls:
                self._calls += 1
                calls.append(ToolCall(id=f"call_{self._calls}", name=call.name, arguments=json.dumps(call.arguments)))
            message = ResponseMessage(
                content=answer.content, reasoning_content=answer.reasoning or None, tool_calls=calls or None,
                finish_reason="tool_calls" if calls else "stop", is_truncated=False,
            )  # fmt: skip
            assert self._open is not None
            self._open.answer.set_result(
                Response(id=f"answer-{self._calls}", created=0, model="nanoalign", usage=None, message=message)
            )

        def setup_client(self, config: Any) -> Any: ...
        async def to_native_tool(self, tool: Any) -> Any: ...
        async def to_native_prompt(self, messages: Any) -> Any: ...
        async def get_native_response(self, *arguments: Any, **given: Any) -> Any: ...
        async def raise_from_native_response(self, response: Any) -> None: ...
        async def from_native_response(self, response: Any) -> Any: ...
        async def close(self) -> None: ...

    return EngineClient()


def _message(message: Any) -> Message:
    """Theirs may be a text, a mapping or an object. Raises ValueError for content other than text."""
    if isinstance(message, str):
        return Message("user", message)
    role, content = (_part(message, name) for name in ("role", "content"))
    if not isinstance(content, str):
        parts = [_part(part, "text") for part in content or ()]
        if any(part is None for part in parts):
            raise ValueError(f"a {role}'s message holds more than text")
        content = "\n".join(map(str, parts))
    return Message("user" if role == "text" else role, content)


def _part(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
