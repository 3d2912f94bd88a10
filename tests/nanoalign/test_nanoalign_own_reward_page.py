"""docs/own_reward.md: its files and commands, as they are."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanoalign.cli import app

PAGE = (Path(__file__).parents[2] / "docs/own_reward.md").read_text(encoding="utf-8")


def test_the_pages_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in re.findall(r"^```\w+ #(\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        Path(name).write_text(text)
    said = {}
    for line in re.search(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE).group(1).splitlines():  # type: ignore[union-attr]
        _, *words = shlex.split(line)
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
        assert result.exit_code == 0, result.output
        said[words[0]] = result.output
    assert "would run 1 of 1 stages" in said["plan"]
    assert "does not apply" in said["reward"] and "NOTE brevity: an empty answer gets as much" in said["reward"]
    rows = [json.loads(line) for line in Path("runs/capitals/answer/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert {f"rewards/{name}/mean" for name in ("format", "brevity", "correct", "polite")} <= set(rows[0])
    assert any(name.startswith("reason/polite: does not apply") for row in rows for name in row)
