"""The GRPO stage from a recipe section to a model: learning, budgets, fresh weights, resume."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanoalign.common.errors import StaleWeightsError
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.rows import to_row
from nanoalign.models.config import Training
from nanoalign.rl import grpo
from nanoalign.rl.collect import mismatch, require_fresh
from nanoalign.rl.config import GRPOStage
from nanoalign.rollouts.config import Rollouts, Thinking


def config(steps: int = 2, **changes) -> GRPOStage:
    train = Training(
        learning_rate=3e-3, schedule="constant", warmup_ratio=0.0, batch_size=16, steps=steps, dtype="float32",
        checkpoint_every=1,
    )  # fmt: skip
    settings = {
        "kind": "grpo", "from": "base", "data": "m", "reward": {"format": 1.0, "length": 0.2}, "group_size": 4,
        "rollouts": Rollouts(max_tokens=10, grace=2, batch_size=16),
        "thinking": Thinking(on=0.5, budgets=[None, 3]), "train": train, **changes,
    }  # fmt: skip
    return GRPOStage(**settings)


@pytest.fixture
def stage(small_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a source's name, path and all, seeds its draw
    prompts = [Conversation((Message("user", f"say {n}"), Message("assistant", "on"))) for n in range(8)]
    Path("prompts.jsonl").write_text("".join(json.dumps(to_row(prompt)) + "\n" for prompt in prompts))

    def run(folder, settings):
        context = StageContext(
            "instruct", folder, {"from": small_base}, "nemotron-nano-v2", 5, None, "cpu", log=StageLog(folder)
        )
        return grpo.run(settings, {"m": Mixture(sources={"file:prompts.jsonl": 8})}, context)

    return run


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_reward_rises_and_the_step_is_logged(stage, tmp_path):
    figures = stage(tmp_path / "run", config(12))
    assert figures["steps"] == 12
    assert figures["groups"] == 48
    assert 0 < figures["groups_without_signal"] < 48
    assert figures["reward_last"]["value"] > figures["reward_first"]["value"] + 0.3
    assert figures["mismatch_max"] == pytest.approx(1.0, abs=1e-4)
    logged = rows(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in logged] == list(range(1, 13))
    assert {"reward", "rewards/format/mean", "rewards/length/mean", "mismatch", "forced_share"} <= set(logged[0])
    samples = rows(tmp_path / "run/samples.jsonl")
    assert {"prompt", "thinking", "answer", "reward"} <= set(samples[0])


def test_a_killed_stage_ends_with_the_same_weights(stage, tmp_path, monkeypatch):
    figures = stage(tmp_path / "whole", config(4))

    class Killed(Exception):
        pass

    collect = grpo.OwnEngine.__call__

    def dies(self, step, *part):
        if step == 2:
            raise Killed
        return collect(self, step, *part)

    monkeypatch.setattr(grpo.OwnEngine, "__call__", dies)
    with pytest.raises(Killed):
        stage(tmp_path / "cut", config(4))
    monkeypatch.setattr(grpo.OwnEngine, "__call__", collect)
    resumed = stage(tmp_path / "cut", config(4))
    timed = ("rollout_tokens_per_s", "step_s", *grpo.PARTS)
    assert {k: v for k, v in resumed.items() if k not in timed} == {k: v for k, v in figures.items() if k not in timed}
    from safetensors.torch import load_file

    whole, cut = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_killed_in_the_middle_of_a_sync_a_stage_goes_on(small_base, tmp_path):
    """Two real processes: the first dies with half of the engine's weights replaced, the second ends the stage."""
    prompts = [Conversation((Message("user", f"say {n}"), Message("assistant", "on"))) for n in range(8)]
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(to_row(prompt)) + "\n" for prompt in prompts))
    stage = config(4, rollouts=Rollouts(engine="vllm", max_tokens=6, grace=2, batch_size=16))
    job = {"folder": str(tmp_path / "run"), "base": str(small_base), "source": f"file:{source}"}
    job |= {"stage": stage.model_dump(by_alias=True, mode="json"), "dies_at_sync": 3}
    script = Path(__file__).with_name("killed_in_sync.py")

    def run(**changes):
        (tmp_path / "job.json").write_text(json.dumps(job | changes))
        command = [sys.executable, str(script), str(tmp_path / "job.json")]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": os.getcwd()}
        )

    killed = run()
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not (tmp_path / "run/model").exists()
    ended = run(dies_at_sync=0)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert [row["step"] for row in rows(tmp_path / "run/metrics.jsonl")] == [1, 2, 3, 4]  # none repeated, none lost
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert figures["steps"] == 4
    assert figures["mismatch_max"] == pytest.approx(1.0, abs=1e-4)


@pytest.fixture
def with_engine(monkeypatch):
    """Lets a stage generate with an HF engine of its own, changed in place by what is given."""
    from nanoalign import rollouts
    from nanoalign.models.loading import load_model

    open_engine = rollouts.open_engine

    def use(change):
        def changed(kind, model, *args, **more):
            if kind == "hf":
                return open_engine("hf", model, *args, **more)
            engine = open_engine("hf", load_model(model), *args, batch_size=16)
            change(engine)
            return engine

        monkeypatch.setattr(rollouts, "open_engine", changed)

    return use


def test_stale_weights_stop_the_stage(stage, tmp_path, with_engine):
    """An engine that keeps the first weights is caught as soon as training has moved the others."""

    def stale(engine):
        engine.load_weights = lambda tensors: None

    with_engine(stale)
    settings = config(6, rollouts=Rollouts(engine="vllm", max_tokens=10, grace=2))
    with pytest.raises(StaleWeightsError, match="max_mismatch"):
        stage(tmp_path / "run", settings)
    assert rows(tmp_path / "run/metrics.jsonl")[0]["mismatch"] == pytest.approx(1.0, abs=1e-4)


def test_a_mismatch_of_the_few_probed_completions_alone_is_measured_on_all(stage, tmp_path, with_engine):
    def noisy(engine):
        generate = engine.generate

        def off_in_every_second(requests):
            answers = generate(requests)
            far = [replace(each, logprobs=tuple(value + 0.2 for value in each.logprobs)) for each in answers]
            return [far[place] if place % 2 == 0 else each for place, each in enumerate(answers)]

        engine.generate = off_in_every_second

    with_engine(noisy)
    stage(tmp_path / "run", config(max_mismatch=1.17, rollouts=Rollouts(engine="vllm", max_tokens=10, grace=2)))
    assert all(1.05 < row["mismatch"] < 1.17 for row in rows(tmp_path / "run/metrics.jsonl"))


def test_mismatch_is_the_mean_factor_over_sampled_tokens():
    assert mismatch([[-1.0, -2.0], [-3.0]], [[-1.0, -2.0], [-3.0]], [[False, False], [False]]) == 1.0
    value = mismatch([[-1.0, -9.0]], [[-1.5, 0.0]], [[False, True]])
    assert value == pytest.approx(2.718281828**0.5)
    assert mismatch([[]], [[]], [[]]) == 1.0
    require_fresh(value, 1.7, 0)
    for wrong in (value, float("nan"), float("inf")):
        with pytest.raises(StaleWeightsError):
            require_fresh(wrong, 1.05, 3)
