"""docs/own_data.md and docs/own_model.md, typed in an empty folder (own_reward.md and own_environment.md have tests of
their own)."""

import json
from pathlib import Path

from tests.nanoalign.pages import type_page


def test_own_data(tmp_path: Path) -> None:
    type_page("own_data.md", tmp_path)
    data = json.loads((tmp_path / "runs/own-data/sft/data.json").read_text())
    assert "unknown role" in json.dumps(data) and "duplicate" in json.dumps(data)


def test_own_model(tmp_path: Path) -> None:
    type_page("own_model.md", tmp_path)
    saved = (tmp_path / "runs/own-model/sft/model/chat_template.jinja").read_text()
    assert "<|turn|>" in saved and "enable_thinking" in saved
