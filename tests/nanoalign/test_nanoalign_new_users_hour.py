"""docs/new_users_hour.md, typed in an empty folder: its files, its commands, what they say, and its number of lines."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/new_users_hour.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: #(\S+))?\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
FILES = {name: text for _, name, text in BLOCKS if name}
COMMANDS = [line for kind, _, text in BLOCKS if kind == "console" for line in text.splitlines() if line[:2] == "$ "]


def test_at_most_60_lines_are_typed() -> None:
    lines = [line for text in FILES.values() for line in text.splitlines() if line.strip()]
    assert len(lines) + len(COMMANDS) <= 60
    assert f"{len(lines) + len(COMMANDS)} lines" in PAGE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, typed from top to bottom; what a command says is compared with what the page shows."""
    folder = tmp_path_factory.mktemp("hour")
    (folder / "bin").mkdir()
    python = shlex.quote(sys.executable)  # a link to it would not find its environment's packages
    for name, command in {"nanoalign": f'{python} -c "from nanoalign.cli import app; app()"', "python": python}.items():
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    for kind, name, text in BLOCKS:
        if name:
            (folder / name).write_text(text, encoding="utf-8")
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:] if kind == "console" else []:
            typed, *shown = part.splitlines()
            done = subprocess.run(
                typed, shell=True, cwd=folder, env={**os.environ, "PATH": path, "COLUMNS": "120"},
                capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            assert done.returncode == 0, f"{typed}: {done.stdout}{done.stderr}"
            said = [line.strip() for line in done.stdout.splitlines()]
            for line in shown:
                start, cut, _ = line.strip().partition("...")
                told = any(each.startswith(start) if cut else each == start for each in said)
                assert told, f"{typed} does not say: {line}\n{done.stdout}"
    return folder


def test_an_adapter_was_trained_with_the_tool_and_the_reward(folder: Path) -> None:
    run = folder / "runs/shop"
    recipe = json.loads((run / "grpo/stage.json").read_text())
    assert "'lora': {'rank': 16" in str(recipe)
    assert (run / "grpo/model/model.safetensors").is_file() and (run / "report.html").is_file()
    rows = [json.loads(line) for line in (run / "grpo/metrics.jsonl").read_text().splitlines()]
    assert all({"rewards/environment/mean", "rewards/brief/mean"} <= set(row) for row in rows)
    assert max(row["episodes/turns"] for row in rows) > 1  # the tool was called: only a result leads to another turn
    assert max(row["rewards/environment/mean"] for row in rows) > 0
    assert max(row["rewards/brief/mean"] for row in rows) > 0
