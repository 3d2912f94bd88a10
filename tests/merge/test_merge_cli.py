"""The command's functions: alphas, outputs, cards."""

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.common.errors import ConfigError
from nanoalign.common.intervals import proportion
from nanoalign.merge.checkpoint import open_checkpoint
from nanoalign.merge.cli import merge_command, merge_yaml_command, output_folders, parse_alphas, shown_progress
from nanoalign.merge.mergekit_bridge import mergekit_config, write_config
from nanoalign.merge.model_card import write_card


@given(st.integers(0, 100), st.integers(1, 50), st.integers(0, 20))
def test_a_range_is_exact_decimals_with_both_ends(first: int, step: int, count: int):
    last = first + step * count
    if last > 100:
        return
    text = f"{Decimal(first) / 100}:{Decimal(last) / 100}:{Decimal(step) / 100}"
    assert parse_alphas(text) == [float(f"{(first + step * n) / 100:.2f}") for n in range(count + 1)]


def test_alphas_in_all_their_forms():
    assert parse_alphas("0.1:0.9:0.1") == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert parse_alphas("0.5") == [0.5]
    assert parse_alphas("0.7, 0.2,0.2:0.4:0.1") == [0.2, 0.3, 0.4, 0.7]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0.1:0.9",
        "0.1:0.9:0",
        "0.9:0.1:0.1",
        "0.1:0.9:0.3",
        "0:1:-1",
        "nan",
        "inf",
        "1.1",
        "0:1:1e-9",
        "0:1:1:1",
    ],
)
def test_bad_alphas_are_refused(text: str):
    with pytest.raises(ConfigError, match="alpha"):
        parse_alphas(text)


def test_one_alpha_goes_to_the_output_and_many_below_it(llama_pair: tuple[Path, Path], tmp_path: Path):
    assert merge_command(*llama_pair, tmp_path / "one", [0.5]) == [tmp_path / "one"]
    many = merge_command(*llama_pair, tmp_path / "many", [0.25, 0.5])
    assert [path.name for path in many] == ["alpha-0.25", "alpha-0.5"]
    merged = (tmp_path / "one/model.safetensors").read_bytes()
    assert (many[1] / "model.safetensors").read_bytes() == merged
    again = merge_yaml_command(tmp_path / "one/mergekit_config.yml", tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == merged


def test_an_output_that_holds_something_is_never_replaced(llama_pair: tuple[Path, Path], tmp_path: Path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "precious").write_text("x")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        merge_command(*llama_pair, tmp_path / "o", [0.5])
    assert (tmp_path / "o" / "precious").exists()
    assert output_folders(tmp_path / "new", [0.5]) == {0.5: tmp_path / "new"}


def test_the_bar_takes_progress(llama_pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with shown_progress() as progress:
        merge_command(*llama_pair, tmp_path / "o", [0.5], progress=progress)
    shown = capsys.readouterr().out
    assert "merging" in shown and "0:00:00" in shown  # what is done, and the time left


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["merge", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_sweep_alone_scores_every_alpha_and_writes_the_best(miniature_pair: tuple[Path, Path], tmp_path: Path):
    changes = [
        "stages.merged.chat_suite=instruction", "stages.merged.budgets=[1]", "stages.merged.rollouts.max_tokens=10",
        "suites.reasoning.samples=2", "suites.instruction.samples=2",
    ]  # fmt: skip
    out = tmp_path / "out"
    status, output = command(
        *miniature_pair, "--out", out, "--alphas", "0.4:0.6:0.2", "--evaluate", "miniature",
        *(part for change in changes for part in ("--set", change)),
    )  # fmt: skip
    assert status == 0
    sweep = json.loads((out / "sweep.json").read_text())
    assert [point["alpha"] for point in sweep["points"]] == [0.0, 0.4, 0.6, 1.0]
    assert all(point["scores"].keys() == {"reasoning", "instruction", "reasoning@1"} for point in sweep["points"])
    assert f'"merge.alpha": {sweep["chosen"]}' in output
    assert "| reasoning@1 |" in (out / "model" / "README.md").read_text()
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"model"}


def test_the_command_takes_mergekit_yaml(llama_pair: tuple[Path, Path], tmp_path: Path):
    write_config(mergekit_config("linear", list(llama_pair), weights=[1.0, 3.0]), tmp_path / "c.yml")
    assert command("--config", tmp_path / "c.yml", "--out", tmp_path / "o")[0] == 0
    merge_command(*llama_pair, tmp_path / "due", [0.75])
    assert (tmp_path / "o/model.safetensors").read_bytes() == (tmp_path / "due/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give model folders to merge"),
        (["a", "b", "--config", "c.yml"], "models has no meaning with --config"),
        (["--config", "c.yml", "--alphas", "0.5"], "--alphas has no meaning with --config"),
        (["a", "b", "--density", "0.0"], "--density has no meaning in a linear merge of two"),
        (["a", "b", "c", "--alphas", "0.5"], "--alphas has no meaning except in a linear merge of two"),
        (["a", "b", "c", "--weights", "1,x,2"], "weights '1,x,2': expected numbers"),
        (["a", "b", "--evaluate", "miniature", "--method", "ties"], "a sweep is linear, not ties"),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments: list[str], said: str, tmp_path: Path):
    status, output = command(*arguments, "--out", tmp_path / "o")
    assert status == 2 and said in output
    assert list(tmp_path.iterdir()) == []


def front_matter(card: Path) -> dict:
    return yaml.safe_load(card.read_text().split("---\n")[1])


LICENSED = "---\nlicense: other\nlicense_name: open\nlicense_link: https://example.org\nextra: 1\n---\n# A model\n"


def test_a_common_licence_is_carried_over_and_a_different_one_is_told(
    llama_pair: tuple[Path, Path], tmp_path: Path, leftovers: Callable
):
    a, b = llama_pair
    for folder, text in ((a, LICENSED), (b, LICENSED)):
        (folder / "README.md").write_text(text)
        (folder / "LICENSE").write_text(f"terms of {folder.name}")
    merge_command(a, b, tmp_path / "same", [0.5])
    card = tmp_path / "same" / "README.md"
    fields = front_matter(card)
    assert (fields["license"], fields["license_name"]) == ("other", "open")
    assert "extra" not in fields
    assert fields["base_model"] == ["a", "b"]
    assert "alpha 0.5" in card.read_text()
    assert open_checkpoint(a).fingerprint() in card.read_text()
    assert (tmp_path / "same" / "LICENSE").read_text() == "terms of a"
    assert (tmp_path / "same" / "LICENSE-B").read_text() == "terms of b"
    (b / "README.md").write_text(LICENSED.replace("other", "mit"))
    merge_command(a, b, tmp_path / "differ", [0.5])
    assert "license" not in front_matter(tmp_path / "differ" / "README.md")
    assert "licences differ" in (tmp_path / "differ" / "README.md").read_text()


def test_scores_stand_in_the_card_with_their_intervals(llama_pair: tuple[Path, Path], tmp_path: Path):
    sources = {label: open_checkpoint(path) for label, path in zip("AB", llama_pair, strict=True)}
    write_card(tmp_path, sources, "linear", {"alpha": 0.3}, {"math": proportion(8, 10)})
    assert "| math | 0.8000 | 0.4902 to 0.9433 | 10 |" in (tmp_path / "README.md").read_text()


def test_fingerprints_tell_checkpoints_apart(llama_pair: tuple[Path, Path]):
    a, b = llama_pair
    assert open_checkpoint(a).fingerprint() == open_checkpoint(a).fingerprint() != open_checkpoint(b).fingerprint()
