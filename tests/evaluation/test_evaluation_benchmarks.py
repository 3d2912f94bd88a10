"""Public benchmarks: their table, their tasks from mirrored files, missing data, and how they are asked for by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.conversation import Answer, ToolCall
from nanoalign.evaluation.benchmark_data import missing
from nanoalign.evaluation.benchmarks import BENCHMARKS, benchmark, is_benchmark
from nanoalign.evaluation.config import EvaluateStage, Suite
from nanoalign.evaluation.tasks import load_suite, read_from, suite_reward
from nanoalign.recipe.load import RecipeError, dump, load
from nanoalign.reward.base import Sample
from nanoalign.reward.bfcl import score_bfcl
from nanoalign.reward.table import REWARDS

CHAT = chat_format("nemotron-nano-v2")


def mirror(root: Path, path: str, rows: list[dict[str, Any]]) -> Path:
    """JSON lines below a data root."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def tasks_of(name: str, root: Path, **more: Any) -> Any:
    return load_suite(name, Suite(benchmark=name, **more), {}, root, 0, CHAT).conversations


def test_every_entry_leads_to_its_code() -> None:
    for name, entry in BENCHMARKS.items():
        assert callable(entry.load()) and entry.about and entry.licence and entry.reward in REWARDS, name
        assert not entry.figures or callable(entry.further())
        assert is_benchmark(name.replace("<length>", "4096"))
        assert all(files.startswith(data.hub) for data in entry.data for files in data.files[-1:])


def test_an_unknown_name_gets_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean `math500`"):
        benchmark("math50")
    with pytest.raises(ValueError, match="did you mean `aime25`"):
        Suite(benchmark="aime2025")
    monkeypatch.setitem(BENCHMARKS, "long-<length>", BENCHMARKS["ifeval"])
    assert [benchmark(f"long-{text}")[1] for text in ("4096", "128k")] == [4096, 131072]
    assert not any(map(is_benchmark, ("long", "long-", "long-<length>", "long-0", "long-12m", "ifeval-4096")))


def test_a_benchmark_is_scored_by_its_own_rule() -> None:
    assert Suite(benchmark="ifeval").scored_by == {"ifeval": 1.0}
    with pytest.raises(ValueError, match="scored by its own rule"):
        Suite(benchmark="ifeval", reward={"instruction": 1.0})
    with pytest.raises(ValueError, match="exactly one of"):
        Suite(benchmark="ifeval", data="tests")
    with pytest.raises(ValueError, match="takes no `judge`"):
        Suite(benchmark="ifeval", judge={"url": "http://localhost", "model": "x"})
    with pytest.raises(ValueError, match="episodes are played once"):
        Suite(environment="miniature-workplace", completions=2)


def test_mathematics(tmp_path: Path) -> None:
    rows = [{"problem": " What is 3 + 4? ", "answer": "7", "subject": "Algebra", "unique_id": "a/1"},
            {"problem": "And 2 + 2?", "answer": 4}]  # fmt: skip
    mirror(tmp_path, "HuggingFaceH4/MATH-500/test.jsonl", rows)
    first, second = tasks_of("math500", tmp_path)
    assert first.messages[0].content.endswith("\\boxed{}.\n\nWhat is 3 + 4?")
    assert (first.id, first.domain, first.task) == ("a/1", "Algebra", {"kind": "math", "answer": "7"})
    assert (second.id, second.domain, second.task["answer"]) == ("1", "math500", "4")
    assert len(tasks_of("math500", tmp_path, samples=1)) == 1
    reward = suite_reward(Suite(benchmark="math500"), {}, "cpu")
    assert reward.score([Sample((), Answer("So \\boxed{7.0}"), first.task), Sample((), Answer("8"), first.task)]) == [
        1,
        0,
    ]


def test_a_row_of_another_layout_is_an_error_with_its_place(tmp_path: Path) -> None:
    file = mirror(tmp_path, "HuggingFaceH4/MATH-500/test.jsonl", [{"problem": "x", "answer": "1"}, {"question": "y"}])
    with pytest.raises(DataError, match=rf"{file}:2: benchmark math500: not a row of it.*problem"):
        tasks_of("math500", tmp_path)


def test_missing_data_say_where_they_were_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError) as caught:
        tasks_of("math500", tmp_path)
    said = str(caught.value)
    assert "HuggingFaceH4/MATH-500/test.jsonl was looked for" in said and "no network" in said
    assert f"--local-dir {tmp_path}/HuggingFaceH4/MATH-500" in said
    with pytest.raises(DataError, match=r"pip install --no-deps --target .*bfcl-eval"):
        tasks_of("bfcl", tmp_path)
    assert "bfcl_v4/BFCL_v4_" in (missing("bfcl", BENCHMARKS["bfcl"], tmp_path) or "")
    assert missing("math500", BENCHMARKS["math500"], tmp_path) is None  # the hub may have it


