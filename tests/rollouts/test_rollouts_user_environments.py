"""A user's environment: what works, and every way to get one wrong, with the error that names it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.common.errors import ConfigError, UserCodeError
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.conversation import Answer, Message, ToolCall
from nanoalign.rollouts.base import Completion, Mode, Sampling
from nanoalign.rollouts.config import EnvironmentUse, McpTools
from nanoalign.rollouts.environments import environment
from nanoalign.rollouts.environments.base import Outcome, end_all, start_all, step_all, step_soon
from nanoalign.rollouts.episodes import play

SHOP = """
import asyncio, sqlite3, time

class Shop:
    def __init__(self, largest: int = 3):
        self.largest = largest
        self.db = sqlite3.connect(":memory:")  # usable in the thread that made it alone
    def tasks(self, split):
        return [{"id": f"{split}{n}", "prompt": f"Take {n} apples.", "want": n} for n in range(1, self.largest + 1)]
    def reset(self, task):
        self.db.execute("select 1")
        return Basket(task)

class Basket:
    def __init__(self, task):
        self.want, self.apples = task["want"], 0
        self.tools = [self.add, self.hang, self.later, self.wrong]
    def add(self, apples: int = 1) -> str:
        '''Adds apples.'''
        self.apples += apples
        return f"{self.apples} apples"
    def hang(self):
        while True:
            pass
    async def later(self):
        await asyncio.sleep(0.2)
        return {"a": [1]}
    def wrong(self):
        raise KeyError("no stock")
    def reward(self):
        return self.apples == self.want
"""


def make(folder: Path, source: str = SHOP, name: str = "Shop", **use: Any) -> Any:
    (folder / "my_env.py").write_text(source)
    return environment(EnvironmentUse(name=f"{folder}/my_env.py:{name}", **use), None)


def call(tool: str, **arguments: Any) -> Answer:
    return Answer("", tool_calls=(ToolCall(tool, arguments),))


def texts(messages: Any) -> list[str]:
    return [message.content for message in messages]


def test_an_episode_runs_tools_and_is_rewarded(tmp_path: Path) -> None:
    shop = make(tmp_path, params={"largest": 2})
    assert shop.name == "Shop"
    task = shop.tasks("train")[1]
    episode = shop.start(task)
    assert texts(episode.messages) == ["Take 2 apples."]
    assert episode.tools[0] == {
        "name": "add", "description": "Adds apples.",
        "parameters": {"type": "object", "properties": {"apples": {"type": "integer", "default": 1}}},
    }  # fmt: skip
    assert texts(episode.step(call("add", apples=2))) == ["2 apples"]
    assert episode.outcome() == Outcome(False, 1.0)  # it has not ended itself
    assert episode.step(Answer("Done.")) == ()
    assert episode.outcome() == Outcome(True, 1.0)
    with pytest.raises(RuntimeError, match="over"):
        episode.step(Answer("More."))


@pytest.mark.parametrize(
    "answer, text, fault",
    [
        (call("ad"), "error: there is no tool `ad`; did you mean `add`?", "unknown tool"),
        (call("add", apples="two"), "error: `apples`: input should be a valid integer", "wrong arguments"),
        (call("add", apples=1.0), "error: `apples`: input should be a valid integer", "wrong arguments"),
        (call("add", pears=1), "error: there is no argument `pears`", "wrong arguments"),
        (call("wrong"), "error: KeyError: 'no stock'", "tool raised"),
        (call("hang"), "error: `hang` took longer than 0.3 s", "tool over its deadline"),
    ],
)
def test_what_a_model_gets_wrong_is_text_and_counted(tmp_path: Path, answer: Answer, text: str, fault: str) -> None:
    shop = make(tmp_path, deadline_s=60)
    episode = shop.start(shop.tasks("train")[0])
    shop.deadline_s = 0.3 if "longer" in text else 60
    assert texts(episode.step(answer)) == [text]
    assert episode.faults == {fault: 1}
    shop.deadline_s = 60
    assert texts(episode.step(call("add"))) == ["1 apples"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def shared_shop(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make(tmp_path_factory.mktemp("shop"), deadline_s=60)


@settings(deadline=None, max_examples=50)
@given(name=st.sampled_from(["add", "wrong", ""]) | st.text(), arguments=st.dictionaries(st.text(), json_values))
def test_no_call_raises(shared_shop: Any, name: str, arguments: dict[str, Any]) -> None:
    episode = shared_shop.start(shared_shop.tasks("test")[0])
    if name not in ("hang", "later"):
        (text,) = texts(episode.step(Answer("", tool_calls=(ToolCall(name, arguments),))))
        assert isinstance(text, str) and text.encode()


MEETING = (
    SHOP
    + """
