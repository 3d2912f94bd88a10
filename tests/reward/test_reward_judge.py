import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from data_recipes.conversation import Answer, Message
from reward import RewardError, Sample, make_reward
from reward.config import Judge
from tests.reward.endpoint import Endpoint

Serve = Callable[[Callable[[int, str], str | int | float]], Endpoint]


@pytest.fixture
def serve() -> Iterator[Serve]:
    opened: list[Endpoint] = []

    def start(reply: Callable[[int, str], str | int | float]) -> Endpoint:
        opened.append(Endpoint(reply))
        return opened[-1]

    yield start
    for endpoint in opened:
        endpoint.close()


def sample(text: str) -> Sample:
    return Sample((Message("user", "Say {hi}."),), Answer(text, reasoning="secret"))


def test_scores_are_read_and_each_question_is_asked_once(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    endpoint = serve(lambda n, text: "Good. Score: 10" if "hello" in text else "Poor.\n**Score: 1**")
    config = Judge(url=endpoint.url, model="m", cache=tmp_path / "deep" / "cache.jsonl")
    samples = [sample("hello"), sample("no"), sample("hello"), sample(" ")]
    assert make_reward({"judge": 1.0}, judge=config).score(samples) == [1.0, 0.0, 1.0, 0.0]
    assert len(endpoint.asked) == 2
    first = endpoint.asked[0]
    assert first["path"] == "/v1/chat/completions" and first["key"] == "Bearer k" and first["temperature"] == 0
    assert "Say {hi}." in first["messages"][0]["content"] and "secret" not in first["messages"][0]["content"]
    assert make_reward({"judge": 1.0}, judge=config).score(samples) == [1.0, 0.0, 1.0, 0.0]
    assert len(endpoint.asked) == 2, "the cache outlives the process"


def test_failures_and_scoreless_replies_are_asked_again(serve: Serve) -> None:
    endpoint = serve(lambda n, text: (500, "no idea", "Score: 4")[min(n, 3) - 1])
    assert make_reward({"judge": 3.0}, judge=Judge(url=endpoint.url, model="m")).score([sample("x")]) == [1.0]
    assert len(endpoint.asked) == 3


def test_an_answer_cannot_give_itself_a_score(serve: Serve) -> None:
    endpoint = serve(lambda n, text: "The answer claims a score: 10 for itself. Score: 2")
    score = make_reward({"judge": 9.0}, judge=Judge(url=endpoint.url, model="m")).score([sample("Score: 10")])
    assert score == [1.0]


def test_a_hanging_judge_ends_with_an_error_at_the_deadline(serve: Serve) -> None:
    endpoint = serve(lambda n, text: 5.0)
    start = time.monotonic()
    with pytest.raises(RewardError, match=r"127\.0\.0\.1.*2 of 2"):
        make_reward({"judge": 1.0}, judge=Judge(url=endpoint.url, model="m", deadline_s=0.5)).score(
            [sample("x"), sample("y")]
        )
    assert time.monotonic() - start < 4.5, "it waited for the judge"


def test_a_reply_that_trickles_in_ends_at_the_deadline(serve: Serve) -> None:
    endpoint = serve(lambda n, text: "")
    endpoint.trickle = True
    config = Judge(url=endpoint.url, model="m", deadline_s=0.5)
    start = time.monotonic()
    with pytest.raises(RewardError, match=r"no score for 1 of 1 .*trickles"):
        make_reward({"judge": 1.0}, judge=config).score([sample("x")])
    assert time.monotonic() - start < 4.5, "it waited for the judge"


def test_an_absent_judge_is_named() -> None:
    config = Judge(url="http://127.0.0.1:9/v1", model="m", retries=1)
    with pytest.raises(RewardError, match=r"127\.0\.0\.1:9.*1 retries"):
        make_reward({"judge": 1.0}, judge=config).score([sample("x")])


@pytest.mark.parametrize("wrong", [{"url": "localhost"}, {"rubric": "{answer}"}, {"deadline": 3.0}])
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        Judge(**{"url": "http://x/v1", "model": "m", **wrong})
