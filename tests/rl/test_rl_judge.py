"""GRPO with a generative judge, over a real HTTP server: retries, the cache, and a judge that hangs."""

import json
from pathlib import Path

import pytest

from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.rows import to_row
from nanoalign.reward import RewardError
from nanoalign.rl import grpo
from nanoalign.rl.config import GRPOStage
from tests.reward.endpoint import Endpoint


class Judge(Endpoint):
    """Scores an answer by its length; fails once where ``stumbles``; says nothing while ``silent`` holds."""

    def __init__(self) -> None:
        self.stumbles, self.silent = False, lambda: False
        super().__init__(self._said)

    @property
    def questions(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.asked]

    def _said(self, number: int, question: str) -> str | int | float:
        if self.silent():
            return 3.0
        if self.stumbles and self.questions.count(question) == 1:
            return 500
        return f"Score: {1 + len(question) % 10}"


@pytest.fixture
def judge():
    server = Judge()
    yield server
    server.close()


@pytest.fixture
def run(small_base, tmp_path, judge, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a source's name, here a relative one, decides the order of its samples
    source = Path("prompts.jsonl")
    prompts = [Conversation((Message("user", f"say {n}"), Message("assistant", "on"))) for n in range(4)]
    source.write_text("".join(json.dumps(to_row(prompt)) + "\n" for prompt in prompts))
    endpoint = {
        "url": f"http://127.0.0.1:{judge.server.server_port}/v1",
        "model": "m",
        "cache": str(tmp_path / "judged.jsonl"),
    }

    def stage(**changes):
        settings = GRPOStage.model_validate({
            "kind": "grpo", "from": "base", "data": "m", "reward": {"judge": 1.0}, "group_size": 4,
            "judge": endpoint | changes, "rollouts": {"max_tokens": 16, "batch_size": 8}, "thinking": {"on": 0.0},
            "train": {"learning_rate": 1e-3, "schedule": "constant", "batch_size": 8, "steps": 3, "dtype": "float32",
                      "checkpoint_every": 1},
        })  # fmt: skip
        folder = tmp_path / "run"
        context = StageContext(
            "chat", folder, {"from": small_base}, "nemotron-nano-v2", 5, None, "cpu", log=StageLog(folder)
        )
        return grpo.run(settings, {"m": Mixture(sources={f"file:{source}": 4})}, context)

    return stage


def test_failed_requests_are_repeated_and_equal_questions_are_asked_once(run, judge, tmp_path) -> None:
    judge.stumbles = True
    figures = run()
    assert figures["steps"] == 3 and figures["reward_judge"]["first"]["value"] > 0
    assert all(judge.questions.count(question) == 2 for question in judge.questions)
    assert len((tmp_path / "judged.jsonl").read_text().splitlines()) == len(set(judge.questions))


def test_a_hanging_judge_ends_the_stage_with_its_name_and_resume_goes_on(run, judge, tmp_path) -> None:
    judge.silent = (tmp_path / "run/metrics.jsonl").exists  # once there is a finished step
    with pytest.raises(
        RewardError, match=rf"judge http://127\.0\.0\.1:{judge.server.server_port}/v1 \(m\): no score for"
    ):
        run(deadline_s=1.0)
    done = len((tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert 0 < done < 3
    judge.silent = lambda: False
    assert run(deadline_s=30.0)["steps"] == 3
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3], "finished steps are not repeated"