arrived = 0
everyone = asyncio.Event()

async def meet() -> str:
    global arrived
    arrived += 1
    if arrived == 40:
        everyone.set()
    await everyone.wait()  # ends for all when the last has come, and never where one waits for another
    return "met"
"""
)


def test_async_tools_of_all_episodes_are_awaited_together(tmp_path: Path) -> None:
    meeting = f"{tmp_path}/my_env.py:meet"
    shop = make(tmp_path, MEETING, params={"largest": 40}, tools=[meeting], deadline_s=60)
    episodes = start_all(shop, shop.tasks("train"))
    half = [step_soon(shop, episode, call("meet")) for episode in episodes[:20]]
    results = step_all(shop, episodes[20:], [call("meet")] * 20)
    results += [future.result(60) for future in half]
    assert [texts(each) for each in results] == [["met"]] * 40


def test_a_blocking_environment_steps_at_once() -> None:
    workplace = environment("miniature-workplace", None)
    episode = workplace.start(workplace.tasks("test")[0])
    assert step_soon(workplace, episode, Answer("Done.")).result(0) == []


BY_HAND = """
class Guess:
    def tasks(self, split):
        yield {"prompt": [{"role": "system", "content": "Guess."}, {"role": "user", "content": "Say!"}], "right": 3}
    async def reset(self, task):
        return Round(task["right"])

class Round:
    messages = ["Overridden below"]
    def __init__(self, right):
        self.right, self.said = right, None
        self.messages = "Which number?"
    async def step(self, answer):
        self.said = answer.content
        if answer.content == "stop":
            return "Bye.", True
        return None if answer.content == str(self.right) else "No. Again?"
    async def reward(self):
        return 0.25 if self.said == "stop" else self.said == str(self.right)
    def success(self):
        return self.said == "3"
"""


def test_an_environment_that_answers_text(tmp_path: Path) -> None:
    guess = make(tmp_path, BY_HAND, "Guess")
    (task,) = guess.tasks("train")
    assert task.id == "train-0" and [message.role for message in task.prompt] == ["system", "user"]
    first, second = start_all(guess, [task, task])
    assert texts(first.messages) == ["Which number?"] and first.tools == ()
    again, bye = step_all(guess, [first, second], [Answer("2"), Answer("stop")])
    assert again == (Message("user", "No. Again?"),) and not first.over
    assert texts(bye) == ["Bye."] and second.over
    assert first.step(Answer("3")) == ()
    assert end_all(guess, [first, second]) == [Outcome(True, 1.0), Outcome(False, 0.25)]


def test_a_whole_turn_in_one_call(tmp_path: Path) -> None:
    batch = (
        BY_HAND
        + """
    steps = 0
class Batched(Guess):
    calls = []
    async def step_all(self, episodes, answers):
        self.calls.append(len(episodes))
        return [await episode.step(answer) for episode, answer in zip(episodes, answers)]
