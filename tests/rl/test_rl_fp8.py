"""Training passes in FP8: a policy that has not moved is its reference, to what bf16 lets it be."""

import json
import math

import pytest
import torch

from nanoalign.common.stage import StageContext, StageLog
from nanoalign.models import fp8
from nanoalign.models.adapters import attach
from nanoalign.models.config import LoRA, Training
from nanoalign.models.fp8_layers import EMULATE
from nanoalign.rl import dpo
from tests.rl.test_rl_dpo import EvenEnvironment, config
from tests.rl.test_rl_grpo_trainer import stage, trainer_for

FP8 = {"dtype": "bfloat16", "precision": "fp8"}


@pytest.fixture(autouse=True)
def products(monkeypatch):
    """Counts FP8 products, which are emulated here."""
    monkeypatch.setenv(EMULATE, "1")
    counted, product = [], fp8.product
    monkeypatch.setattr(fp8, "product", lambda *arguments: counted.append(1) or product(*arguments))
    return counted


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_dpo_starts_from_its_reference(lora, small_base, products, tmp_path, monkeypatch):
    monkeypatch.setattr("nanoalign.rollouts.environments.environment", lambda name, data_root: EvenEnvironment())
    context = StageContext(
        "workplace", tmp_path, {"from": small_base}, "nemotron-nano-v2", 5, None, "cpu", log=StageLog(tmp_path)
    )
    train = Training(learning_rate=1e-3, batch_size=4, steps=1, lora=lora, **FP8)
    dpo.run(config(train=train, rounds=1), {}, context)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (loss,) = [row["loss"] for row in rows if row["step"] == 1 and "loss" in row]
    assert products and loss == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize("adapters", [False, True])
def test_grpos_policy_starts_from_its_reference(adapters, make_model, tokenizer, products, tmp_path):
    model, start = make_model("hybrid"), make_model("hybrid")
    model = attach(model, LoRA(rank=2), 0) if adapters else model
    reference = None if adapters else start
    trainer = trainer_for(stage("dapo", kl=0.1, train=FP8), model, tokenizer, tmp_path, reference=reference)
    for rows in trainer.collect_step():
        trainer.compute_loss(trainer.model, {"rows": rows})
    assert products and float(trainer.sums["kl"]) == 0
    assert torch.isfinite(trainer.sums["entropy"])
