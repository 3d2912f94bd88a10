import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from nanoalign.common.errors import ConfigError
from nanoalign.models.config import Training
from nanoalign.models.fp8_layers import EMULATE
from nanoalign.models.training import COMPLETE, newest_checkpoint, resolve_device, training_arguments

ROOT = Path(__file__).parents[2]


def train(*jobs: str) -> list[int]:
    """Trains in processes of their own, one after another; their exit statuses."""
    command = [sys.executable, str(Path(__file__).with_name("training_worker.py")), *jobs]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", EMULATE: "1"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return [int(line.removeprefix("status ")) for line in run.stdout.splitlines() if line.startswith("status ")]


def test_killed_and_resumed_training_ends_with_the_same_weights_bitwise(tmp_path: Path) -> None:
    statuses = train(
        *(
            job
            for model in ("full", "lora", "fp8")
            for job in (
                f"{tmp_path}/{model}/whole:never:{model}",
                f"{tmp_path}/{model}/killed:save:{model}",  # dies while it writes the checkpoint of step 6
                f"{tmp_path}/{model}/killed:step:{model}",  # resumes after step 3, dies in step 9
                f"{tmp_path}/{model}/killed:never:{model}",  # resumes after step 6, in the middle of an epoch
            )
        )
    )
    assert statuses == [0, -signal.SIGKILL, -signal.SIGKILL, 0] * 3
    for model in ("full", "lora", "fp8"):
        whole, killed = tmp_path / model / "whole", tmp_path / model / "killed"
        assert (killed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
        rows = metrics(killed)
        assert [row["step"] for row in rows] == [*range(1, 7), *range(4, 9), *range(7, 16)]
        assert rows[-1]["total_steps"] == 15 and rows[-1]["tokens"] == 18 * 16 * 3
        assert {row["step"]: row["loss"] for row in rows} == {row["step"]: row["loss"] for row in metrics(whole)}


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_only_whole_checkpoints_are_found_and_others_are_cleared_away(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    for step in (2, 10, 9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").touch()
    for step in (2, 9, 10):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()


def test_arguments_follow_the_recipe(tmp_path: Path) -> None:
    recipe = Training(learning_rate=1e-3, batch_size=12, micro_batch_size=4, epochs=2, betas=(0.8, 0.9))
    arguments = training_arguments(recipe, tmp_path, samples=25, device="cpu", seed=3, save_steps=7)
    assert arguments.per_device_train_batch_size == 4 and arguments.gradient_accumulation_steps == 3
    assert arguments.max_steps == 6 and arguments.save_steps == 7 and arguments.bf16
    assert (arguments.adam_beta1, arguments.adam_beta2) == (0.8, 0.9)


def test_a_batch_that_does_not_divide_is_an_error(tmp_path: Path) -> None:
    recipe = Training(learning_rate=1e-3, batch_size=12, micro_batch_size=5)
    with pytest.raises(ConfigError, match=r"12 is not a multiple of 5 \(micro batch\)"):
        training_arguments(recipe, tmp_path, samples=25, device="cpu", seed=3)


def test_unknown_devices_are_errors() -> None:
    for name in ("tpu", "cpu:1", "cuda:", "cuda:one"):
        with pytest.raises(ConfigError, match=f"expected auto, cpu, cuda or cuda:N, got '{name}'"):
            resolve_device(name)
    with pytest.raises(ConfigError, match="cuda:64 is requested, but torch finds"):
        resolve_device("cuda:64")


def test_one_process_trains_on_one_gpu_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer would put DataParallel over all GPUs in sight, and multiply the batch by their number."""
    one = TrainingArguments.__post_init__

    def four(self: TrainingArguments) -> None:
        one(self)
        self._n_gpu = 4

    monkeypatch.setattr(TrainingArguments, "__post_init__", four)
    arguments = training_arguments(
        Training(learning_rate=1e-3, batch_size=8, micro_batch_size=4, epochs=1), tmp_path, 8, "cpu", 0
    )
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 4)