"""
    )
    guess = make(tmp_path, batch, "Batched")
    episodes = start_all(guess, guess.tasks("train") * 3)
    step_all(guess, episodes, [Answer("2")] * 3)
    assert guess.made.calls == [3]


class Scripted:
    """An engine that says the same in every episode, turn after turn."""

    max_length = None

    def __init__(self, tokenizer: Any, stop: str, turns: list[str]) -> None:
        self.said = iter([tuple(tokenizer.encode(f"{turn}{stop}", add_special_tokens=False)) for turn in turns])

    def generate(self, requests: Any) -> list[Completion]:
        ids = next(self.said)
        return [Completion(ids, (0.0,) * len(ids), (False,) * len(ids), "stop") for _ in requests]


def test_episodes_are_played_to_their_reward(tmp_path: Path) -> None:
    from nanoalign.models.loading import load_tokenizer

    tokenizer, chat = load_tokenizer("builtin:miniature-base"), chat_format("nemotron-nano-v2")
    shop = make(tmp_path, params={"largest": 2})
    turns = ['<TOOLCALL>[{"name": "add", "arguments": {"apples": 2}}]</TOOLCALL>', "Done."]
    engine = Scripted(tokenizer, chat.stop[0], turns)
    mode = Mode(False)
    records = play(
        engine, shop, shop.tasks("test"), 2, lambda task, sample, turn: (mode, Sampling(max_tokens=64)), chat,
        tokenizer, max_turns=3,
    )  # fmt: skip
    assert [record.reward for record in records] == [0.0, 0.0, 1.0, 1.0]
    assert [record.success for record in records] == [False, False, True, True]
    assert all(record.ended == "done" and len(record.turns) == 2 for record in records)
    assert texts(records[2].messages)[0] == "Take 2 apples." and texts(records[2].messages)[2] == "2 apples"
    assert "add" in tokenizer.decode(records[0].turns[0].prompt_ids)


def changed(old: str, new: str) -> str:
    assert old in SHOP, old
    return SHOP.replace(old, new)


TASK_ROW = (
    'return [{"id": f"{split}{n}", "prompt": f"Take {n} apples.", "want": n} for n in range(1, self.largest + 1)]'
)
RESET = "return Basket(task)"
REWARD = "return self.apples == self.want"
TOOLS = "self.tools = [self.add, self.hang, self.later, self.wrong]"
STEP = "def hang"
WRONG = [
    ("import asyncio", "import no_such_thing", r"my_env.py:2: cannot be imported: ModuleNotFoundError"),
    ("self.largest = largest", "self.largest = largest.x", r"my_env.py:6: making `Shop` raised AttributeError"),
    (TASK_ROW, "return []", r"`Shop` has no tasks for split 'train'"),
    (TASK_ROW, "return None", r"has no tasks for split 'train'"),
    (TASK_ROW, "return 3", r"tasks\('train'\) gave a int, expected a list of rows"),
    (TASK_ROW, "return ['Take 1']", r"tasks\('train'\): row 0 is a str, expected a mapping"),
    (TASK_ROW, "return [{'id': 1, 'prompt': ''}] * 2", r"two tasks have the id '1'"),
    (TASK_ROW, "return [{'id': 1, 'prompt': ''}]", r"task '1' is in train and in test: it is not held out"),
    (TASK_ROW, "return 1 / 0", r"my_env.py:9: tasks\('train'\) raised ZeroDivisionError"),
    (TASK_ROW, "return [{'promt': 'Take 1', 'want': 1}]", r"the row has no `prompt` .*; did you mean `promt`"),
    (TASK_ROW, "return [{'prompt': 3}]", r"task 'train-0': `prompt`: a int, expected a text or messages"),
    (TASK_ROW, "return [{'prompt': [{'role': 'human', 'content': 'x'}]}]", r"is no message; expected role"),
    (TASK_ROW, "return [{'prompt': [{'role': 'user', 'content': None}]}]", r"`content` is a None, expected a text"),
    (RESET, "return task['apples']", r"my_env.py:12: task 'train1': reset raised KeyError: 'apples'"),
    (RESET, "return None", r"task 'train1': reset gave a None, expected an episode with a method `reward`"),
    (RESET, "time.sleep(30)", r"my_env.py:12: task 'train1': reset did not end within 0.5 s"),
    (REWARD, "return 1 / 0", r"my_env.py:\d+: task 'train1': reward raised ZeroDivisionError"),
    (REWARD, "return float('nan')", r"task 'train1': reward gave nan, expected a number between 0 and 1"),
    (REWARD, "return 7", r"task 'train1': reward gave 7.0, expected a number between 0 and 1"),
    (REWARD, "return 'good'", r"task 'train1': reward gave a str, expected a number between 0 and 1"),
    (REWARD, "return None", r"task 'train1': reward gave a None, expected a number"),
    (REWARD, "exit(1)", r"task 'train1': reward raised SystemExit: 1"),
    (TOOLS, "self.tools = [self.add, self.add]", r"task 'train1': two tools are called `add`"),
    (TOOLS, "self.tools = self.add", r"task 'train1': `tools` is a method, expected a list"),
    (TOOLS, "self.tools = ['add']", r"a tool is a function, a schema or an McpServer, got a str"),
    (TOOLS, "self.tools = [lambda x: x]", r"my_env.py:\d+: a tool needs a name of letters"),
    (TOOLS, "self.tools = [{'description': 'x'}]", r"a tool's schema without `name`"),
    (TOOLS, "self.tools = [self.add, {'name': 'x'}]", r"task 'train1'?: tools with and without a function"),
    (TOOLS, "self.tools = [{'name': 'x'}]", r"tools without a function need a method `step`"),
    ("apples: int = 1", "apples", r"my_env.py:\d+: tool `add`: parameter `apples` has no type: write `apples: str`"),
    ("apples: int = 1", "*apples: int", r"tool `add`: parameter `apples` cannot be given by name"),
    ("apples: int = 1", "apples: 'Basket'", r"tool `add`: parameter `apples` is a `Basket`, which JSON does not have"),
    ("apples: int = 1", "apples: 'Nothing'", r"tool `add`: its annotations cannot be read: name 'Nothing'"),
    (STEP, "def step(self, answer):\n        return 3\n    def hang", r"'train1': step gave: a int, expected a text"),
    (STEP, "def step(self, answer):\n        return [], False\n    def hang", r"step gave no messages, and is not"),
    (STEP, "def step(self, answer):\n        raise KeyError\n    def hang", r"my_env.py:\d+: task .* step raised"),
    (STEP, "async def step(self, answer):\n        time.sleep(9)\n    def hang", r"my_env.py:\d+: task .* step did"),
]  # fmt: skip


@pytest.mark.parametrize("old, new, message", WRONG, ids=[f"{new[:40]}-{n}" for n, (_, new, _) in enumerate(WRONG)])
def test_what_the_users_code_gets_wrong_is_an_error_that_names_it(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises((ConfigError, UserCodeError), match=message) as caught:
        shop = make(tmp_path, changed(old, new), deadline_s=0.5 if "sleep" in new else 60)
        episode = shop.start(shop.tasks("train")[0])
        episode.step(Answer("I am done."))
        episode.outcome()
    assert "my_env.py" in str(caught.value)


def test_a_factory_that_makes_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match=r"`make` has no method `tasks`; it makes a int"):
        make(tmp_path, "def make():\n    return 3\n", "make")


def test_the_stages_own_form_is_taken_as_it_is() -> None:
    workplace = environment("nanoalign.rollouts.environments.miniature_workplace:MiniatureWorkplace", None)
    named = environment("miniature-workplace", None)
    assert workplace.tasks("test") == named.tasks("test")


def test_a_named_environment_without_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="needs the parameter `dataset`"):
        environment("reasoning-gym", None)


def test_a_data_set_of_reasoning_gym() -> None:
    gym = environment(EnvironmentUse(name="reasoning-gym", params={"dataset": "chain_sum", "samples": 20}), None)
    train, test = gym.tasks("train"), gym.tasks("test")
    assert len(train) == 20 and not {task.prompt for task in train} & {task.prompt for task in test}
    right = gym._tasks["train"][train[0].id].messages[-1].content
    episodes = start_all(gym, [train[0]] * 3)
    assert step_all(gym, episodes[:2], [Answer(right), Answer("nan")]) == [(), ()]
    assert end_all(gym, episodes) == [Outcome(True, 1.0), Outcome(False, 0.0), Outcome(False, 0.0)]


SERVER = """
import os, time
from mcp.server.mcpserver import MCPServer

