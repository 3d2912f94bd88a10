"""`nanoalign data prepare`, and the run that finds what it made."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanoalign.cli import app

RECIPE = """\
name: tiny
seed: 1
model: builtin:miniature-base
chat: nemotron-nano-v2
device: cpu
data:
  mixed: {sources: {miniature:math: 60, miniature:chat: 10}}
stages:
  first:
    kind: sft
    from: base
    data: mixed
    strip_reasoning: 0.3
    max_length: 256
    train: {learning_rate: 1e-3, batch_size: 4, steps: 1, dtype: float32}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}


def test_what_was_prepared_is_what_a_run_trains_on(recipe: Path, tmp_path: Path) -> None:
    at = ["--root", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, ["data", "prepare", str(recipe), "--stage", "first", "--workers", "2", *at])
    assert result.exit_code == 0, result.output
    made = tmp_path / "runs" / "tiny" / "first.prepared"
    index = json.loads((made / "index.json").read_text())
    assert f"first: {index['examples']:,} examples, {index['tokens']:,} tokens" in result.output
    assert index["report"]["changed"]["reasoning stripped"] > 5
    before = stamps(made)
    result = CliRunner().invoke(app, ["run", str(recipe), *at])
    assert result.exit_code == 0, result.output
    assert stamps(made) == before
    account = json.loads((tmp_path / "runs" / "tiny" / "first" / "data.json").read_text())
    assert account["held_out"] == 1 and account["documents"] < index["examples"]
    assert account["changed"] == index["report"]["changed"]


def test_an_unknown_stage_names_the_nearest(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["data", "prepare", str(recipe), "--stage", "frist"])
    assert result.exit_code == 2 and "did you mean `first`?" in result.output
