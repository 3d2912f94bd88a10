"""Pre-training learns, repeats itself and leaves a model that loads."""

import json

import pytest

from nanoalign.common.errors import ConfigError
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.models.config import Training
from nanoalign.models.loading import load_model, load_tokenizer
from nanoalign.sft.pretrain import PretrainStage, run


def stage(folder, **train):
    settings = Training(learning_rate=3e-3, schedule="wsd", batch_size=4, dtype="float32", **train)
    config = PretrainStage(kind="pretrain", documents=200, vocab_size=600, length=48, train=settings)
    context = StageContext(
        "base", folder, {}, "nemotron-nano-v2", seed=3, data_root=None, device="cpu", log=StageLog(folder)
    )
    return run(config, {}, context)


def test_it_learns_and_the_model_loads(tmp_path):
    figures = stage(tmp_path / "a", steps=25)
    first = json.loads((tmp_path / "a/metrics.jsonl").read_text().splitlines()[0])
    assert figures["loss_last"] < first["loss"] - 0.5
    model, tokenizer = load_model(tmp_path / "a/model"), load_tokenizer(tmp_path / "a/model")
    assert model.config.vocab_size == len(tokenizer) <= 600
    again = stage(tmp_path / "b", steps=25)
    assert again == figures


def test_steps_are_needed(tmp_path):
    with pytest.raises(ConfigError, match=r"stages\.base\.train\.steps"):
        stage(tmp_path)
