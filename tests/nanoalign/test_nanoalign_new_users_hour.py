"""docs/new_users_hour.md, typed in an empty folder: its files, its commands, what they say, and its number of lines."""

import json
from pathlib import Path

import pytest

from tests.nanoalign.pages import DOCS, blocks_of, type_page

PAGE = (DOCS / "new_users_hour.md").read_text(encoding="utf-8")
BLOCKS = blocks_of("new_users_hour.md")
FILES = {name: text for _, name, text in BLOCKS if name}
COMMANDS = [line for kind, _, text in BLOCKS if kind == "console" for line in text.splitlines() if line[:2] == "$ "]


def test_at_most_60_lines_are_typed() -> None:
    lines = [line for text in FILES.values() for line in text.splitlines() if line.strip()]
    assert len(lines) + len(COMMANDS) <= 60
    assert f"{len(lines) + len(COMMANDS)} lines" in PAGE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hour")
    type_page("new_users_hour.md", folder)
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
