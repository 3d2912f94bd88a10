"""GRPO with rollouts on a real vLLM: after each step the engine answers with the trainer's new weights."""

import json
import os
import signal
import threading

import pytest

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
pytest.importorskip("vllm", reason="vLLM is not installed")

from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.rows import to_row
from nanoalign.models.config import Training
from nanoalign.rl import grpo
from nanoalign.rl.config import GRPOStage
from nanoalign.rollouts.config import Rollouts, Thinking
from nanoalign.rollouts.pool import ServerPool


@pytest.fixture
def stage(small_base, tmp_path):
    """Runs a stage of eight prompts and four steps; returns its figures and its rows of metrics."""

    def run(engine):
        rows = tmp_path / "prompts.jsonl"
        prompts = [Conversation((Message("user", f"say {n}"), Message("assistant", "on"))) for n in range(8)]
        rows.write_text("".join(json.dumps(to_row(prompt)) + "\n" for prompt in prompts))
        train = Training(
            learning_rate=3e-3, schedule="constant", warmup_ratio=0.0, batch_size=16, steps=4, dtype="float32"
        )  # fmt: skip
        config = GRPOStage(
            **{
                "kind": "grpo", "from": "base", "data": "m", "reward": {"format": 1.0}, "group_size": 8, "train": train,
                "rollouts": Rollouts(engine=engine, max_tokens=64, grace=2, batch_size=16),
                "thinking": Thinking(on=1.0, budgets=[None, 3, 3, 3]),
            }
        )  # fmt: skip
        folder = tmp_path / "run"
        context = StageContext(
            "instruct", folder, {"from": small_base}, "nemotron-nano-v2", 5, None, "cpu", log=StageLog(folder)
        )
        figures = grpo.run(config, {"m": Mixture(sources={f"file:{rows}": 8})}, context)
        assert (folder / "model/model.safetensors").is_file()
        return figures, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    return run


def test_weights_stay_fresh_while_they_move(stage):
    figures, _ = stage("vllm")
    assert figures["groups_without_signal"] < figures["groups"]
    assert figures["mismatch_max"] == pytest.approx(1.0, abs=1e-3)


def test_a_server_killed_in_a_rollout_costs_no_step(stage, monkeypatch):
    """A real server in a process of its own, killed while it answers the second step."""
    submit, steps = ServerPool.submit, []

    def killed(self, requests):
        process = self.slots[0].keeper.process.process
        steps.append(process.pid)
        if len(steps) == 2:
            threading.Timer(0.05, os.killpg, (process.pid, signal.SIGKILL)).start()
            requests = list(requests) * 20  # long enough to be in the middle
        return submit(self, requests)[:16]

    monkeypatch.setattr(ServerPool, "submit", killed)
    with pytest.warns(UserWarning, match="restarting the rollout engine"):
        figures, rows = stage({"kind": "vllm_server", "deadline_s": 300})
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["engines_lost"] for row in rows] == [0, 1, 1, 1]
    assert len(set(steps)) == 2
    assert figures["mismatch_max"] == pytest.approx(1.0, abs=1e-3)
