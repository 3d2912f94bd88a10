"""Environments of the package verifiers, unchanged: `pip install --target DIR "verifiers==0.3.1"`, then
`NANOALIGN_VERIFIERS=DIR pytest` (beside vLLM, whose versions of mcp and openai it does not share, it lies last on the
path)."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.conversation import Answer, Message, ToolCall
from nanoalign.rollouts.config import EnvironmentUse
from nanoalign.rollouts.environments import environment
from nanoalign.rollouts.environments.base import Outcome, end_all, start_all, step_all

SOURCE = '''
import verifiers as vf
from datasets import Dataset

ROWS = [{"question": f"What is {i}+{i}?", "answer": str(2 * i)} for i in range(20)]

def load_environment(rows: int = 20) -> vf.Environment:
    def exact(completion, answer):
        return float(completion[-1].content == answer)
    data = Dataset.from_list(ROWS[:rows])
    return vf.SingleTurnEnv(dataset=data, system_prompt="Add.", rubric=vf.Rubric(funcs=[exact]))

def load_tools() -> vf.Environment:
    def add(a: int, b: int) -> int:
        """Adds two numbers.

        Args:
            a: One.
            b: Another.
        """
        return a + b
    def right(completion, answer):
        return float(answer in completion[-1].content)
    data = Dataset.from_list(ROWS)
    return vf.ToolEnv(dataset=data, eval_dataset=data.select([0, 1]), tools=[add], rubric=vf.Rubric(funcs=[right]))

class Game(vf.MultiTurnEnv):
    async def setup_state(self, state):
        state["tries"] = 0
    async def env_response(self, messages, state, **kwargs):
        state["tries"] += 1
        if messages[-1].content == state["answer"]:
            state["final_env_response"] = [{"role": "user", "content": "Right."}]
            return state["final_env_response"]
        return [{"role": "user", "content": f"No, try {state['tries']}."}]

def load_game() -> vf.Environment:
    def quick(state):
        return 2.0 / (1 + state["tries"])
    return Game(dataset=Dataset.from_list(ROWS), rubric=vf.Rubric(funcs=[quick]), max_turns=5)

def load_group() -> vf.Environment:
    def best(completions, answers=None, **kwargs) -> list[float]:
        return [0.0 for _ in completions]
    return vf.SingleTurnEnv(dataset=Dataset.from_list(ROWS), rubric=vf.Rubric(funcs=[best]))
'''


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if folder := os.environ.get("NANOALIGN_VERIFIERS"):
        sys.path.append(folder)
    pytest.importorskip(
        "verifiers.envs.singleturn_env",
        reason='pip install --target DIR "verifiers==0.3.1", then NANOALIGN_VERIFIERS=DIR',
    )
    file = Path(tmp_path_factory.mktemp("verifiers")) / "theirs.py"
    file.write_text(SOURCE)
    return lambda name, **params: environment(EnvironmentUse(name=f"{file}:{name}", params=params), None)


def call(**arguments: Any) -> Answer:
    return Answer("", tool_calls=(ToolCall("add", arguments),))


def test_a_single_turn_is_scored_by_its_rubric(make: Any) -> None:
    env = make("load_environment", rows=20)
    train, test = env.tasks("train"), env.tasks("test")
    assert [len(train), len(test)] == [18, 2]  # it has no data for evaluation: every tenth row is held out
    episodes = start_all(env, [test[0], test[0], test[0]])
    assert episodes[0].messages == (Message("system", "Add."), Message("user", "What is 9+9?"))
    assert step_all(env, episodes[:2], [Answer("18"), Answer("5")]) == [(), ()]
    ends = end_all(env, episodes)  # the last was cut before it answered
    assert ends == [Outcome(True, 1.0), Outcome(False, 0.0), Outcome(False, 0.0)]


def test_tools_are_run_by_their_environment(make: Any) -> None:
    env = make("load_tools")
    assert [len(env.tasks(split)) for split in ("train", "test")] == [20, 2]
    episode = env.start(env.tasks("train")[2])
    assert [tool["name"] for tool in episode.tools] == ["add"]
    assert episode.step(call(a=2, b=2)) == (Message("tool", "4"),)
    (wrong,) = episode.step(call(c="x"))
    assert "unexpected keyword" in wrong.content
    assert episode.step(Answer("It is 4.")) == ()
    assert episode.outcome() == Outcome(True, 1.0)


def test_a_game_of_many_turns_keeps_its_state(make: Any) -> None:
    env = make("load_game")
    episode = env.start(env.tasks("train")[2])
    assert episode.step(Answer("3")) == (Message("user", "No, try 1."),)
    assert episode.step(Answer("4")) == (Message("user", "Right."),) and episode.over
    assert episode.outcome() == Outcome(False, 2 / 3)
    first = env.start(env.tasks("train")[2])
    first.step(Answer("4"))
    assert first.outcome() == Outcome(True, 1.0)


def test_one_that_comes_with_the_package(make: Any) -> None:
    name = "verifiers.legacy.envs.integrations.reasoninggym_env:ReasoningGymEnv"
    params = {"gym": "chain_sum", "num_train_examples": 4, "num_eval_examples": 2}
    env = environment(EnvironmentUse(name=name, params=params), None)
    task = env.tasks("test")[0]
    gym = env.made.environment.rg_dataset
    episodes = start_all(env, [task, task])
    answers = [Answer(f"<answer>{text}</answer>") for text in (gym[int(task.data["row"]["answer"])]["answer"], "x")]
    step_all(env, episodes, answers)
    assert [end.success for end in end_all(env, episodes)] == [True, False]


def test_rewards_of_groups_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match="scores groups of rollouts together"):
        make("load_group")


def test_signal_handlers_stay_ours(make: Any) -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    make("load_environment")
    assert signal.getsignal(signal.SIGTERM) is before