def test_rows_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    asked = []

    def load_dataset(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        asked.append((args, kwargs))
        return [{"problem": "1 + 1?", "answer": "2", "subject": None, "unique_id": "u"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    [task] = tasks_of("aime25", tmp_path)
    pinned = BENCHMARKS["aime25"].data[0].revision
    assert asked == [(("math-ai/aime25", None), {"split": "test", "revision": pinned})]
    assert task.origin == "hub:math-ai/aime25/test:1" and task.id == "u"
    suite, other = Suite(benchmark="aime25"), Suite(benchmark="aime25", revision="a" * 40)
    assert read_from(suite, tmp_path) == [{"hub": "math-ai/aime25", "split": "test", "revision": pinned}]
    load_suite("aime25", other, {}, tmp_path, 0)
    assert asked[1][1]["revision"] == read_from(other, tmp_path)[0]["revision"] == "a" * 40
    mirrored = tmp_path / "math-ai" / "aime25" / "test.jsonl"
    mirrored.parent.mkdir(parents=True)
    mirrored.write_bytes(b"{}")
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert read_from(suite, tmp_path) == [{"file": "math-ai/aime25/test.jsonl", "sha256": digest}]


def test_lengths_and_revisions_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="unknown benchmark `ruler`: give a length in tokens, as in ruler-128k"):
        benchmark("ruler")
    for wrong in ({"benchmark": "bfcl", "revision": "main"}, {"data": "x", "revision": "main"},
                  {"benchmark": "bfcl-multi-turn", "completions": 2}):  # fmt: skip
        with pytest.raises(ValidationError):
            Suite.model_validate(wrong)


def test_gpqa_shuffles_its_options_by_the_record_alone(tmp_path: Path) -> None:
    header = (
        "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3,High-level domain"
    )
    rows = [f"rec{i},Which?,right{i},w1,w2,w3,Physics" for i in range(12)]
    file = tmp_path / "Idavidrein/gpqa/gpqa_diamond.csv"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join([header, *rows]) + "\n")
    tasks = tasks_of("gpqa-diamond", tmp_path)
    for number, task in enumerate(tasks):
        assert f"{task.task['answer']}) right{number}" in task.messages[0].content and task.domain == "Physics"
    assert len({task.task["answer"] for task in tasks}) > 2
    assert tasks == tasks_of("gpqa-diamond", tmp_path)


def test_ifeval_by_the_published_rule(tmp_path: Path) -> None:
    row = {
        "key": 7,
        "prompt": "Say hi without commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    mirror(tmp_path, "google/IFEval/ifeval_input_data.jsonl", [row])
    [task] = tasks_of("ifeval", tmp_path)
    assert task.id == "7" and task.messages[0].content == row["prompt"]
    reward = suite_reward(Suite(benchmark="ifeval"), {}, "cpu")
    quoting = Sample(task.messages, Answer("Say hi without commas."), task.task)  # as a training reward: 0
    assert reward.score([quoting, Sample(task.messages, Answer("a, b"), task.task)]) == [1.0, 0.0]


FUNCTION = {
    "name": "area", "description": "d",
    "parameters": {
        "type": "dict", "required": ["side"],
        "properties": {
            "side": {"type": "float"}, "unit": {"type": "string"}, "n": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "box": {"type": "dict"}, "boxes": {"type": "array", "items": {"type": "dict"}},
        },
    },
}  # fmt: skip
POSSIBLE = [{"area": {
    "side": [5.0], "unit": ["", "square meters"], "n": ["", 2], "tags": ["", ["a b"]],
    "box": ["", {"w": [1], "h": ["", 2]}], "boxes": ["", [{"w": [1]}]],
}}]  # fmt: skip


@pytest.mark.parametrize(("arguments", "right"), [
    ({"side": 5}, True), ({"side": 5.0, "unit": "Square-Meters"}, True), ({}, False), ({"side": "5"}, False),
    ({"side": 5, "n": 2}, True), ({"side": 5, "n": 2.0}, False), ({"side": 5, "n": True}, False),
    ({"side": 5, "more": 1}, False), ({"side": 5, "tags": ["A.B"]}, True), ({"side": 5, "tags": "a b"}, False),
    ({"side": 5, "tags": []}, True), ({"side": 5, "box": {"w": 1}}, True),
    ({"side": 5, "box": {"w": 1, "x": 1}}, False), ({"side": 5, "box": {"h": 2}}, False),
    ({"side": 10**400}, False), ({"side": 5, "boxes": [{"w": 1}]}, True), ({"side": 5, "boxes": [1]}, False),
])  # fmt: skip
def test_bfcl_as_its_checker_has_it(arguments: dict[str, Any], right: bool) -> None:
    task = {"kind": "bfcl", "category": "simple_python", "functions": [FUNCTION], "possible": POSSIBLE}
    assert score_bfcl(Sample((), Answer("", tool_calls=(ToolCall("area", arguments),)), task)) == float(right)


def test_bfcl_counts_orders_and_wants_no_call_where_none_serves() -> None:
    two = [{"area": {"side": [1]}}, {"area": {"side": [2]}}]
    task = {"kind": "bfcl", "category": "parallel", "functions": [FUNCTION], "possible": two}

    def score(*sides: int, **other: Any) -> float:
        calls = tuple(ToolCall("area", {"side": side}) for side in sides)
        return score_bfcl(Sample((), Answer("", tool_calls=calls), task | other))

    assert [score(1, 2), score(2, 1), score(1, 1), score(1), score(1, 2, 2)] == [1, 1, 0, 0, 0]
    assert [score(category="irrelevance"), score(1, category="live_irrelevance")] == [1, 0]
    assert [score(category="live_relevance"), score(1, category="live_relevance")] == [0, 1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["w", "h", "x"]), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(list(FUNCTION["parameters"]["properties"])), JSON, max_size=4))  # type: ignore[index]
