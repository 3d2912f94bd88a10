"""Several answers a task, records, going on after a crash, contamination, comparing, and the commands around them."""

import json
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.common.errors import ConfigError, DataError
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.config import Mixture
from nanoalign.evaluation.command import Question, modes_of, named, room, run, table
from nanoalign.evaluation.compare import compare
from nanoalign.evaluation.config import Suite
from nanoalign.evaluation.contamination import clean_score, look
from nanoalign.evaluation.records import Kept, label, read_records, task_names, write_records
from nanoalign.evaluation.result import pass_at, pass_rate
from nanoalign.evaluation.suites import Job, evaluate, evaluate_all, load_suite, suite_reward
from nanoalign.evaluation.tasks import Tasks
from nanoalign.models.loading import load_tokenizer, resolve
from nanoalign.rollouts import open_engine
from nanoalign.rollouts.base import Completion, Mode, Request, Sampling
from nanoalign.rollouts.config import Rollouts
from nanoalign.rollouts.restarts import RestartingEngine

CHAT = chat_format("nemotron-nano-v2")
MODEL = resolve("builtin:miniature-base")
ROLLOUTS = Rollouts.model_validate({"max_tokens": 24, "grace": 2, "temperature": 1.0, "batch_size": 4})
MIXTURES = {
    "tests": Mixture.model_validate({"sources": {"miniature:math": {"samples": 5, "split": "test"}}}),
    "lessons": Mixture.model_validate({"sources": {"miniature:math": 10}}),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(MODEL)


@pytest.fixture(scope="module")
def engine(tokenizer: Any) -> Any:
    return open_engine("hf", MODEL, tokenizer, CHAT, batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    return load_suite("sums", Suite(data="tests", completions=3), MIXTURES, None, 0)


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_correct_one(n: int, data: Any) -> None:
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(combinations([True] * correct + [False] * (n - correct), k))
    assert math.isclose(pass_rate(n, correct, k), sum(map(any, draws)) / len(draws), abs_tol=1e-12)


def test_pass_at_powers_of_two_and_all() -> None:
    found = pass_at([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], 6)
    assert list(found) == [1, 2, 4, 6]
    assert math.isclose(found[1].value, 1 / 6) and found[6].value == 0.5 and found[6].n == 2
    assert pass_at([1, 0], 1) == {}


def test_several_answers_a_task(engine: Any, tokenizer: Any, tasks: Tasks, tmp_path: Path) -> None:
    reward = suite_reward(tasks.config, {}, "cpu")
    result = evaluate(engine, CHAT, tokenizer, tasks, Mode(True), reward, ROLLOUTS, folder=tmp_path)
    assert len(result.scores) == 15 and result.score.n == 5 and result.completions == 3
    assert math.isclose(result.score.value, sum(score >= 0.5 for score in result.scores) / 15)
    assert math.isclose(result.pass_at[1].value, result.score.value) and list(result.pass_at) == [1, 2, 3]
    assert len({reading.reasoning + reading.answer for reading in result.readings[:3]}) > 1
    assert result.as_dict()["pass_at"]["3"]["n"] == 5
    rows = read_records(tmp_path / "sums.think.jsonl")
    assert [(row["number"], row["score"]) for row in rows] == [
        (place % 3, score) for place, score in enumerate(result.scores)
    ]
    assert len({row["task"] for row in rows}) == 5 and all(row["question"] for row in rows)


class Stopping:
    """An engine that dies after some completions, as often as it is told."""

    def __init__(self, engine: Any, after: int, times: int = 1) -> None:
        self.engine, self.after, self.times, self.max_length, self.lost = engine, after, times, None, 0
        self.asked: list[int] = []

    def generate(self, requests: Sequence[Request], done: Any = None) -> list[Completion]:
        self.asked.append(len(requests))
        if done is None or not self.times:
            return self.engine.generate(requests, done)
        for place, completion in enumerate(self.engine.generate(requests[: self.after])):
            done(place, completion)
        self.times -= 1
        raise KeyboardInterrupt


def test_a_stopped_suite_goes_on_after_what_had_ended(
    engine: Any, tokenizer: Any, tasks: Tasks, tmp_path: Path
) -> None:
    reward = suite_reward(tasks.config, {}, "cpu")
    jobs = [Job(tasks, mode, reward, ROLLOUTS) for mode in (Mode(True, 4), Mode(False))]
    whole = evaluate_all(engine, CHAT, tokenizer, jobs, folder=tmp_path / "whole")
    stopping = Stopping(engine, after=7)
    with pytest.raises(KeyboardInterrupt):
        evaluate_all(stopping, CHAT, tokenizer, jobs, folder=tmp_path / "parts")
    with next((tmp_path / "parts").glob("*.completions.jsonl")).open("a") as file:
        file.write('{"request": "cut off in the mid')  # as a killed process leaves it
    parts = evaluate_all(stopping, CHAT, tokenizer, jobs, folder=tmp_path / "parts")
    assert stopping.asked == [30, 23]
    assert [result.scores for result in parts] == [result.scores for result in whole]
    assert [result.readings for result in parts] == [result.readings for result in whole]
    again = evaluate_all(stopping, CHAT, tokenizer, jobs, folder=tmp_path / "parts")
    assert stopping.asked == [30, 23] and [each.scores for each in again] == [each.scores for each in whole]
    assert (tmp_path / "parts/sums.think@4.jsonl").read_text() == (tmp_path / "whole/sums.think@4.jsonl").read_text()
    evaluate_all(stopping, CHAT, tokenizer, jobs[:1], seed=1, folder=tmp_path / "parts")
    assert stopping.asked[-1] == 15  # other questions are not answered by what was kept


def test_what_was_kept_is_read_back_whole(tmp_path: Path) -> None:
    request = Request((1, 2), Sampling(4, thinking_budget=2, seed=3))
    kept = Kept(tmp_path / "a/x.jsonl")
    kept.keep(request, Completion((5, 6, 7), (0.0, 0.0, 0.0), (False, True, False), "length"))
    kept.close()
    assert Kept(tmp_path / "a/x.jsonl").find(request) == Completion((5, 6, 7), (), (False, True, False), "length")
    assert Kept(tmp_path / "a/x.jsonl").find(Request((1, 2), Sampling(5, thinking_budget=2, seed=3))) is None


def test_a_lost_engine_is_not_asked_again_for_what_had_ended(engine: Any, tokenizer: Any) -> None:
    from nanoalign.rollouts.base import EngineLostError

    class Losing(Stopping):
        def generate(self, requests: Sequence[Request], done: Any = None) -> list[Completion]:
            try:
                return super().generate(requests, done)
            except KeyboardInterrupt:
                raise EngineLostError("gone") from None

    losing = Losing(engine, after=2)
    losing.close = lambda: None  # type: ignore[attr-defined]
    ids = tuple(tokenizer.encode("3 + 4", add_special_tokens=False))
    requests = [Request(ids, Sampling(4, seed=seed)) for seed in range(5)]
    told: dict[int, Completion] = {}
    with pytest.warns(UserWarning):
        completions = RestartingEngine(lambda: losing, 1).generate(requests, told.__setitem__)
    assert losing.asked == [5, 3] and completions == engine.generate(requests)
    assert [told[place] for place in range(5)] == completions


def test_names_of_tasks_and_modes() -> None:
    assert task_names(["a", "", "a", "b"]) == ["a", "#1", "a#2", "b"]
    assert [label(mode) for mode in (Mode(True), Mode(True, 8), Mode(False))] == ["think", "think@8", "no_think"]
    assert modes_of(["think", "no_think"], [8, None]) == [Mode(True, 8), Mode(True), Mode(False)]
    with pytest.raises(ConfigError, match="did you mean `no_think`"):
        modes_of(["nothink"], [])
    assert named(["a/x", "b/x", "c/y"]) == {"a-x": "a/x", "b-x": "b/x", "y": "c/y"}
    assert named(["runs/mine/merged/model/"]) == {"mine-merged": "runs/mine/merged/model/"}
    assert named(["./model", "../model"]) == {"model": "./model", "model-other": "../model"}


def test_room_for_an_answer() -> None:
    suite = Suite(benchmark="ifeval")
    assert room(suite, Mode(True), 500, None, None) == 32768 and room(suite, Mode(True), 500, None, 8192) == 4096
    assert room(suite, Mode(True, 1000), 500, None, None) == 5596 and room(suite, Mode(False), 500, None, None) == 4096
    assert room(suite, Mode(True), 500, 77, 10) == 77


def ifeval_rows(root: Path, count: int) -> None:
    (root / "ifeval").mkdir(exist_ok=True)
    rows = [
        {"key": key, "prompt": f"Write about number {key}, at length, for the fourth time, if you may. No commas.",
         "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for key in range(count)
    ]  # fmt: skip
    (root / "ifeval/input_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_questions_in_the_training_data_are_found(tmp_path: Path) -> None:
    ifeval_rows(tmp_path, 6)
    lines = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]}
        for text in ("He said: write about number 3, at length, for the fourth time, if you may!", "something else")
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mixtures = {"train": Mixture.model_validate({"sources": {f"file:{file}": 2, "miniature:math": 3}}), **MIXTURES}
    tasks = load_suite("ifeval", Suite(benchmark="ifeval"), {}, tmp_path, 0)
    [found] = look([tasks], mixtures, tmp_path).values()
    assert found.as_dict() == {"tasks": 6, "met": 1, "names": ["3"], "sources": {f"file:{file}": 1}}
    assert look([load_suite("sums", Suite(data="tests"), MIXTURES, None, 0)], mixtures, tmp_path) == {}

    class Result:
        scores, completions = (1.0, 1.0, 0.0, 1.0, 0.0, 0.0), 1

    assert clean_score(Result(), found).value == 0.4  # type: ignore[arg-type]


def records(folder: Path, scores: dict[str, list[float]], question: str = "q") -> None:
    rows = [
        {"task": task, "number": number, "score": score, "question": f"{question}{task}"}
        for task, each in scores.items()
        for number, score in enumerate(each)
    ]
    write_records(folder / "aime25.think.jsonl", rows)


def test_runs_are_compared_task_by_task(tmp_path: Path) -> None:
    records(tmp_path / "a/records/one", {"1": [1, 0], "2": [0, 0], "3": [1, 1], "4": [0, 0]})
    records(tmp_path / "b/records/two", {"1": [1, 1], "2": [0, 0], "3": [1, 0], "5": [1, 1]})
    [found] = compare(tmp_path / "a", tmp_path / "b")
    assert (found.a, found.b, found.suite, found.mode) == ("one", "two", "aime25", "think")
    assert (found.better, found.worse, found.left_out, found.difference.n) == (1, 1, 2, 3)
    assert [each.value for each in found.scores] == [0.5, 0.5] and found.difference.value == 0
    assert found.difference.high == -found.difference.low > 0
    [same] = compare(tmp_path / "a", tmp_path / "a/records/one")
    assert same.difference.low == same.difference.high == 0
    records(tmp_path / "c/records/two", {"1": [1, 1]}, question="other")
    with pytest.raises(DataError, match="different questions"):
        compare(tmp_path / "a", tmp_path / "c")
    records(tmp_path / "a/records/three", {"1": [1, 0]})
    with pytest.raises(ConfigError, match="name a checkpoint of each"):
        compare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ConfigError, match="no records"):
        compare(tmp_path / "a", Path(__file__).parent)


def test_the_commands(tmp_path: Path) -> None:
    ifeval_rows(tmp_path, 3)
    arguments = ["evaluate", "builtin:miniature-base", "--suite", "ifeval", "--max-tokens", "24", "--budget", "4,none",
                 "--grace", "2", "--data-root", str(tmp_path), "--samples", "2", "--completions", "2"]  # fmt: skip
    first = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "one")])
    assert first.exit_code == 0, first.output
    assert "think@4" in first.output and "no_think" in first.output
    report = json.loads((tmp_path / "one/evaluation.json").read_text())
    modes = report["models"]["builtin-miniature-base"]["suites"]["ifeval"]
    assert list(modes) == ["think@4", "think", "no_think"] and modes["think"]["more"]["prompt_loose"]["n"] == 4
    again = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "one"), "--json"])
    assert again.exit_code == 0 and json.loads(again.stdout)["models"] == report["models"]
    other = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "one"), "--seed", "1"])
    assert other.exit_code == 2 and "holds another evaluation" in other.output
    assert CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "two"), "--seed", "1"]).exit_code == 0
    compared = CliRunner().invoke(app, ["compare", str(tmp_path / "one"), str(tmp_path / "two"), "--json"])
    assert compared.exit_code == 0 and [row["difference"]["n"] for row in json.loads(compared.stdout)] == [2, 2, 2]
    unknown = CliRunner().invoke(app, ["evaluate", "builtin:miniature-base", "--suite", "ifevl"])
    assert unknown.exit_code == 2 and "did you mean `ifeval`" in unknown.output
    for empty in (["--suite", ","], ["--suite", "ifeval", "--modes", ""]):
        none = CliRunner().invoke(app, ["evaluate", "builtin:miniature-base", *empty])
        assert none.exit_code == 2 and "name at least one" in none.output
    shown = CliRunner().invoke(app, ["compare", str(tmp_path / "one"), str(tmp_path / "two")])
    assert "builtin-miniature-base" in shown.output and "…" not in shown.output


