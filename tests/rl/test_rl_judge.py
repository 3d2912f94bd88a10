"""GRPO with a generative judge, over a real HTTP server: retries, the cache, and a judge that hangs."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.stage import StageContext, StageLog
from data_recipes.config import Mixture
from data_recipes.conversation import Conversation, Message
from data_recipes.rows import to_row
from reward import RewardError
from rl import grpo
from rl.config import GRPOStage


class Judge(ThreadingHTTPServer):
    """Scores an answer by its length; fails once where ``stumbles``; says nothing while ``silent`` holds."""

    def __init__(self) -> None:
        self.questions: list[str] = []
        self.stumbles, self.silent = False, lambda: False
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.questions.append(body["messages"][0]["content"])
                if judge.silent():
                    time.sleep(3)
                    return
                failed = judge.stumbles and judge.questions.count(judge.questions[-1]) == 1
                self.send_response(500 if failed else 200)
                self.end_headers()
                if not failed:
                    score = 1 + len(judge.questions[-1]) % 10
                    reply = {"choices": [{"message": {"content": f"Score: {score}"}}]}
                    self.wfile.write(json.dumps(reply).encode())

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def judge():
    with Judge() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def run(small_base, tmp_path, judge, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a source's name, here a relative one, decides the order of its samples
    source = Path("prompts.jsonl")
    prompts = [Conversation((Message("user", f"say {n}"), Message("assistant", "on"))) for n in range(4)]
    source.write_text("".join(json.dumps(to_row(prompt)) + "\n" for prompt in prompts))
    endpoint = {
        "url": f"http://127.0.0.1:{judge.server_port}/v1",
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
    with pytest.raises(RewardError, match=rf"judge http://127\.0\.0\.1:{judge.server_port}/v1 \(m\): no score for"):
        run(deadline_s=1.0)
    done = len((tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert 0 < done < 3
    judge.silent = lambda: False
    assert run(deadline_s=30.0)["steps"] == 3
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3], "finished steps are not repeated"
