"""Environments of the package openenv, unchanged: `pip install --target DIR openenv`. Behind their server with
`NANOALIGN_OPENENV=DIR pytest`; in this process with `PYTHONPATH=DIR pytest`, which brings another mcp than
vLLM takes."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.conversation import Answer, Message, ToolCall
from nanoalign.rollouts.config import EnvironmentUse
from nanoalign.rollouts.environments import environment
from nanoalign.rollouts.environments.base import Outcome
from tests.rollouts.served import served

SOURCE = '''
import sys
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.types import Action, Observation, State

class Guess(Action):
    text: str

class Heard(Observation):
    said: str = ""

class Guessing(Environment[Guess, Heard, State]):
    """The number is the seed modulo 10."""
    SUPPORTS_CONCURRENT_SESSIONS = True
    def __init__(self, tries: int = 3):
        super().__init__()
        self.tries, self._state = tries, State()
    def reset(self, seed=None, episode_id=None, **kwargs):
        self.number, self._state = seed % 10, State(step_count=0)
        return Heard(said="Guess my number.")
    def step(self, action: Guess, timeout_s=None, **kwargs):
        self._state.step_count += 1
        if action.text.strip() == str(self.number):
            return Heard(said="Yes.", done=True, reward=1.0)
        over = self._state.step_count >= self.tries
        return Heard(said="No.", done=over, reward=-0.1)
    @property
    def state(self):
        return self._state

class Move(Action):
    """Moves on the grid."""
    direction: str
    steps: int = 1
    fast: bool

class Board(Observation):
    x: int = 0

class Grid(Environment[Move, Board, State]):
    def reset(self, seed=None, episode_id=None, **kwargs):
        self.x = 0
        return Board(x=0)
    def step(self, action, timeout_s=None, **kwargs):
        self.x += action.steps if action.direction == "east" else -action.steps
        return Board(x=self.x, reward=0.5, done=abs(self.x) > 2)
    @property
    def state(self):
        return State()
    def list_splits(self):
        return ["train", "test"]
    def num_tasks(self, split):
        return {"train": 5, "test": 2}[split]

class Office(MCPEnvironment):
    def __init__(self):
        from fastmcp import FastMCP
        server = FastMCP("office")
        self.sent = []
        @server.tool
        def send(to: str, text: str) -> str:
            """Sends a message."""
            self.sent.append(to)
            return f"sent to {to}"
        super().__init__(server)
    def reset(self, seed=None, episode_id=None, **kwargs):
        self.sent = []
        return Observation(metadata={"message": "Write to Ann."})
    def _step_impl(self, action, timeout_s=None, **kwargs):
        raise NotImplementedError
    async def step_async(self, action, timeout_s=None, **kwargs):
        seen = await super().step_async(action, timeout_s=timeout_s, **kwargs)
        seen.reward = float(self.sent == ["ann"])
        return seen
    @property
    def state(self):
        return State()

made = Guessing()

if __name__ == "__main__":
    import uvicorn
    from openenv.core.env_server.http_server import create_fastapi_app
    from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
    app = {
        "Guessing": lambda: create_fastapi_app(Guessing, Guess, Heard, max_concurrent_envs=4),
        "Office": lambda: create_fastapi_app(Office, CallToolAction, CallToolObservation),
    }[sys.argv[2]]()
    uvicorn.run(app, port=int(sys.argv[1]))
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = Path(tmp_path_factory.mktemp("openenv")) / "theirs.py"
    file.write_text(SOURCE)
    return file


@pytest.fixture
def here(file: Path) -> Path:
    pytest.importorskip("openenv.core", reason="PYTHONPATH=DIR with an openenv", exc_type=ImportError)
    return file


def make(file: Path, name: str, **params: Any) -> Any:
    return environment(EnvironmentUse(name=f"{file}:{name}", params=params), None)


def play_guesses(env: Any) -> None:
    train, test = env.tasks("train"), env.tasks("test")
    assert [len(train), len(test)] == [900, 100] and test[0].data["reset"] == {"seed": 9}
    first, second = env.start_all([train[3], train[4]])  # each has a session of its own
    assert first.messages == (Message("user", "Guess my number."),) and first.tools == ()
    assert first.step(Answer("7")) == (Message("user", "No."),) and not first.over
    assert second.step(Answer("4")) == (Message("user", "Yes."),) and second.over
    assert first.step(Answer(" 3 ")) == (Message("user", "Yes."),) and first.over
    assert [first.outcome(), second.outcome()] == [Outcome(False, pytest.approx(0.9)), Outcome(True, 1.0)]


def play_office(env: Any) -> None:
    episode = env.start(env.tasks("train")[0])
    assert "Write to Ann." in episode.messages[0].content
    assert [tool["name"] for tool in episode.tools] == ["send"]
    (wrong, sent) = episode.step(
        Answer("", tool_calls=(ToolCall("sned", {}), ToolCall("send", {"to": "ann", "text": "hi"})))
    )
    assert wrong.content == "Error: there is no tool `sned`" and sent == Message("tool", "sent to ann")
    assert episode.step(Answer("Done.")) == () and episode.over
    assert episode.outcome() == Outcome(True, 1.0)


def test_a_text_is_the_action_and_the_return_the_reward(here: Path) -> None:
    play_guesses(make(here, "Guessing"))
    lost = make(here, "Guessing", tries=1)
    episode = lost.start(lost.tasks("train")[0])
    episode.step(Answer("5"))
    assert episode.over and episode.outcome() == Outcome(False, 0.0)


def test_an_action_of_several_fields_is_a_tool(here: Path) -> None:
    env = make(here, "Grid")
    assert [len(env.tasks(split)) for split in ("train", "test")] == [5, 2]
    episode = env.start(env.tasks("train")[0])
    assert episode.messages[0].content == '{"x": 0}'
    [tool] = episode.tools
    assert tool["name"] == "act" and list(tool["parameters"]["properties"]) == ["direction", "steps", "fast"]

    def act(**arguments: Any) -> Any:
        return episode.step(Answer("", tool_calls=(ToolCall("act", arguments),)))

    assert "fast" in act(direction="east")[0].content and not episode.over  # told what was missing
    assert act(direction="east", fast=True) == (Message("tool", '{"x": 1}'),)
    assert act(direction="east", steps=2, fast=True) == (Message("tool", '{"x": 3}'),)
    assert episode.over and episode.outcome() == Outcome(True, 1.0)


def test_an_mcp_environments_tools_are_the_models(here: Path) -> None:
    play_office(make(here, "Office"))


def test_an_environment_that_is_made_already_is_refused(here: Path) -> None:
    with pytest.raises(ConfigError, match="name its class"):
        make(here, "made")


@contextmanager
def server(file: Path, name: str) -> Iterator[str]:
    folder = os.environ.get("NANOALIGN_OPENENV")
    if folder is None:
        pytest.skip("pip install --target DIR openenv, then NANOALIGN_OPENENV=DIR")
    with served([sys.executable, str(file)], name, path=folder, answers_at="/health") as url:
        yield url


def at(url: str) -> Any:
    return environment(EnvironmentUse(name="openenv", params={"url": url}), None)


def test_behind_a_server_it_is_the_same(file: Path) -> None:
    with server(file, "Guessing") as url:
        play_guesses(at(url))


def test_tools_behind_a_server(file: Path) -> None:
    with server(file, "Office") as url:
        play_office(at(url))


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"openenv: no answer from http://127\.0\.0\.1:9/list_environments"):
        at("http://127.0.0.1:9")