def test_a_table_of_an_evaluation(tmp_path: Path) -> None:
    ifeval_rows(tmp_path, 2)
    question = Question(
        {"mini": "builtin:miniature-base"}, {"ifeval": Suite(benchmark="ifeval", completions=2)}, [Mode(False)],
        Rollouts.model_validate({"max_tokens": 1}), 12, device="cpu", data_root=tmp_path,
        mixtures={"train": Mixture.model_validate({"sources": {f"file:{tmp_path / 'seen.jsonl'}": 1}})},
    )  # fmt: skip
    row = {"messages": [{"role": "user", "content": "Write about number 1, at length, for the fourth time, if you may"},
                        {"role": "assistant", "content": "No."}]}  # fmt: skip
    (tmp_path / "seen.jsonl").write_text(json.dumps(row) + "\n")
    report = run(question, tmp_path / "out")
    [shown] = table(report)
    assert shown["seen in training"] == "1 of 2" and "avg@2" in shown["score"] and "pass@2" in shown


def test_a_length_beyond_the_models_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanoalign.models import loading

    monkeypatch.setattr(loading, "describe_model", lambda spec: {"max_length": 400})
    question = Question(
        {"mini": "builtin:miniature-base"}, {"ruler-512": Suite(benchmark="ruler-512", samples=1)}, [Mode(False)],
        Rollouts.model_validate({"max_tokens": 1}), 4, device="cpu",
    )  # fmt: skip
    notes: list[str] = []
    run(question, tmp_path, notes.append)
    assert notes[0] == "NOTE: ruler-512 has 512 tokens, and mini is made for 400"