def test_bfcl_scores_whatever_a_model_calls(arguments: dict[str, Any]) -> None:
    task = {"kind": "bfcl", "category": "simple_python", "functions": [FUNCTION], "possible": POSSIBLE}
    assert score_bfcl(Sample((), Answer("", tool_calls=(ToolCall("area", arguments),)), task)) in (0.0, 1.0)


def test_bfcl_from_files(tmp_path: Path) -> None:
    row = {"id": "simple_python_0", "question": [[{"role": "user", "content": "Area?"}]], "function": [FUNCTION]}
    mirror(tmp_path, "bfcl_v4/BFCL_v4_simple_python.json", [row])
    with pytest.raises(DataError, match="no possible answer"):
        tasks_of("bfcl", tmp_path)
    mirror(
        tmp_path, "bfcl_v4/possible_answer/BFCL_v4_simple_python.json", [{"id": row["id"], "ground_truth": POSSIBLE}]
    )
    mirror(tmp_path, "bfcl_v4/BFCL_v4_irrelevance.json", [row | {"id": "irrelevance_0"}])
    mirror(tmp_path, "bfcl_v4/BFCL_v4_multi_turn_base.json", [{"id": "multi_turn_base_0"}])
    first, second = tasks_of("bfcl", tmp_path)
    assert [first.domain, second.domain] == ["simple_python", "irrelevance"] and first.tools[0]["name"] == "area"
    assert first.task["possible"] == POSSIBLE and second.task["possible"] == []


RECIPE = """
name: small
seed: 0
model: builtin:miniature-base
chat: nemotron-nano-v2
suites:
  mine: {{benchmark: ifeval, samples: 2}}
stages:
  look: {{kind: evaluate, of: [base], suites: [{suites}], rollouts: {{max_tokens: 64, grace: 4}}}}
"""


def test_a_stage_names_a_benchmark_in_place_of_a_suite(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(RECIPE.format(suites="mine, math500"))
    recipe = load(str(file))
    assert recipe.suites == {"mine": Suite(benchmark="ifeval", samples=2), "math500": Suite(benchmark="math500")}
    (tmp_path / "again.yaml").write_text(dump(recipe))
    assert load(str(tmp_path / "again.yaml")) == recipe
    file.write_text(RECIPE.format(suites="aime2"))
    with pytest.raises(RecipeError, match=r"small.yaml:9.*unknown suite `aime2`; did you mean `aime2"):
        load(str(file))
    file.write_text(RECIPE.format(suites="bfcl"))
    load(str(file))
    with pytest.raises(RecipeError, match="benchmark bfcl: mirror it below"):
        load(str(file), data_root=tmp_path, check_files=True)


def test_budgets_of_suites_leave_room_for_an_answer() -> None:
    with pytest.raises(ValueError, match="leave no room"):
        EvaluateStage.model_validate({
            "kind": "evaluate", "of": ["base"], "suites": ["ifeval"], "suite_budgets": [64],
            "rollouts": {"max_tokens": 64},
        })  # fmt: skip
