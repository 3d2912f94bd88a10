"""Iterative DPO in a toy office: rounds, files, the first loss, resume."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.conversation import Answer, Message
from nanoalign.models.config import Training
from nanoalign.rl import dpo
from nanoalign.rl.config import DPOStage
from nanoalign.rl.round_tasks import differing
from nanoalign.rl.successes import WrittenTurn, turns_beside
from nanoalign.rollouts.config import Rollouts, Thinking
from nanoalign.rollouts.environments.base import Task


class EvenEpisode:
    """A tool answers the first message; success is a second message of an even number of characters."""

    def __init__(self, task: Task) -> None:
        self.answers: list[str] = []

    def step(self, answer: Answer) -> list[Message]:
        self.answers.append(answer.content)
        return [Message("tool", "go on")] if len(self.answers) == 1 else []

    def success(self) -> bool:
        return len(self.answers) == 2 and len(self.answers[1]) % 2 == 0


class EvenEnvironment:
    name = "even"

    def tasks(self, split: str) -> list[Task]:
        return [Task(f"{split}-{i}", (Message("user", f"say {i}"),), (), split, {}) for i in range(6)]

    def start(self, task: Task) -> EvenEpisode:
        return EvenEpisode(task)


@pytest.fixture
def stage_inputs(small_base, monkeypatch):
    monkeypatch.setattr("nanoalign.rollouts.environments.environment", lambda name, data_root: EvenEnvironment())

    def context(folder):
        return StageContext(
            "workplace", folder, {"from": small_base}, "nemotron-nano-v2", 5, None, "cpu", log=StageLog(folder)
        )

    return context


def config(**changes) -> DPOStage:
    train = Training(learning_rate=1e-3, batch_size=4, epochs=1, dtype="float32", checkpoint_every=1)
    settings = {
        "kind": "dpo", "from": "base", "environment": "even", "rounds": 2, "tasks_per_round": 4,
        "samples_per_task": 4, "held_out_tasks": 5, "max_turns": 2, "train": train,
        "rollouts": Rollouts(max_tokens=6, batch_size=16), "thinking": Thinking(on=0.0), **changes,
    }  # fmt: skip
    return DPOStage(**settings)


def test_rounds_are_kept_measured_and_resumed_to_the_same_weights(stage_inputs, tmp_path, monkeypatch):
    figures = dpo.run(config(), {}, stage_inputs(tmp_path / "whole"))
    assert figures["rounds"] == 2
    assert figures["success_first"]["n"] == figures["success_last"]["n"] == 5
    assert figures["sampled_round_1"]["n"] == 16
    pairs = [json.loads(line) for line in (tmp_path / "whole/round-1/pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == figures["pairs_round_1"] > 2
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    first_losses = [row["loss"] for row in rows if row["step"] == 1 and "loss" in row]
    assert first_losses == pytest.approx([math.log(2)] * 2, abs=1e-5)

    from nanoalign.rl import dpo_trainer

    class Killed(Exception):
        pass

    training_step = dpo_trainer.PairTrainer.training_step
    steps = []

    def dies(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 2:
            raise Killed
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(dpo_trainer.PairTrainer, "training_step", dies)
    with pytest.raises(Killed):
        dpo.run(config(), {}, stage_inputs(tmp_path / "cut"))
    monkeypatch.setattr(dpo_trainer.PairTrainer, "training_step", training_step)
    assert (tmp_path / "cut/round-1/checkpoints/checkpoint-1/whole").is_file()
    assert dpo.run(config(), {}, stage_inputs(tmp_path / "cut")) == figures
    from safetensors.torch import load_file

    whole, cut = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_stops_when_success_is_flat(stage_inputs, tmp_path, monkeypatch):
    flat = {"value": 0.5, "low": 0.1, "high": 0.9, "n": 5}
    monkeypatch.setattr(dpo._Player, "held_out", lambda self, model: {"held_out": flat})
    assert dpo.run(config(stop_when_flat=True, rounds=3), {}, stage_inputs(tmp_path))["rounds"] == 1


def test_a_round_without_pairs_leaves_the_weights(stage_inputs, tmp_path, small_base, monkeypatch):
    monkeypatch.setattr(EvenEpisode, "success", lambda self: False)
    figures = dpo.run(config(rounds=1), {}, stage_inputs(tmp_path))
    assert figures["pairs_round_1"] == 0
    from safetensors.torch import load_file

    before, after = load_file(small_base / "model.safetensors"), load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_round_plays_on_until_it_has_its_pairs_and_comes_back_to_what_differed(stage_inputs, tmp_path):
    settings = config(tasks_per_round=2, min_pairs=1000, max_batches=3, revisit=1.0, nll_weight=2.0)
    dpo.run(settings, {}, stage_inputs(tmp_path))
    rounds = [json.loads((tmp_path / f"round-{number}/round.json").read_text()) for number in (1, 2)]
    assert [each["tasks"] for each in rounds] == [6, 6]
    first, second = (
        [json.loads(line) for line in (tmp_path / f"round-{number}/episodes.jsonl").read_text().splitlines()]
        for number in (1, 2)
    )
    again = list(dict.fromkeys(row["task"] for row in second))[:2]
    assert again == differing(first)[:2]
    assert len({(row["task"], row["sample"]) for row in first}) == len(first) == 24
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["step"] == 1 and "loss" in row]
    assert all(loss > math.log(2) + 1 for loss in losses)  # two times the chosen answers' nats a token
    assert all(0 < each["changed"] <= 1 for each in rounds)


def test_turns_of_successes_are_trained_on_beside_the_pairs(stage_inputs, tmp_path):
    settings = config(rounds=1, nll_weight=2.0, nll_on="successes", held_out_samples=3)
    figures = dpo.run(settings, {}, stage_inputs(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["step"] == 1 and "loss" in row]
    assert losses and all(loss > math.log(2) + 1 for loss in losses)
    outcome = json.loads((tmp_path / "round-1/round.json").read_text())
    assert len(outcome["held_out_sampled_by_task"]) == 5
    assert {round(3 * each, 6) % 1 for each in outcome["held_out_sampled_by_task"]} == {0}
    assert figures["success_sampled_round_1"]["n"] == figures["success_sampled_round_0"]["n"] == 5


def test_the_turns_of_a_batch_are_cut_with_its_pairs(tokenizer):
    from nanoalign.rl.dpo_trainer import PairCollator
    from nanoalign.rl.each_pair_once import cut

    row = {
        "prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [7], "chosen_mask": [1, 1], "rejected_mask": [1],
        "ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0,
    }  # fmt: skip
    first = {**row, "turns": [[1, 2, 3], [4, 5]], "turns_mask": [[0, 1, 0], [0, 1]]}
    second = {**row, "turns": [[6, 7]], "turns_mask": [[0, 1]]}
    batch = PairCollator(pad_token_id=0)([first, second])
    assert batch["turns"].tolist() == [[1, 2, 3], [6, 7, 0], [4, 5, 0], [0, 0, 0]]
    assert batch["turns_mask"].tolist() == [[0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert cut(batch, 2, 1)["turns"].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert "turns" not in PairCollator(pad_token_id=0)([{k: v for k, v in first.items() if k[:3] != "ref"}])


@given(turns=st.integers(0, 40), pairs=st.integers(1, 12), most=st.integers(1, 5), seed=st.integers(0, 9))
def test_turns_are_shared_out_evenly(turns, pairs, most, seed):
    written = [WrittenTurn((number,), (1,), (False,)) for number in range(turns)]
    beside = turns_beside(written, pairs, most, seed)
    sizes = [len(each) for each in beside]
    assert sum(sizes) == min(turns, pairs * most) and max(sizes) - min(sizes) <= 1
    assert len({turn for each in beside for turn in each}) == sum(sizes)


def test_forced_tokens_are_outside_the_loss(tokenizer):
    from nanoalign.rl.dpo_trainer import PairCollator

    row = {
        "prompt_ids": [5, 6], "chosen_ids": [7, 8, 9], "rejected_ids": [7],
        "chosen_mask": [1, 0, 1], "rejected_mask": [1],
    }  # fmt: skip
    batch = PairCollator(pad_token_id=0)([row, {**row, "prompt_ids": [5]}])
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0]]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 7, 8, 9, 0], [5, 6, 7, 0, 0], [5, 7, 0, 0, 0]]
