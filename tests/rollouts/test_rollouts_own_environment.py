"""docs/own_environment.md: its files are planned, played, trained on and measured."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanoalign.cli import app

PAGE = Path(__file__).parents[2] / "docs/own_environment.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        if named := re.match(r"# (\S+)\n", block):
            (folder / named[1]).write_text(block)
    (folder / "trying.py").write_text(blocks[-1])
    return folder


def test_the_recipe_runs(folder: Path) -> None:
    planned = CliRunner().invoke(app, ["plan", str(folder / "recipe.yaml"), "--root", str(folder / "runs")])
    assert planned.exit_code == 0, planned.output
    done = CliRunner().invoke(app, ["run", str(folder / "recipe.yaml"), "--root", str(folder / "runs")])
    assert done.exit_code == 0, done.output
    run = folder / "runs/shop"
    rows = [json.loads(line) for line in (run / "agent/round-1/episodes.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(0 <= row["reward"] <= 1 for row in rows)
    assert {row["task"].split("-")[0] for row in rows} <= {"apples", "pears"}
    verdict = json.loads((run / "verdict/evaluation.json").read_text())
    assert "plums" in json.dumps(verdict)
    again = CliRunner().invoke(app, ["plan", str(folder / "recipe.yaml"), "--root", str(folder / "runs")])
    (folder / "my_env.py").write_text((folder / "my_env.py").read_text() + "# changed\n")
    stale = CliRunner().invoke(app, ["plan", str(folder / "recipe.yaml"), "--root", str(folder / "runs")])
    assert "my_env.py:Shop" not in again.output and "the code changed: my_env.py:Shop" in stale.output


def test_the_grpo_stage_runs(folder: Path) -> None:
    [stage] = re.findall(r"```yaml\n(  agent:\n    kind: grpo\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "grpo.yaml").write_text(re.sub(r"  agent:\n.*?(?=  verdict:)", stage, recipe, flags=re.DOTALL))
    command = ["run", str(folder / "grpo.yaml"), "--root", str(folder / "grpo"), "--until", "agent"]
    done = CliRunner().invoke(app, [*command, "--set", "stages.agent.train.steps=1"])
    assert done.exit_code == 0, done.output
    (row,) = (folder / "grpo/shop/agent/metrics.jsonl").read_text().splitlines()
    assert 0 <= json.loads(row)["rewards/environment/mean"] <= 1 <= json.loads(row)["episodes/turns"] <= 3


def test_the_lines_for_trying_it_out(folder: Path) -> None:
    tried = subprocess.run([sys.executable, "trying.py"], cwd=folder, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stderr
    assert "ok, 1 apples" in tried.stdout and "Outcome(success=True, reward=1.0)" in tried.stdout
