"""docs/around_a_run.md: its commands run in order, its recipe parts fit the recipe that `new` writes."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.recipe.load import load

PAGE = (Path(__file__).parents[2] / "docs/around_a_run.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(console|yaml)\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"{i} + 1?"}, {"role": "assistant", "content": f"{i + 1}"}],
         "task": {"kind": "math", "answer": f"{i + 1}"}}
        for i in range(60)
    ]  # fmt: skip
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = {}
    for kind, text in BLOCKS:
        if kind == "yaml":
            part = {"extends": "sums.yaml", **yaml.safe_load(text)}
            Path("part.yaml").write_text(yaml.safe_dump(part), encoding="utf-8")
            load("part.yaml", check_files=True)
            continue
        for command in text.strip().splitlines():
            result = CliRunner().invoke(app, shlex.split(command.removeprefix("$ nanoalign ")))
            assert result.exit_code == 0, f"{command}: {result.output}"
            told[command] = result.output
    assert "1 of 3 stages finished" in told["$ nanoalign status sums"]
    status = json.loads(told["$ nanoalign status runs/sums --json"])
    assert [stage["state"] for stage in status["stages"]] == ["finished", "to come", "to come"]
    assert "held_out_loss_last" in status["stages"][0]["figures"]
    assert (Path("runs/sums/sft/model/README.md")).is_file()
