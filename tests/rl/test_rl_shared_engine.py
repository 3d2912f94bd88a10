"""GRPO on engines beside the trainer: in turn with it and ahead of it, proved fresh, replaced, resumed."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nanoalign import rollouts
from nanoalign.common.errors import StaleWeightsError
from nanoalign.rl import grpo
from nanoalign.rl.collect import Collected
from nanoalign.rl.shared_engine import SharedEngine, staleness
from nanoalign.rollouts.config import Rollouts
from nanoalign.rollouts.engines import ServerSettings
from tests.rl.fake_pool import FakePool
from tests.rl.test_rl_grpo import config, rows
from tests.rl.test_rl_grpo import stage as stage


@pytest.fixture
def pools(monkeypatch):
    """Servers are fakes with these settings; returns the ones opened."""
    opened: list[FakePool] = []
    settings: dict[str, Any] = {}
    real = rollouts.open_engine

    def open_engine(engine, model, tokenizer, chat, **more):
        if not isinstance(engine, ServerSettings):
            return real(engine, model, tokenizer, chat, **more)
        own = real("hf", model, tokenizer, chat)
        opened.append(FakePool(own.model, own.thinking, **settings))
        return opened[-1]

    monkeypatch.setattr(rollouts, "open_engine", open_engine)
    return opened, settings


def on_servers(steps: int = 4, ahead: int = 0, **changes: Any):
    engine = {"kind": "vllm_server"}
    return config(
        steps, rollouts=Rollouts(engine=engine, max_tokens=10, grace=2, batch_size=16, ahead=ahead), **changes
    )


def test_in_turn_a_stage_is_that_of_an_engine_of_its_own(stage, tmp_path, pools):
    """The same completions and rewards; the loss differs in its old log-probabilities alone, by rounding."""
    stage(tmp_path / "own", config(3))
    stage(tmp_path / "shared", on_servers(3))
    own, shared = (rows(tmp_path / name / "metrics.jsonl") for name in ("own", "shared"))
    for name in ("reward", "completions/mean_length", "rewards/length/mean"):
        assert [row[name] for row in own] == pytest.approx([row[name] for row in shared]), name
    assert own[0]["grad_norm"] == pytest.approx(shared[0]["grad_norm"], rel=1e-4)
    assert "staleness/max" not in shared[0]
    assert all(0 <= row["engine_idle_share"] <= 1 and 0 <= row["trainer_idle_share"] <= 1 for row in shared)
    assert {"sync_s", "rollout_s", "reward_s", "train_s", "engines_lost"} <= set(shared[0])


@pytest.mark.parametrize("ahead", [1, 2])
def test_ahead_the_age_of_weights_is_bounded(stage, tmp_path, pools, ahead):
    figures = stage(tmp_path / "run", on_servers(5, ahead=ahead))
    logged = rows(tmp_path / "run/metrics.jsonl")
    assert [row["staleness/max"] for row in logged] == [min(step, ahead) for step in range(5)]
    assert all(row[f"staleness/{min(step, ahead)}"] == 1 for step, row in enumerate(logged))
    assert figures["mismatch_max"] == pytest.approx(1.0, abs=1e-4)  # of fixed texts, on new weights
    assert logged[0]["importance/mean"] == pytest.approx(1.0, abs=1e-4)
    assert logged[-1]["importance/mean"] != pytest.approx(1.0, abs=1e-4)
    [pool] = pools[0]
    assert len(pool.requests) == 5 * 16  # no question twice, none left out
    assert pool.closed


@pytest.mark.parametrize("ahead", [0, 1])
def test_old_weights_are_found_out(stage, tmp_path, pools, ahead):
    pools[1]["deaf"] = [2]
    with pytest.raises(StaleWeightsError, match="step 2"):
        stage(tmp_path / "run", on_servers(4, ahead=ahead, max_mismatch=1.0001))
    assert pools[0][0].closed


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_replaced_engine_gets_weights_and_the_step_goes_on(stage, tmp_path, pools, ahead):
    stage(tmp_path / "whole", on_servers(4, ahead=ahead))
    pools[1].update(lost=[2], lost_scores=1 if ahead else 0)
    stage(tmp_path / "lost", on_servers(4, ahead=ahead))
    whole, lost = (rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "lost"))
    assert [row["step"] for row in lost] == [1, 2, 3, 4]
    assert lost[-1]["engines_lost"] == 1
    if not ahead:
        assert [row["reward"] for row in lost] == [row["reward"] for row in whole]


def test_a_stage_killed_ahead_trains_on_every_prompt_once(stage, tmp_path, pools, monkeypatch):
    trained: list[list[list[int]]] = []
    call = SharedEngine.__call__

    def dies_at_2(self, step, *part):
        if step == 2 and len(pools[0]) == 1:
            raise KeyboardInterrupt
        collected = call(self, step, *part)
        trained.append(collected.prompt_ids)
        return collected

    monkeypatch.setattr(SharedEngine, "__call__", dies_at_2)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "run", on_servers(4, ahead=1))
    assert pools[0][0].closed
    stage(tmp_path / "run", on_servers(4, ahead=1))
    assert len(trained) == 4
    prompts = [tuple(ids) for each in trained for ids in each[::4]]
    assert len(prompts) == 16 and len(set(prompts)) == 8  # two epochs of eight
    logged = rows(tmp_path / "run/metrics.jsonl")
    assert [row["staleness/max"] for row in logged] == [0, 1, 0, 1]  # asked anew, of newer weights


def test_killed_in_turn_a_stage_ends_with_the_same_weights(stage, tmp_path, pools, monkeypatch):
    stage(tmp_path / "whole", on_servers(4))
    call = SharedEngine.__call__

    def dies_at_2(self, step, *part):
        if step == 2 and len(pools[0]) == 2:
            raise KeyboardInterrupt
        return call(self, step, *part)

    monkeypatch.setattr(SharedEngine, "__call__", dies_at_2)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "cut", on_servers(4))
    stage(tmp_path / "cut", on_servers(4))
    whole, cut = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_an_error_of_a_reward_ends_the_stage(stage, tmp_path, pools, monkeypatch):
    def fails(*args):
        raise TimeoutError("of its own")

    monkeypatch.setattr(grpo.StepRollouts, "judge", fails)
    with pytest.raises(TimeoutError, match="of its own"):
        stage(tmp_path / "run", on_servers(2))
    assert pools[0][0].closed


def test_ages_are_counted_over_trained_tokens() -> None:
    collected = Collected([[1], [1]], [[5, 6, 7], [5]], [[0.0] * 3, [0.0]], [[1, 0, 1], [1]], {},
                          versions=[(3, 3, 5), (5,)])  # fmt: skip
    found = staleness(collected, 5, 3)
    assert found.pop("staleness/mean") == pytest.approx(2 / 3)
    assert found == {"staleness/max": 2.0, "staleness/0": 2 / 3, "staleness/1": 0.0, "staleness/2": 1 / 3,
                     "staleness/3": 0.0}  # fmt: skip
    assert staleness(collected, 5, 0) == {}


def test_settings_are_json() -> None:
    assert json.loads(on_servers(ahead=1).model_dump_json())["rollouts"]["ahead"] == 1
    assert on_servers(ahead=1).correction == "token"
    assert on_servers().correction == "clip"
    assert on_servers(ahead=1, importance="sequence").correction == "sequence"
