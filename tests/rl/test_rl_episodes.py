"""GRPO in an environment: which tokens are trained on, a whole stage, its resume, engines beside the trainer."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from nanoalign.common.errors import ConfigError, UserCodeError
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.conversation import Answer
from nanoalign.models.config import MeasuredTraining
from nanoalign.rl import grpo
from nanoalign.rl.collect import Collected
from nanoalign.rl.config import GRPOStage
from nanoalign.rl.episodes import rows_of
from nanoalign.rollouts.base import Completion
from nanoalign.rollouts.config import Rollouts, Thinking
from nanoalign.rollouts.environments import environment
from nanoalign.rollouts.episodes import Turn
from tests.rl.test_rl_dpo import EvenEnvironment
from tests.rl.test_rl_shared_engine import pools as pools

ROOT = Path(__file__).parents[2]
IDS = st.lists(st.integers(0, 9), min_size=1, max_size=5)


@st.composite
def completions(draw: Any) -> Completion:
    ids = draw(IDS)
    forced = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    logprobs = [-float(n) - 0.5 for n in range(len(ids))]
    versions = draw(st.sampled_from([(), tuple(range(len(ids)))]))
    return Completion(tuple(ids), tuple(logprobs), tuple(forced), "stop", versions)


@st.composite
def episodes(draw: Any) -> list[Turn]:
    """Turns whose prompts extend what came before, or are written anew."""
    turns: list[Turn] = []
    for _ in range(draw(st.integers(1, 6))):
        prompt = draw(IDS)
        if turns and draw(st.booleans()):
            between = draw(st.lists(st.integers(0, 9), max_size=4))
            prompt = [*turns[-1].prompt_ids, *turns[-1].completion.token_ids, *between]
        turns.append(Turn(tuple(prompt), draw(completions()), Answer("")))
    return turns


@given(episodes())
def test_no_token_is_lost_or_trained_twice(turns: list[Turn]) -> None:
    rows = rows_of(turns)
    for row in rows:
        assert len(row.completion_ids) == len(row.logprobs) == len(row.trained) == len(row.versions)
    texts = [[*turn.prompt_ids, *turn.completion.token_ids] for turn in turns]
    forks = [
        place for place in range(1, len(turns))
        if list(turns[place].prompt_ids)[: len(texts[place - 1])] != texts[place - 1]
    ]  # fmt: skip
    bounds = [0, *forks, len(turns)]
    assert len(rows) == len(bounds) - 1
    for row, first, end in zip(rows, bounds, bounds[1:]):
        assert row.prompt_ids == list(turns[first].prompt_ids)
        assert [*row.prompt_ids, *row.completion_ids] == texts[end - 1]  # what the model saw last, and wrote
        expected = [None] * len(row.completion_ids)
        for turn in turns[first:end]:
            start, completion = len(turn.prompt_ids) - len(row.prompt_ids), turn.completion
            versions = completion.versions or (0,) * len(completion.token_ids)
            written = zip(completion.token_ids, completion.logprobs, completion.forced, versions, strict=True)
            for place, (token, logprob, forced, version) in enumerate(written, start):
                assert expected[place] is None
                expected[place] = (token, logprob, int(not forced), version)
        given_ = zip(row.completion_ids, row.logprobs, row.trained, row.versions, strict=True)
        for found, wanted in zip(given_, expected, strict=True):
            assert found == (wanted or (found[0], 0.0, 0, 0))  # what the environment wrote is never trained on
    trained = sum(sum(row.trained) for row in rows)
    assert trained == sum(not forced for turn in turns for forced in turn.completion.forced)


@given(st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_parts_have_the_rows_of_their_episodes(rows: list[int]) -> None:
    of = [episode for episode, count in enumerate(rows) for _ in range(count)]
    ids = [[row] for row in range(len(of))]
    whole = Collected(ids, ids, [[0.0]] * len(of), [[1]] * len(of), {"environment": [0.0, 1.0, 2.0, 3.0]}, episodes=of)
    first, second = whole.part(0, 2), whole.part(2, 2)
    assert first.prompt_ids + second.prompt_ids == ids
    assert [*(first.episodes or ()), *(2 + each for each in second.episodes or ())] == of
    assert (first.rewards["environment"], second.rewards["environment"]) == ([0.0, 1.0], [2.0, 3.0])


def config(steps: int = 3, **changes: Any) -> GRPOStage:
    train = MeasuredTraining(
        learning_rate=3e-3, schedule="constant", warmup_ratio=0.0, batch_size=16, steps=steps, dtype="float32",
        checkpoint_every=1, **changes.pop("train", {}),
    )  # fmt: skip
    settings = {
        "kind": "grpo", "from": "base", "environment": "even", "max_turns": 2, "group_size": 4,
        "reward": {"environment": 1.0, "format": 0.2}, "thinking": Thinking(on=0.5, budgets=[None, 3]), "train": train,
        "rollouts": Rollouts(max_tokens=8, grace=2, batch_size=16), **changes,
    }  # fmt: skip
    return GRPOStage.model_validate(settings)


@pytest.fixture
def stage(small_base, monkeypatch):
    def run(folder, settings, played=None, chat="nemotron-nano-v2"):
        monkeypatch.setattr("nanoalign.rollouts.environments.environment", lambda *_: played or EvenEnvironment())
        context = StageContext(
            "agent", folder, {"from": small_base}, chat, 5, None, "cpu", log=StageLog(folder)
        )  # fmt: skip
        return grpo.run(settings, {}, context)

    return run


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("changes", [{}, {"pack_tokens": 900}, {"train": {"micro_batch_size": 2}}])
def test_a_stage_is_logged_and_resumed_to_the_same_weights(stage, tmp_path, monkeypatch, changes):
    figures = stage(tmp_path / "whole", config(**changes))
    assert figures["steps"] == 3 and figures["groups"] == 12
    assert figures["mismatch_max"] == pytest.approx(1.0, abs=1e-4)
    assert figures["success"]["first"]["n"] == 16
    for row in logged(tmp_path / "whole"):
        assert row["rewards/environment/mean"] == row["success"] > 0
        assert 1 < row["episodes/turns"] <= 2
        assert 1 < row["episodes/rows"] <= row["episodes/turns"]  # this format rewrites history where there is thinking
        assert row["episodes/tokens"] <= 16
        assert row["completions/max_length"] <= 16
    samples = [json.loads(line) for line in (tmp_path / "whole/samples.jsonl").read_text().splitlines()]
    assert set(samples[0]["rewards"]) == {"environment", "format"}

    collect = grpo.OwnEngine.__call__

    def dies(self, step, *part):
        if step == 2:
            raise KeyboardInterrupt
        return collect(self, step, *part)

    monkeypatch.setattr(grpo.OwnEngine, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "cut", config(**changes))
    monkeypatch.setattr(grpo.OwnEngine, "__call__", collect)
    stage(tmp_path / "cut", config(**changes))
    whole, cut = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_two_processes_train_as_one(small_base, tmp_path):
    """Episodes have one row or two, so that processes have different numbers of them."""
    script = Path(__file__).with_name("episodes_worker.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(small_base), str(tmp_path)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    for way in ("padded", "packed"):
        one, two = tmp_path / f"{way}_1", tmp_path / f"{way}_2"
        parts = [json.loads((two / f"rows.{rank}.json").read_text()) for rank in range(2)]
        assert parts[0] != parts[1]
        whole = json.loads((one / "rows.0.json").read_text())
        assert parts[0][0] + parts[1][0] == whole[0]
        first, other = (next(row for row in logged(folder) if "reward" in row) for folder in (one, two))
        if way == "packed":  # what is held out is shared out too
            before = [logged(folder)[0]["held_out_reward"] for folder in (one, two)]
            assert before[0] == pytest.approx(before[1], rel=1e-6) and "held_out_reward" in first
        for name in ("reward", "reward_std", "success", "episodes/rows", "episodes/turns", "completions/mean_length"):
            assert first[name] == pytest.approx(other[name], rel=1e-6), name
        for name in ("loss", "grad_norm"):
            assert first[name] == pytest.approx(other[name], rel=1e-3, abs=2e-5), name
        start = load_file(small_base / "model.safetensors")
        weights = [load_file(folder / "model/model.safetensors") for folder in (one, two)]
        for name, weight in weights[0].items():
            moved = torch.linalg.vector_norm(weight - start[name])
            assert torch.linalg.vector_norm(weight - weights[1][name]) <= 2e-2 * moved + 1e-6, name


def on_servers(steps: int = 3, ahead: int = 0, **changes: Any) -> GRPOStage:
    engine = {"kind": "vllm_server"}
    return config(steps, rollouts=Rollouts(engine=engine, max_tokens=8, grace=2, batch_size=16, ahead=ahead), **changes)


def test_on_a_shared_engine_a_stage_is_that_of_an_engine_of_its_own(stage, tmp_path, pools):
    """The same episodes, though here each goes on at its own pace."""
    stage(tmp_path / "own", config())
    stage(tmp_path / "shared", on_servers())
    own, shared = logged(tmp_path / "own"), logged(tmp_path / "shared")
    for name in ("reward", "success", "episodes/turns", "episodes/rows", "completions/mean_length"):
        assert own[0][name] == pytest.approx(shared[0][name]), name
    assert own[0]["grad_norm"] == pytest.approx(shared[0]["grad_norm"], rel=1e-4)
    assert [row["mismatch"] for row in shared] == pytest.approx([1.0] * 3, abs=1e-4)


def test_ahead_no_token_is_older_than_allowed(stage, tmp_path, pools):
    stage(tmp_path / "run", on_servers(4, ahead=1))
    rows = logged(tmp_path / "run")
    assert rows[0]["staleness/max"] == 0
    assert all(row["staleness/max"] <= 1 for row in rows)
    assert rows[-1]["staleness/mean"] > 0
    [pool] = pools[0]
    assert len(pool.requests) == round(sum(row["episodes/turns"] for row in rows) * 16)  # none twice, none left out
    assert pool.closed


SHOP = """
class Shop:
    def tasks(self, split):
        return [{"id": f"{split}{n}", "prompt": f"say {n}"} for n in range(6)]
    def reset(self, task):
        return Order(task)

class Order:
    def __init__(self, task):
        self.task = task
    async def step(self, answer):
        raise KeyError("no stock")
    def reward(self):
        return 0.5
"""


@pytest.mark.parametrize("settings", [config(), on_servers(), on_servers(ahead=1)])
def test_an_error_of_a_step_ends_the_stage_and_names_it(stage, tmp_path, pools, settings):
    (tmp_path / "my_env.py").write_text(SHOP)
    played = environment(f"{tmp_path}/my_env.py:Shop", None)
    with pytest.raises(UserCodeError, match=r"my_env\.py:12: task 'train\d': step raised KeyError: 'no stock'"):
        stage(tmp_path / "run", settings, played)
    assert all(pool.closed for pool in pools[0])


def test_a_prompt_without_room_is_refused(stage, tmp_path, pools, monkeypatch):
    monkeypatch.setattr("tests.rl.fake_pool.FakePool.max_length", 10)
    with pytest.raises(ConfigError, match=r"task train-\d: a prompt of \d+ tokens .* do not fit into the engine's 10"):
        stage(tmp_path / "run", on_servers())
