"""A stage's model on the hub: private by default, with its card, and nothing is pushed by mistake."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.chat.saved import save_stop_tokens
from nanoalign.model_card import write_card
from nanoalign.push import push
from nanoalign.recipe.load import dump, load
from tests.nanoalign.small_runs import record_stage


class Hub:
    """What the hub's client is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.private, self.fault = True, None  # type: ignore[var-annotated]

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        self.asked.append(("create", (repo, private)))
        if self.fault:
            raise self.fault

    def repo_info(self, repo: str) -> Any:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
        self.asked.append(("upload", (repo_id, sorted(path.name for path in folder_path.iterdir()), commit_message)))
        return f"https://huggingface.co/{repo_id}/commit/1"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "miniature"
    (folder / "tools" / "model").mkdir(parents=True)
    (folder / "tools" / "model" / "model.safetensors").touch()
    (folder / "recipe.yaml").write_text(dump(load("miniature")), encoding="utf-8")
    for name, state in (("tools", "finished"), ("foundation", "failed"), ("measure", "finished")):
        record_stage(folder, name, state, figures={"loss_last": 0.25})
    return folder


def test_a_stage_goes_to_a_private_repository_with_its_card(run: Path, hub: Hub) -> None:
    told = CliRunner().invoke(app, ["push", "miniature", "tools", "--to", "me/mine", "--root", str(run.parent)])
    assert told.output.strip() == "https://huggingface.co/me/mine/commit/1"
    files = ["README.md", "model.safetensors"]
    message = "miniature, stage tools (nanoalign)"
    assert hub.asked == [("create", ("me/mine", True)), ("upload", ("me/mine", files, message))]


def test_a_public_one_only_where_it_is_said(run: Path, hub: Hub) -> None:
    hub.private = False
    with pytest.raises(ConfigError, match="me/mine is a public repository; say --public"):
        push(run, "tools", "me/mine")
    assert [what for what, _ in hub.asked] == ["create"]
    push(run, "tools", "me/mine", public=True, message="first")
    assert hub.asked[-2] == ("create", ("me/mine", False))


def test_what_cannot_be_pushed_is_said(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    last = list(load("miniature").stages)[-1]
    for stage, to, said in (
        ("tool", "me/mine", "did you mean `tools`"),
        ("foundation", "me/mine", "stage foundation is failed"),
        (last, "me/mine", f"stage {last} is not run yet"),
        ("tools", "mine", "expected USER/NAME"),
    ):
        with pytest.raises(ConfigError, match=said):
            push(run, stage, to)
    hub.fault = OSError("403 Forbidden\nlong")
    with pytest.raises(ConfigError, match=r"did not take it: 403 Forbidden$"):
        push(run, "tools", "me/mine")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        push(run, "tools", "me/mine")


def test_a_card_names_stages_data_licences_and_figures(tmp_path: Path) -> None:
    write_card(load("smollm2-135m"), "foundation", {"loss_last": 0.25, "dropped": {}}, tmp_path)
    text = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["pipeline_tag"] == "text-generation" and front["tags"] == ["nanoalign", "sft"]
    assert "| foundation | sft | base |" in text and "| loss last | 0.25 |" in text and "gsm8k" in text
    (tmp_path / "README.md").write_text("a merge's own")
    write_card(load("smollm2-135m"), "foundation", {}, tmp_path)
    assert (tmp_path / "README.md").read_text() == "a merge's own"


def test_a_turn_ends_where_the_format_ends_it(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    vocabulary = {"<unk>": 0, "</s>": 1, "<|im_end|>": 2, "<|endoftext|>": 3}
    Tokenizer(models.WordLevel(vocabulary, "<unk>")).save(str(tmp_path / "tokenizer.json"))
    settings = tmp_path / "generation_config.json"
    settings.write_text(json.dumps({"_from_model_config": True, "eos_token_id": 1, "top_p": 0.9}))
    for _ in range(2):
        save_stop_tokens(chat_format("chatml"), tmp_path)
        assert json.loads(settings.read_text()) == {"eos_token_id": [2, 3, 1], "top_p": 0.9}