server = MCPServer("counter")
count = 0

@server.tool()
def bump(by: int) -> str:
    "Adds to the counter."
    global count
    count += by
    return f"now {count}"

@server.tool()
def die() -> str:
    "Ends the server."
    os._exit(3)

@server.tool()
def stall() -> str:
    "Hangs."
    time.sleep(60)

server.run()
"""


def test_the_tools_of_an_mcp_server(tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="pip install mcp")
    (tmp_path / "server.py").write_text(SERVER)
    shop = make(tmp_path, tools=[McpTools(mcp="python server.py", folder=str(tmp_path))], deadline_s=60)
    episode = shop.start(shop.tasks("train")[0])
    bump = next(tool for tool in episode.tools if tool["name"] == "bump")
    assert bump["description"] == "Adds to the counter." and bump["parameters"]["required"] == ["by"]
    assert texts(episode.step(call("bump", by=2))) == ["now 2"]
    (wrong,) = texts(episode.step(call("bump", by="x")))
    assert wrong.startswith("error:") and "valid integer" in wrong
    assert texts(episode.step(call("die"))) == ["error: the server of `die` ended during the call"]
    assert texts(episode.step(call("bump", by=1))) == ["now 1"]  # another process
    shop.deadline_s = 0.5
    assert texts(episode.step(call("stall"))) == ["error: `stall` took longer than 0.5 s"]
    shop.deadline_s = 60
    assert texts(episode.step(call("bump", by=1))) == ["now 1"]
    assert episode.faults == {"tool raised": 1, "tool server lost": 1, "tool over its deadline": 1}
    assert shop.more_tools[0].starts == 3


@pytest.mark.parametrize(
    "command, message",
    [("python no_server.py", "MCP server `python no_server.py` did not start"), ("no-such-command x", "did not start")],
)
def test_a_server_that_does_not_start_is_named(tmp_path: Path, command: str, message: str) -> None:
    pytest.importorskip("mcp", reason="pip install mcp")
    shop = make(tmp_path, tools=[McpTools(mcp=command, folder=str(tmp_path))])
    with pytest.raises(UserCodeError, match=message):
        shop.start(shop.tasks("train")[0])
