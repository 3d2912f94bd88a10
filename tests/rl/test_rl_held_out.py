"""The held-out reward in the middle of GRPO, and training that ends when it rises no more."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nanoalign.common.errors import DataError
from nanoalign.common.intervals import mean
from nanoalign.common.stage import StageContext, StageLog, held_out_rewards
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.rows import to_row
from nanoalign.graph import resolved
from nanoalign.models.config import MeasuredTraining
from nanoalign.recipe.load import RecipeError, load
from nanoalign.rl import grpo
from nanoalign.rl.collect import Prompt
from nanoalign.rl.config import GRPOStage
from nanoalign.rl.grpo_trainer import PolicyTrainer
from nanoalign.rl.questions import hold_out
from nanoalign.rollouts.base import Mode
from nanoalign.rollouts.config import Rollouts
from tests.rl import test_rl_episodes
from tests.rl.test_rl_dpo import EvenEnvironment
from tests.rl.test_rl_grpo import config as grpo_config
from tests.rl.test_rl_shared_engine import pools as pools


def config(every: int | None = 1, stop: dict[str, Any] | None = None, steps: int = 3, **changes: Any) -> GRPOStage:
    train = MeasuredTraining(
        learning_rate=3e-3, schedule="constant", warmup_ratio=0.0, batch_size=16, steps=steps, dtype="float32",
        checkpoint_every=1, evaluate_every=every, early_stop=stop, lora=changes.pop("lora", None),
    )  # fmt: skip
    return grpo_config(**{"train": train, "held_out": "unseen" if every else None, **changes})


@pytest.fixture
def stage(small_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a source's name, path and all, seeds its draw
    for name, first in (("prompts", 0), ("unseen", 100)):
        rows = [Conversation((Message("user", f"say {first + n}"), Message("assistant", "on"))) for n in range(8)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(to_row(row)) + "\n" for row in rows))
    test = {"file:unseen.jsonl": {"samples": 6, "split": "test"}}
    mixtures = {"m": Mixture(sources={"file:prompts.jsonl": 8}), "unseen": Mixture.model_validate({"sources": test})}

    def run(folder: Path, settings: GRPOStage) -> dict[str, Any]:
        return grpo.run(settings, mixtures, StageContext(
            "instruct", folder, {"from": small_base}, "nemotron-nano-v2", 5, None, "cpu", log=StageLog(folder)
        ))  # fmt: skip

    return run


def measured(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["held_out_reward"] for row in rows if "held_out_reward" in row}


def same(one: Path, other: Path) -> bool:
    left, right = (load_file(folder / "model/model.safetensors") for folder in (one, other))
    return all(torch.equal(left[name], right[name]) for name in left)


def told(monkeypatch: pytest.MonkeyPatch, rewards: dict[int, float]) -> None:
    """The held-out reward at a step is what the table says."""

    def log_held_out_reward(self: PolicyTrainer) -> float:
        self.logged["held_out_reward"] = [rewards.get(self.state.global_step, 0.0)]
        return self.logged["held_out_reward"][0]

    monkeypatch.setattr(PolicyTrainer, "log_held_out_reward", log_held_out_reward)


def test_measuring_changes_nothing_of_what_is_trained(stage, tmp_path):
    stage(tmp_path / "plain", config(None))
    figures = stage(tmp_path / "measured", config(2))
    assert list(measured(tmp_path / "measured")) == [0, 2, 3] and not measured(tmp_path / "plain")
    assert same(tmp_path / "plain", tmp_path / "measured")
    ends = [figures[f"held_out_reward_{end}"] for end in ("first", "last")]
    assert ends == [measured(tmp_path / "measured")[step] for step in (0, 3)]
    rewards = held_out_rewards(tmp_path / "measured")
    assert [mean(rewards[step]).value for step in (0, 2, 3)] == pytest.approx(
        list(measured(tmp_path / "measured").values())
    )
    gain = mean([after - before for before, after in zip(rewards[0], rewards[3], strict=True)])
    assert figures["held_out_reward_gain"] == gain.as_dict() and gain.n == 6
    row = json.loads((tmp_path / "measured/metrics.jsonl").read_text().splitlines()[0])
    parts = [row[f"held_out_rewards/{name}/mean"] for name in ("format", "length")]
    assert row["held_out_reward"] == pytest.approx(parts[0] + 0.2 * parts[1]) and row["held_out_s"] > 0


def test_training_ends_when_the_reward_rises_no_more_and_the_best_weights_are_kept(stage, tmp_path, monkeypatch):
    told(monkeypatch, {0: 9.0, 1: 0.2, 2: 0.3, 3: 0.25, 4: 0.305})
    figures = stage(tmp_path / "stopped", config(1, {"patience": 2, "min_improvement": 0.01}, steps=9))
    assert figures["steps"] == 4 and list(measured(tmp_path / "stopped")) == [0, 1, 2, 3, 4]
    assert (figures["held_out_reward_last"], figures["best_step"]) == (0.3, 2)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    stage(tmp_path / "two", config(None, steps=2))
    assert same(tmp_path / "stopped", tmp_path / "two")


def test_a_stage_that_was_killed_stops_where_it_would_have(stage, tmp_path, monkeypatch):
    told(monkeypatch, {1: 0.5})
    settings = config(1, {"patience": 3}, steps=9, lora={"rank": 4})
    assert stage(tmp_path / "whole", settings)["steps"] == 4
    left = tmp_path / "killed" / "checkpoints"  # the best one, and one on the way; moved to another folder since
    for step in (1, 3):
        shutil.copytree(tmp_path / "whole" / "checkpoints" / f"checkpoint-{step}", left / f"checkpoint-{step}")
    shutil.move(tmp_path / "whole" / "checkpoints", tmp_path / "gone")
    assert stage(tmp_path / "killed", settings)["steps"] == 4
    assert same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("ahead", [0, 1])
def test_on_a_shared_engine_it_is_what_it_is_on_an_engine_of_its_own(stage, tmp_path, pools, ahead):
    """Measured by new weights, on the servers that sample ahead, also where one is lost and replaced meanwhile."""
    settings = Rollouts(engine={"kind": "vllm_server"}, max_tokens=10, grace=2, batch_size=16, ahead=ahead)
    stage(tmp_path / "own", config(1))
    if ahead:
        pools[1].update(lost=[3])
    stage(tmp_path / "shared", config(1, rollouts=settings))
    own, shared = measured(tmp_path / "own"), measured(tmp_path / "shared")
    assert list(own) == list(shared) == [0, 1, 2, 3]
    exact = [0, 1] if ahead else list(own)  # later weights differ by the correction of older ones
    assert [own[step] for step in exact] == pytest.approx([shared[step] for step in exact])
    [pool] = pools[0]
    assert len(pool.requests) == 3 * 16 + 4 * 6 and pool.closed
    assert pool.lost == (1 if ahead else 0)


def test_episodes_are_measured_on_test_tasks(small_base, tmp_path, monkeypatch):
    monkeypatch.setattr("nanoalign.rollouts.environments.environment", lambda *_: EvenEnvironment())
    settings = test_rl_episodes.config(2)
    settings = settings.model_copy(update={
        "held_out": 3, "train": MeasuredTraining.model_validate({**settings.train.model_dump(), "evaluate_every": 2})
    })  # fmt: skip
    figures = grpo.run(settings, {}, StageContext(
        "agent", tmp_path, {"from": small_base}, "nemotron-nano-v2", 5, None, "cpu", log=StageLog(tmp_path)
    ))  # fmt: skip
    assert list(measured(tmp_path)) == [0, 2] and 0 <= figures["held_out_reward_last"] <= 1.2


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("train.early_stop={patience: 2}", "needs `train.evaluate_every`"),
        ("held_out=5", "measures on, and that is not given"),
        ("held_out=5000", "would leave none to train on"),
        ("held_out=instruction_tests", "did you mean `instruction_test`"),
        ("held_out=instructions", "needs split: test"),
    ],
)
def test_what_cannot_be_measured_is_a_mistake(key, said):
    every = ["stages.instruct.train.evaluate_every=5"] if "not given" not in said and "needs `" not in said else []
    with pytest.raises(RecipeError, match=said):
        load("miniature", [f"stages.instruct.{key}", *every])
    recipe = load("miniature", ["stages.instruct.held_out=instruction_test", "stages.instruct.train.evaluate_every=5"])
    assert "instruction_test" in resolved(recipe, "instruct")["data"]


def prompts(count: int) -> list[Prompt]:
    return [Prompt((n,), (Message("user", f"say {n % 7}"),), Mode(True, None)) for n in range(count)]


def test_what_is_held_out_is_not_trained_on_nor_are_its_copies():
    train, unseen = hold_out(prompts(20), 3, 0)
    texts = [{prompt.messages[0].content for prompt in part} for part in (train, unseen)]
    assert len(unseen) == 3 and len(texts[1]) == 3 and not texts[0] & texts[1] and len(texts[0]) == 4
    assert hold_out(prompts(20), 3, 0) == (train, unseen)
    with pytest.raises(DataError, match="7 of 7 different prompts would leave none"):
        hold_out(prompts(20), 7, 0)
    with pytest.raises(DataError, match="none of 20 prompts is held out"):
        hold_out(prompts(20), None, 0)
