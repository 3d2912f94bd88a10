"""Suites, budget curves and the evaluate stage with the miniature base model and the real engine, rewards and data."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nanoalign.common.errors import ConfigError
from nanoalign.common.intervals import Estimate
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Message
from nanoalign.evaluation import stage
from nanoalign.evaluation.budget_curve import accuracy_series, budget_curve, curve_table, run_budget_curve
from nanoalign.evaluation.config import EvaluateStage, Suite
from nanoalign.evaluation.suites import Tasks, evaluate, load_suite, make_scorer, prompt_messages, suite_reward
from nanoalign.models.loading import load_tokenizer, resolve
from nanoalign.rollouts import open_engine
from nanoalign.rollouts.base import Mode
from nanoalign.rollouts.config import Rollouts

CHAT = chat_format("nemotron-nano-v2")
MODEL = resolve("builtin:miniature-base")
ROLLOUTS = Rollouts.model_validate({"max_tokens": 48, "grace": 4, "temperature": 0.0, "batch_size": 32})
TESTS = {"miniature:math": {"samples": 12, "split": "test"}, "miniature:logic": {"samples": 6, "split": "test"}}
MIXTURES = {
    "tests": Mixture.model_validate({"sources": TESTS}),
    "lessons": Mixture.model_validate({"sources": {"miniature:math": 10}}),
}
SUITES = {"reasoning": Suite(data="tests"), "office": Suite(environment="miniature-workplace", samples=3, max_turns=2)}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(MODEL)


@pytest.fixture(scope="module")
def engine(tokenizer: Any) -> Any:
    return open_engine("hf", MODEL, tokenizer, CHAT, batch_size=32, device="cpu")


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    return load_suite("reasoning", SUITES["reasoning"], MIXTURES, None, 0)


def test_a_suite_is_the_same_each_time_and_never_training_data(tasks: Tasks) -> None:
    assert len(tasks) == 18
    again = load_suite("reasoning", SUITES["reasoning"], MIXTURES, None, 0)
    assert again.conversations == tasks.conversations
    assert len(load_suite("reasoning", Suite(data="tests", samples=5), MIXTURES, None, 0)) == 5
    with pytest.raises(ConfigError, match="miniature:math is training data"):
        load_suite("reasoning", Suite(data="lessons"), MIXTURES, None, 0)
    with pytest.raises(ConfigError, match="unknown mixture 'tset'"):
        load_suite("reasoning", Suite(data="tset"), MIXTURES, None, 0)


def test_modes_are_asked_for_as_a_user_would(tasks: Tasks) -> None:
    messages = (Message("system", "Be brief. /think"), Message("user", "What is 3 + 4? /think"))
    off = prompt_messages(messages, Mode(False))
    assert [message.content for message in off] == ["Be brief.", "What is 3 + 4? /no_think"]
    assert CHAT.prompt(off).endswith("<think></think>")
    assert CHAT.prompt(prompt_messages(off, Mode(True))).endswith("<think>\n")


def test_results_count_what_the_completions_say(engine: Any, tokenizer: Any, tasks: Tasks) -> None:
    reward = suite_reward(tasks.config, {}, "cpu")
    on = evaluate(engine, CHAT, tokenizer, tasks, Mode(True), reward, ROLLOUTS)
    tight = evaluate(engine, CHAT, tokenizer, tasks, Mode(True, 6), reward, ROLLOUTS)
    off = evaluate(engine, CHAT, tokenizer, tasks, Mode(False), reward, ROLLOUTS)
    for result in (on, tight, off):
        assert len(result.scores) == len(result.readings) == result.score.n == 18
        assert result.score.value == sum(score >= 0.5 for score in result.scores) / 18
        assert {domain: each.n for domain, each in result.by_domain.items()} == {"math": 12, "logic": 6}
        assert json.loads(json.dumps(result.as_dict(), allow_nan=False)) == result.as_dict()
    assert [each.prompt for each in on.readings] == [each.prompt for each in tight.readings]
    assert all(each.prompt.endswith("<think></think>") for each in off.readings)
    assert all(each.overshoot <= 4 + len(tokenizer.encode("</think>")) and each.closed for each in tight.readings)
    assert tight.budget["cut"].value > 0.5
    assert {each.budget for each in tight.readings} == {6} and off.budget["obedience"].n == 18
    curve = budget_curve([tight], on, off)
    assert [point.result for point in curve.points] == [tight, on]
    figures = curve.figures()
    assert figures["budget_6.accuracy"] == tight.score and figures["budget_unlimited.accuracy"] == on.score
    pairs = sum(cut.cut and free.close_tags > 0 for cut, free in zip(tight.readings, on.readings))
    assert figures["budget_6.compensation"].n == pairs
    assert [row["budget"] for row in curve_table(curve)] == ["6", "unlimited", "/no_think"]


def test_a_budget_kept_by_the_rule_by_a_hard_cut_and_not_at_all(engine: Any, tokenizer: Any, tasks: Tasks) -> None:
    reward = suite_reward(tasks.config, {}, "cpu")
    close = len(tokenizer.encode("</think>"))
    on, off = (evaluate(engine, CHAT, tokenizer, tasks, Mode(thinking), reward, ROLLOUTS) for thinking in (True, False))
    ruled = evaluate(engine, CHAT, tokenizer, tasks, Mode(True, 6), reward, ROLLOUTS)
    hard = evaluate(engine, CHAT, tokenizer, tasks, Mode(True, 6), reward, ROLLOUTS, enforcement="hard")
    free = evaluate(engine, CHAT, tokenizer, tasks, Mode(True, 6), reward, ROLLOUTS, enforcement="none", ruled=ruled)
    assert max(each.overshoot for each in hard.readings) == close < max(each.overshoot for each in ruled.readings)
    for cut, whole, kept in zip(free.readings, on.readings, ruled.readings):
        assert cut.tokens <= kept.tokens and (whole.reasoning + whole.answer).startswith(cut.reasoning.rstrip("�"))
    assert not free.budget["closed"].value and not free.budget["cut"].value
    curve = budget_curve([free, ruled, hard], on, off)
    assert [point.result for point in curve.points] == [ruled, on]
    assert curve.figures()["budget_6_hard.accuracy"] == hard.score
    assert [row["budget"] for row in curve_table(curve)][:4] == ["6", "unlimited", "6, not enforced", "6, hard cut"]
    series, ticks = accuracy_series(curve)
    assert ticks == ["6", "∞"] and series["hard cut"][0][:2] == (0, 100 * hard.score.value)
    with pytest.raises(ConfigError, match="needs single answers"):
        evaluate(engine, CHAT, tokenizer, tasks, Mode(True, 6), reward, ROLLOUTS, enforcement="none")


def test_the_same_seed_gives_the_same_result(engine: Any, tokenizer: Any, tasks: Tasks) -> None:
    reward = suite_reward(tasks.config, {}, "cpu")
    sampled = Rollouts.model_validate({"max_tokens": 16, "temperature": 1.0})
    first, again, other = (
        evaluate(engine, CHAT, tokenizer, tasks, Mode(True), reward, sampled, seed) for seed in (1, 1, 2)
    )
    assert first == again and first.readings != other.readings


def test_a_scorer_for_merge_sweeps(engine: Any, tokenizer: Any, tasks: Tasks) -> None:
    rewards = {"reasoning": suite_reward(tasks.config, {}, "cpu")}
    score = make_scorer({"reasoning": tasks}, rewards, CHAT, tokenizer, ROLLOUTS)("reasoning", engine, Mode(True))
    assert isinstance(score, Estimate) and score.n == 18


def test_the_stage_writes_every_checkpoint_and_returns_flat_figures(tmp_path: Path) -> None:
    config = EvaluateStage(
        kind="evaluate", of=["base", "same"], suites=["office"], budget_suite="reasoning", budgets=[0, 8, None],
        rollouts=ROLLOUTS,
    )  # fmt: skip
    context = StageContext(
        "verdict", tmp_path, {"base": MODEL, "same": MODEL}, CHAT.name, 0, None, "cpu", log=StageLog(tmp_path)
    )
    figures = stage.run(config, MIXTURES, context, SUITES)
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["tasks"] == {"office": 3, "reasoning": 18}
    for name in config.of:
        points = report["checkpoints"][name]["budget_curve"]["points"]
        assert [point["budget"] for point in points] == [0, 8, None]
        assert figures[f"{name}.reasoning.on"] == points[-1]["score"] == figures[f"{name}.budget_unlimited.accuracy"]
        assert figures[f"{name}.office.off"] == report["checkpoints"][name]["suites"]["office"]["off"]["score"]
        assert points[0]["thinking_tokens"]["value"] == points[0]["overshoot"]["value"] > 0, "the close alone"
        assert {f"{name}.obedience", f"{name}.budget_8.well_formed", f"{name}.no_think.accuracy"} <= figures.keys()
    assert {k[5:]: v for k, v in figures.items() if k.startswith("base.")} == {
        k[5:]: v for k, v in figures.items() if k.startswith("same.")
    }
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, 13)) and metrics[-1]["total_steps"] == 12
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {row["mode"] for row in samples} == {"budget_unlimited", "no_think", "budget_0", "budget_8"}


def test_a_budget_curve_outside_a_recipe() -> None:
    few = Suite(data="tests", samples=4)
    curve = run_budget_curve(MODEL, few, MIXTURES, [4, None, 4], ROLLOUTS, CHAT.name, device="cpu")
    assert [point.result.mode.budget for point in curve.points] == [4, None]
    with pytest.raises(ConfigError, match="budget 44 with grace 4 does not fit"):
        run_budget_curve(MODEL, few, MIXTURES, [44], ROLLOUTS, CHAT.name)


def test_budgets_leave_room_for_an_answer() -> None:
    with pytest.raises(ValidationError, match="leave no room for an answer"):
        EvaluateStage(kind="evaluate", of=["base"], suites=["reasoning"], budgets=[44], rollouts=ROLLOUTS)
    for key in ("budgets", "suite_budgets"):
        with pytest.raises(ValidationError, match="greater than or equal to 0"):
            EvaluateStage(kind="evaluate", of=["base"], suites=["reasoning"], rollouts=ROLLOUTS, **{key: [-1]})