def test_the_stage_and_its_report(tmp_path: Path) -> None:
    from nanoalign.common.stage import StageContext, StageLog
    from nanoalign.evaluation import stage
    from nanoalign.evaluation.config import EvaluateStage
    from nanoalign.report import benchmarks

    ifeval_rows(tmp_path, 2)
    row = {"messages": [{"role": "user", "content": "Write about number 1, at length, for the fourth time, if you may"},
                        {"role": "assistant", "content": "No."}]}  # fmt: skip
    (tmp_path / "seen.jsonl").write_text(json.dumps(row) + "\n")
    config = EvaluateStage.model_validate({
        "kind": "evaluate", "of": ["base"], "suites": ["ifeval", "sums"], "suite_budgets": [4, 8, 4],
        "rollouts": {"max_tokens": 24, "grace": 2, "temperature": 0.0},
    })  # fmt: skip
    suites = {"ifeval": Suite(benchmark="ifeval", completions=2), "sums": Suite(data="tests")}
    mixtures = {**MIXTURES, "train": Mixture.model_validate({"sources": {f"file:{tmp_path / 'seen.jsonl'}": 1}})}
    context = StageContext("look", tmp_path / "look", {"base": MODEL}, "nemotron-nano-v2", 0, tmp_path, "cpu",
                           log=StageLog(tmp_path / "look"))  # fmt: skip
    figures = stage.run(config, mixtures, context, suites)
    for name in ("ifeval.on", "ifeval.budget_4", "ifeval.on.pass_at_2", "ifeval.off.prompt_loose", "sums.budget_8"):
        assert f"base.{name}" in figures
    assert figures["ifeval.contaminated"]["value"] == 0.5  # type: ignore[index]
    names = {path.name for path in (tmp_path / "look/records/base").glob("*.jsonl") if "completions" not in path.name}
    modes = ("think", "no_think", "think@4", "think@8")
    assert names == {f"{suite}.{mode}.jsonl" for suite in suites for mode in modes}
    result = json.loads((tmp_path / "look/evaluation.json").read_text())

    class Stage:
        pass

    Stage.result = result  # type: ignore[attr-defined]
    shown = {table.title: table for table in benchmarks.tables(Stage)}  # type: ignore[arg-type]
    assert "without tasks seen in training" in shown["ifeval: further figures"].head
    assert [cell.text for cell in shown["Tasks met in the training data, by 13 words in a row"].rows[0]][1] == "1 of 2"
    assert [plot.title for plot in benchmarks.curves(Stage)] == ["ifeval", "sums"]  # type: ignore[arg-type]
