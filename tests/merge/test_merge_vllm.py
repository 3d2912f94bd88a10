"""A sweep through a real vLLM: no alpha is written, and its scores are those of transformers on the written merge."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
pytest.importorskip("vllm", reason="vLLM is not installed")

import torch
from transformers import PreTrainedModel

from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.config import Mixture, SourceUse
from nanoalign.evaluation.config import Suite
from nanoalign.evaluation.suites import load_suite, make_scorer, suite_reward
from nanoalign.merge.config import MergeStage
from nanoalign.merge.interpolate import interpolate
from nanoalign.merge.stage import measurements, run
from nanoalign.models.loading import load_tokenizer, save_model
from nanoalign.models.scorer import load_scorer
from nanoalign.rollouts import open_engine
from nanoalign.rollouts.config import Rollouts
from tests.tiny import tied_llama, tiny_hybrid, tiny_tokenizer, token_ids

CHAT = "nemotron-nano-v2"
MIXTURES = {
    "math": Mixture(sources={"miniature:math": SourceUse(samples=5, split="test")}),
    "talk": Mixture(sources={"miniature:chat": SourceUse(samples=5, split="test")}),
}
JUDGED: dict[str, Any] = {"reward": {"preference": 1.0}, "reward_model": "judge"}
SUITES = {"reasoning": Suite(data="math", **JUDGED), "chat": Suite(data="talk", **JUDGED)}


def moved(model: PreTrainedModel, seed: int, by: float) -> PreTrainedModel:
    """Other weights; ``by`` is large, so that greedy choices are no near ties."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("build", [tiny_hybrid, tied_llama])
def test_scores_are_those_of_transformers_on_what_would_be_written(build, tmp_path: Path, monkeypatch):
    tokenizer = tiny_tokenizer(CHAT)
    inputs = {name: tmp_path / name for name in ("reasoning", "chat", "judge")}
    for seed, name in enumerate(("reasoning", "chat")):
        save_model(moved(build(len(tokenizer), **token_ids(tokenizer)), seed, 3.0), tokenizer, inputs[name])
    judge = moved(load_scorer(inputs["chat"], tokenizer.pad_token_id, "cpu", fresh_head=True), 2, 0.5)
    torch.nn.init.normal_(judge.score.weight)
    judge.config.chat_format = CHAT
    save_model(judge, tokenizer, inputs["judge"])

    opened = []

    def noted(engine, *args, **more):
        opened.append(engine.kind)
        return open_engine(engine, *args, **more)

    monkeypatch.setattr("nanoalign.rollouts.open_engine", noted)
    rollouts = Rollouts(engine="vllm", temperature=0.0, max_tokens=16, grace=2, batch_size=4)
    config = MergeStage(
        kind="merge", reasoning="x", chat="y", alphas=[0.25, 0.75], reasoning_suite="reasoning", chat_suite="chat",
        budgets=[3], rollouts=rollouts,
    )  # fmt: skip
    folder = tmp_path / "merged"
    context = StageContext("merged", folder, inputs, CHAT, 0, None, "cpu", log=StageLog(folder))
    figures = run(config, MIXTURES, context, SUITES)
    points = json.loads((folder / "sweep.json").read_text())["points"]
    assert opened == ["vllm"]
    assert [point["alpha"] for point in points] == [0.0, 0.25, 0.75, 1.0]
    assert figures["merge.alpha"] in {point["alpha"] for point in points}

    written = {point["alpha"]: tmp_path / f"alpha-{point['alpha']}" for point in points}
    interpolate(inputs["reasoning"], inputs["chat"], written)
    score = make_scorer(
        {name: load_suite(name, suite, MIXTURES, None, 0) for name, suite in SUITES.items()},
        {name: suite_reward(suite, inputs, "cpu") for name, suite in SUITES.items()},
        chat_format(CHAT), load_tokenizer(inputs["chat"]), rollouts, 0,
    )  # fmt: skip
    for point in points:
        engine = open_engine("hf", written[point["alpha"]], tokenizer, chat_format(CHAT), batch_size=4)
        for name, (suite, mode) in measurements(config).items():
            assert point["scores"][name]["value"] == pytest.approx(score(suite, engine, mode).value, abs=1e-4), name
    # Without a budget these random models never end their thinking, and the judge sees no answer.
    assert len({point["scores"]["reasoning@3"]["value"] for point in points}) == 4
