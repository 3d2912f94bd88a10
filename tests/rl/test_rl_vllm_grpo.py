"""GRPO with rollouts on a real vLLM: after each step the engine answers with the trainer's new weights."""

import json
import os

import pytest

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
pytest.importorskip("vllm", reason="vLLM is not installed")

from common.stage import StageContext, StageLog
from data_recipes.config import Mixture
from data_recipes.conversation import Conversation, Message
from data_recipes.rows import to_row
from models.config import Training
from rl import grpo
from rl.config import GRPOStage, Rollouts, Thinking


def test_weights_stay_fresh_while_they_move(small_base, tmp_path):
    rows = tmp_path / "prompts.jsonl"
    prompts = [Conversation((Message("user", f"say {n}"), Message("assistant", "on"))) for n in range(8)]
    rows.write_text("".join(json.dumps(to_row(prompt)) + "\n" for prompt in prompts))
    train = Training(
        learning_rate=3e-3, schedule="constant", warmup_ratio=0.0, batch_size=16, steps=4, dtype="float32"
    )  # fmt: skip
    config = GRPOStage(
        **{
            "kind": "grpo", "from": "base", "data": "m", "reward": {"format": 1.0}, "group_size": 8, "train": train,
            "rollouts": Rollouts(engine="vllm", max_tokens=64, grace=2, batch_size=16),
            "thinking": Thinking(on=1.0, budgets=[None, 3, 3, 3]),
        }
    )  # fmt: skip
    folder = tmp_path / "run"
    context = StageContext(
        "instruct", folder, {"from": small_base}, "nemotron-nano-v2", 5, None, "cpu", log=StageLog(folder)
    )
    figures = grpo.run(config, {"m": Mixture(sources={f"file:{rows}": 8})}, context)
    assert figures["groups_without_signal"] < figures["groups"]
    assert figures["mismatch_max"] == pytest.approx(1.0, abs=1e-3)
    assert (folder / "model/model.safetensors").is_file()
