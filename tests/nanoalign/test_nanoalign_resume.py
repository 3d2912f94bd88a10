"""A real stage through the runner, on the CPU: killed at some moment and run again, it ends with the same weights."""

import hashlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from transformers import AutoTokenizer

from nanoalign import runner
from nanoalign.artifacts import read_jsonl, read_record
from nanoalign.common.errors import StageError
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.conversation import Message
from tests.nanoalign.small_runs import run_real


def weights(stage: Path) -> str:
    return hashlib.sha256((stage / "model" / "model.safetensors").read_bytes()).hexdigest()


def kill_after(stage: Path, rows: int, wait_s: float) -> None:
    """Kills the stage's process group ``wait_s`` after it has logged ``rows`` rows."""
    end = time.monotonic() + 300
    while len(read_jsonl(stage / "metrics.jsonl")) < rows:
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(wait_s)
    for process in psutil.process_iter(["cmdline"]):
        if any(str(stage / "job.json") in part for part in process.info["cmdline"] or []):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(runner, "_report", lambda folder, console, anew: None)


def test_a_killed_sft_stage_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = run_real(tmp_path, "whole")
    rng = random.Random(17)
    killer = threading.Thread(
        target=kill_after, args=(tmp_path / "killed" / "first", rng.randint(3, 5), rng.random() / 2)
    )
    killer.start()
    with pytest.raises(StageError, match="SIGKILL"):
        run_real(tmp_path, "killed")
    killer.join()
    killed = run_real(tmp_path, "killed", "stages.first.train.checkpoint_every=3")
    assert AutoTokenizer.from_pretrained(killed / "model").apply_chat_template(
        [{"role": "user", "content": "2+2?"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    ) == chat_format("nemotron-nano-v2").prompt([Message("user", "2+2?")], thinking=False)
    record = read_record(killed)
    assert record is not None and (record.status, record.attempts) == ("finished", 2)
    assert weights(killed) == weights(whole)
    losses = [  # without what preparing data says on a slow machine
        [row.get("loss") for row in read_jsonl(stage / "metrics.jsonl") if "phase" not in row]
        for stage in (whole, killed)
    ]
    assert losses[0] == losses[1] and len(losses[0]) >= 6
    assert record.figures["trained_tokens"] == read_record(whole).figures["trained_tokens"]  # type: ignore[union-attr]
