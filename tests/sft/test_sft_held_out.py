"""The held-out loss in the middle of training, and training that ends when it falls no more."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nanoalign.common.errors import DataError
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.config import Mixture
from nanoalign.models.loading import load_model, save_model
from nanoalign.recipe.load import RecipeError, load
from nanoalign.sft.config import SFTStage
from nanoalign.sft.stage import run
from nanoalign.sft.trainer import DocumentTrainer

MIXTURES = {"all": Mixture.model_validate({"sources": {"miniature:math": 120}})}
TRAIN = {"learning_rate": 1e-2, "batch_size": 2, "dtype": "float32", "schedule": "constant", "checkpoint_every": 2}


@pytest.fixture
def base(tiny_model: Any, tokenizer: Any, tmp_path: Path) -> Path:
    save_model(tiny_model, tokenizer, tmp_path / "base")
    return tmp_path / "base"


def trained(folder: Path, base: Path, **train: Any) -> dict[str, Any]:
    config = SFTStage.model_validate({
        "kind": "sft", "from": "base", "data": "all", "pack": {"length": 256}, "train": {**TRAIN, **train},
    })  # fmt: skip
    return run(config, MIXTURES, StageContext(
        name="first", folder=folder, inputs={"from": base}, chat="nemotron-nano-v2", seed=3, data_root=None,
        device="cpu", log=StageLog(folder),
    ))  # fmt: skip


def measured(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["held_out_loss"] for row in rows if "held_out_loss" in row}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder / "model").state_dict())


def same(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return all(torch.equal(left[name], right[name]) for name in left)


def told(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    """The held-out loss at a step is what the table says, whatever the model says."""

    def loss_on(self: DocumentTrainer, *_: Any) -> float:
        return losses.get(self.state.global_step, 9.0)

    monkeypatch.setattr(DocumentTrainer, "loss_on", loss_on)


def test_measuring_changes_nothing_of_what_is_trained(base: Path, tmp_path: Path) -> None:
    trained(tmp_path / "plain", base, steps=5)
    figures = trained(tmp_path / "measured", base, steps=5, evaluate_every=2)
    assert list(measured(tmp_path / "measured")) == [0, 2, 4, 5] and list(measured(tmp_path / "plain")) == [0, 5]
    assert same(tmp_path / "plain", tmp_path / "measured")
    assert figures["held_out_loss_last"] < figures["held_out_loss_first"]


def test_training_ends_when_the_loss_falls_no_more_and_the_best_weights_are_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, {1: 3.0, 2: 2.0, 3: 2.5, 4: 1.995})
    stop = {"patience": 2, "min_improvement": 0.01}
    figures = trained(tmp_path / "stopped", base, steps=9, evaluate_every=1, early_stop=stop)
    assert figures["steps"] == 4 and list(measured(tmp_path / "stopped")) == [0, 1, 2, 3, 4]
    monkeypatch.undo()
    trained(tmp_path / "two", base, steps=2)
    assert same(tmp_path / "stopped", tmp_path / "two")


def test_adapters_are_taken_back_too_and_the_last_step_may_be_the_best(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, {2: 2.0, 4: 1.0, 5: 0.5})
    lora = {"rank": 4}
    assert trained(tmp_path / "all", base, steps=5, evaluate_every=2, early_stop={}, lora=lora)["steps"] == 5
    told(monkeypatch, {2: 2.0})
    stop = {"patience": 1}
    assert trained(tmp_path / "stopped", base, steps=5, evaluate_every=2, early_stop=stop, lora=lora)["steps"] == 4
    monkeypatch.undo()
    trained(tmp_path / "five", base, steps=5, lora=lora)
    trained(tmp_path / "two", base, steps=2, lora=lora)
    assert same(tmp_path / "all", tmp_path / "five") and same(tmp_path / "stopped", tmp_path / "two")


def test_a_stage_that_was_killed_stops_where_it_would_have(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, {1: 2.0})
    settings = {"steps": 9, "evaluate_every": 1, "early_stop": {"patience": 4}}
    assert trained(tmp_path / "whole", base, **settings)["steps"] == 5
    left = tmp_path / "killed" / "checkpoints"  # the best one, and one on the way; moved to another folder since
    for step in (1, 4):
        shutil.copytree(tmp_path / "whole" / "checkpoints" / f"checkpoint-{step}", left / f"checkpoint-{step}")
    shutil.move(tmp_path / "whole" / "checkpoints", tmp_path / "gone")
    assert trained(tmp_path / "killed", base, **settings)["steps"] == 5
    assert same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.foundation.train.early_stop={patience: 2}", "needs `train.evaluate_every`"),
        ("stages.workplace.train.evaluate_every=5", "unknown key"),
        ("stages.foundation.train.early_stopping_patience=2", "did you mean `early_stop.patience`"),
        ("stages.foundation.train.eval_steps=2", "did you mean `evaluate_every`"),
    ],
)
def test_what_cannot_be_measured_is_a_mistake(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load("miniature", [override])


def test_too_few_samples_to_hold_any_out(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ["data.few={sources: {miniature:math: 20}}", "stages.foundation.data=few"]
    with pytest.raises(RecipeError, match="none of 20 samples is held out"):
        load("miniature", [*few, "stages.foundation.train.evaluate_every=2"])
    monkeypatch.setitem(MIXTURES, "all", Mixture.model_validate({"sources": {"miniature:math": 20}}))
    with pytest.raises(DataError, match="of 20 samples none is held out"):
        trained(tmp_path / "few", base, steps=2, evaluate_every=1)
