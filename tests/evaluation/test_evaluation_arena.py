"""Arena-Hard: both versions' files, a stub judge in both orders, win rates with length and style controlled."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.data_recipes.conversation import Answer, Conversation
from nanoalign.evaluation.arena import controlled, figures
from nanoalign.evaluation.benchmarks import TaskReading, benchmark
from nanoalign.evaluation.config import Suite
from nanoalign.reward.arena import ArenaScore, verdict, win_rate
from nanoalign.reward.base import Sample
from nanoalign.reward.compose import make_reward
from nanoalign.reward.config import Judge
from tests.reward.endpoint import Endpoint

FOLDER = Path("lmarena-ai/arena-hard-auto/data")


def write(root: Path, name: str, *rows: dict[str, Any]) -> None:
    file = root / FOLDER / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tasks(name: str, root: Path) -> list[Conversation]:
    entry, _ = benchmark(name)
    return list(entry.load()(TaskReading(name, entry, data_root=root)))


@pytest.fixture
def first(tmp_path: Path) -> list[Conversation]:
    asked = [
        {
            "question_id": f"q{place}",
            "category": "arena-hard-v0.1",
            "cluster": "x",
            "turns": [{"content": f"Ask {place}"}],
        }
        for place in range(3)
    ]
    told = [
        {
            "question_id": f"q{place}",
            "model_id": "gpt-4-0314",
            "choices": [{"index": 0, "turns": [{"content": "short"}]}],
        }
        for place in range(3)
    ]
    write(tmp_path, "arena-hard-v0.1/question", *asked)
    write(tmp_path, "arena-hard-v0.1/model_answer/gpt-4-0314", *told)
    return tasks("arena-hard", tmp_path)


@pytest.fixture
def judge() -> Iterator[Endpoint]:
    """Prefers the longer answer, much where it is twice as long, and says nothing on answers with 'mute'."""

    def reply(_: int, question: str) -> str:
        a, b = (question.partition(f"assistant {each}]\n")[2].partition(f"\n[End of {each}")[0] for each in "AB")
        if "mute" in a:
            return "I cannot say."
        sign = "=" if len(a) == len(b) else ">" if len(a) > len(b) else "<"
        much = max(len(a), len(b)) >= 2 * min(len(a), len(b)) and sign != "="
        label = {"=": "A=B", ">": "A>>B" if much else "A>B", "<": "B>>A" if much else "B>A"}[sign]
        return f"Own answer first. [[B>>A]] was my first thought. My verdict: [[{label}]]"

    server = Endpoint(reply)
    yield server
    server.close()


def samples(tasks: list[Conversation], *answers: str) -> list[Sample]:
    return [Sample(task.messages, Answer(text), task.task or {}) for task, text in zip(tasks, answers)]


def config(judge: Endpoint, **more: Any) -> Judge:
    return Judge.model_validate({"url": judge.url, "model": "stub", "retries": 1} | more)


def test_both_versions_are_read(first: list[Conversation], tmp_path: Path) -> None:
    assert [task.id for task in first] == ["q0", "q1", "q2"] and first[0].messages[0].content == "Ask 0"
    assert first[0].task == {"kind": "arena", "baseline": "short", "baseline_of": "gpt-4-0314"}
    asked = [
        {"uid": "a", "category": "hard_prompt", "prompt": "Do"},
        {"uid": "b", "category": "creative_writing", "prompt": "Sing"},
    ]
    write(tmp_path, "arena-hard-v2.0/question", *asked)
    for model in ("o3-mini-2025-01-31", "gemini-2.0-flash-001"):
        told = [{"uid": uid, "model": model, "messages": [{"role": "user", "content": "Do"},
                 {"role": "assistant", "content": {"answer": f"{model} {uid}"}}]} for uid in "ab"]  # fmt: skip
        write(tmp_path, f"arena-hard-v2.0/model_answer/{model}", *told)
    one, two = tasks("arena-hard-v2", tmp_path)
    assert one.task and two.task
    assert one.task["baseline"] == "o3-mini-2025-01-31 a" and two.task["baseline"] == "gemini-2.0-flash-001 b"
    write(tmp_path, "arena-hard-v2.0/question", *asked, {"uid": "c", "category": "hard_prompt", "prompt": "?"})
    with pytest.raises(DataError, match="o3-mini-2025-01-31 has not answered c"):
        tasks("arena-hard-v2", tmp_path)


def test_both_orders_are_asked_and_clear_wins_count_three_times(first: list[Conversation], judge: Endpoint) -> None:
    reward = make_reward({"arena": 1.0}, judge=config(judge))
    scores = reward.score(samples(first, "much longer than it", "short", "shorter"))
    assert scores == [1.0, 0.5, 1.0] and [score.games for score in scores] == [(2, 2), (0, 0), (1, 1)]
    assert len(judge.asked) == 5 and judge.asked[0]["max_tokens"] == 4096 and judge.asked[0]["temperature"] == 0
    assert reward.score(samples(first[:1], " ")) == [0.0] and len(judge.asked) == 5, "blank answers lose unasked"
    assert win_rate((2, -1)) == pytest.approx(3 / 4) and win_rate((1, 0)) == pytest.approx(3 / 4)


def test_a_judge_without_verdicts_is_counted_not_guessed(first: list[Conversation], judge: Endpoint) -> None:
    reward = make_reward({"arena": 1.0}, judge=config(judge))
    half, whole = reward.score(samples(first, "mute but long enough", "longer {braces}"))
    assert half.reason == "the judge gave one verdict of two" and half.games == (2,) and half == 1.0
    assert whole.games == (2, 2) and whole.reason == ""
    none = ArenaScore((), "the judge gave no verdict")
    assert none == 0.5 and figures(first[:2], samples(first, "a", "b"), [none, whole])["win_rate"].n == 1


def test_what_a_recipe_may_say_of_the_judge(judge: Endpoint) -> None:
    with pytest.raises(ConfigError, match="leave the rubric out"):
        make_reward({"arena": 1.0}, judge=config(judge, rubric="{conversation} {answer}"))
    with pytest.raises(ConfigError, match="'arena' needs an endpoint"):
        make_reward({"arena": 1.0})
    assert Suite(benchmark="arena-hard", judge=config(judge)).scored_by == {"arena": 1.0}


@pytest.mark.parametrize(
    ("reply", "value"),
    [("[[A>>B]]", 2), ("x [[ A > B ]]", 1), ("[[A=B]] no: [[B>A]]", -1), ("[[B>>A]].", -2), ("A>B", None), ("", None)],
)
def test_verdicts(reply: str, value: float | None) -> None:
    assert verdict(reply) == value


def test_a_win_by_length_alone_is_none_at_equal_length() -> None:
    generator = random.Random(0)
    texts = ["word " * generator.randrange(5, 200) for _ in range(300)]
    conversations = [Conversation((), id=str(place)) for place in range(len(texts))]
    many = [Sample((), Answer(text), {"baseline": "word " * 60}) for text in texts]

    def scores(by_length: float, better: float) -> list[ArenaScore]:
        made = []
        for text in texts:
            odds = by_length * (len(text.split()) - 60) / (len(text.split()) + 60) + better
            made.append(ArenaScore([1.0 if generator.random() < 1 / (1 + 2.718**-odds) else -1.0 for _ in "ab"]))
        return made

    long = figures(conversations, many, scores(6.0, 0.0))
    assert long["win_rate"].value > 0.6 and abs(long["length_controlled"].value - 0.5) < 0.07
    good = figures(conversations, many, scores(0.0, 1.5))
    assert good["length_controlled"].low > 0.7 and abs(good["win_rate"].value - good["style_controlled"].value) < 0.05
    assert good["style_controlled"].low <= good["style_controlled"].value <= good["style_controlled"].high


def test_separable_games_have_a_finite_answer() -> None:
    assert 0.5 < controlled([(2.0, 2.0)] * 5, [(0.5, 0.0)] * 5) < 1.0
    assert controlled([(0.0, 0.0)] * 5, [(0.5, 0.0)] * 5) == pytest.approx(0.5)
