"""The stage on a tiny hybrid: what it writes, how it resumes, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.compress import stage
from nanoalign.compress.config import CompressStage
from nanoalign.data_recipes.config import Mixture
from nanoalign.models.loading import load_model, save_model
from nanoalign.models.model_folder import read_config, read_tensors
from tests.tiny import tiny_hybrid, tiny_tokenizer, token_ids

MIXTURES = {
    "sums": Mixture(sources={"miniature:math": 24}),
    "many": Mixture(sources={"miniature:math": 120}),
    "few": Mixture(sources={"miniature:math": 1}),
}
GRID: dict[str, Any] = {"blocks": [3, 4], "hidden_size": [24, 32], "intermediate_size": [32, 64],
                        "num_attention_heads": [1, 2]}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "kind": "compress", "from": "base", "data": "sums", "grid": GRID,
    "memory": {"gib": 0.0002, "context": 64, "weights": "float32", "cache": "float32"},
    "calibration": {"length": 256, "rows": 3, "depth_rows": 1, "held_out_rows": 2}, "screen": 4, "best": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "whole"
    tokenizer = tiny_tokenizer("nemotron-nano-v2")
    save_model(tiny_hybrid(len(tokenizer), **token_ids(tokenizer)), tokenizer, folder)
    return folder


def _run(source: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    context = StageContext("compressed", folder, {"from": source}, "nemotron-nano-v2", 7, None, "cpu",
                           log=StageLog(folder))  # fmt: skip
    return stage.run(CompressStage(**SETTINGS | settings), MIXTURES, context)


def test_the_chosen_model_loads_and_has_the_size_that_was_promised(source: Path, tmp_path: Path):
    figures = _run(source, tmp_path / "compressed")
    model = load_model(tmp_path / "compressed/model")
    assert sum(parameter.numel() for parameter in model.parameters()) == figures["compress.parameters"]
    assert figures["compress.parameters"] < figures["compress.parameters.whole"]
    assert figures["compress.memory_gib"] <= 0.0002 < figures["compress.memory_gib.whole"]
    record = json.loads((tmp_path / "compressed/search.json").read_text())
    rows = [row for row in record["candidates"] if "loss" in row]
    assert len(rows) == 4 and sum("finalist" in row for row in rows) == 2
    chosen = next(row for row in rows if row["name"] == record["chosen"])
    assert chosen["loss"] == min(row["loss"] for row in rows) == figures["compress.loss"]
    assert not (tmp_path / "compressed/candidates").exists()
    table = [json.loads(line) for line in (tmp_path / "compressed/tensors.jsonl").read_text().splitlines()]
    assert {row["tensor"] for row in table} == set(read_tensors(source))
    assert {row["becomes"] for row in table} - {None} == set(read_tensors(tmp_path / "compressed/model"))


def test_the_loss_in_memory_is_that_of_the_written_model(source: Path, tmp_path: Path):
    from nanoalign.compress.calibrate import calibration_rows, mean_loss
    from nanoalign.data_recipes.prepared import Prepared

    figures = _run(source, tmp_path / "compressed")
    config = CompressStage(**SETTINGS)
    rows = calibration_rows(config.calibration, "sums", Prepared(tmp_path / "compressed.prepared"), 0, 7)
    assert mean_loss(load_model(tmp_path / "compressed/model"), rows.held_out) == pytest.approx(
        figures["compress.loss"], rel=1e-5
    )


def test_a_killed_stage_ends_as_an_uninterrupted_one(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed while it screens: importance, removals and the candidates measured so far are taken up."""
    from nanoalign.compress import calibrate, depth, importance

    whole = _run(source, tmp_path / "whole")
    seen = 0

    def once_too_often(model: Any, rows: Any, real: Any = calibrate.mean_loss) -> float:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise KeyboardInterrupt
        return real(model, rows)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(calibrate, "mean_loss", once_too_often)
        _run(source, tmp_path / "killed")
    with (tmp_path / "killed/removals.jsonl").open("a") as cut:
        cut.write('{"gone": [0, 1], "err')
    again = pytest.MonkeyPatch()
    again.setattr(importance, "measure", lambda *_: pytest.fail("importance is measured again"))
    again.setattr(depth.Removal, "_measure", lambda *_: pytest.fail("a removal is measured again"))
    try:
        assert _run(source, tmp_path / "killed") == whole
    finally:
        again.undo()
    files = [tmp_path / name / "model/model.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert _run(source, tmp_path / "killed") == whole  # killed after the choice, before its result was written


def test_finalists_are_distilled_and_measured(source: Path, tmp_path: Path):
    from nanoalign.evaluation.config import Suite

    train = {"learning_rate": 1e-3, "steps": 3, "batch_size": 2, "dtype": "float32"}
    settings: dict[str, Any] = {
        "data": "many", "distill": {"pack": {"length": 256}, "train": train}, "suite": "sums",
        "rollouts": {"max_tokens": 8, "grace": 0, "temperature": 0.0},
    }  # fmt: skip
    mixtures = MIXTURES | {"test": Mixture(sources={"miniature:math": {"samples": 6, "split": "test"}})}
    context = StageContext("compressed", tmp_path / "s", {"from": source}, "nemotron-nano-v2", 7, None, "cpu",
                           log=StageLog(tmp_path / "s"))  # fmt: skip
    figures = stage.run(CompressStage(**SETTINGS | settings), mixtures, context, {"sums": Suite(data="test")})
    assert 0 <= figures["compress.accuracy"]["value"] <= 1
    record = json.loads((tmp_path / "s/search.json").read_text())
    finalists = [row for row in record["candidates"] if "finalist" in row]
    phases = {row.get("phase") for row in map(json.loads, (tmp_path / "s/metrics.jsonl").read_text().splitlines())}
    assert f"finalist 1 of {len(finalists)}" in phases  # for `nanoalign status`
    assert all(row["distilled_kl"] != row["pruned_kl"] for row in finalists)
    assert figures["compress.loss_distilled"] in [row["distilled_loss"] for row in finalists]
    assert read_config(tmp_path / "s/model")["hidden_size"] in (24, 32)


@pytest.mark.parametrize(
    "settings, fault, message",
    [
        ({"memory": {"gib": 1e-6}}, ConfigError, r"^stages.compressed.memory.gib: none of 16 candidates fits 1e-06"),
        ({"throughput": {"floor": 1e9}}, ConfigError, r"^stages.compressed.throughput.floor: none of"),
        ({"grid": {"num_attention_heads": [3]}}, ConfigError, r"grid.num_attention_heads: 3 is more than"),
        ({"grid": {"blocks": [5]}}, ConfigError, r"grid.blocks: 5 of the model's 4"),
        ({"data": "few"}, DataError, r"^data.few: .* tokens fill only one row of calibration.length 256"),
        ({"grid": {"blocks": [3], "attention_blocks": [0]}, "protect": [1, 2]}, ConfigError,
         "^stages.compressed.protect: leaves 0 attention blocks to remove, and the grid removes 1"),
        ({"protect": [4]}, ConfigError, "^stages.compressed.protect: 4 is no block of the model's 4, numbered from 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_its_key(
    settings: dict[str, Any], fault: type[Exception], message: str, source: Path, tmp_path: Path
):
    with pytest.raises(fault, match=message):
        _run(source, tmp_path / "compressed", **settings)
    assert not (tmp_path / "compressed/model").exists()


def test_an_unknown_architecture_is_refused(source: Path, tmp_path: Path):
    shutil.copytree(source, tmp_path / "other")
    config = read_config(source) | {"model_type": "gpt_oss"}
    (tmp_path / "other/config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"stages.compressed.from: a model of type gpt_oss cannot be pruned; known"):
        _run(tmp_path / "other", tmp_path / "compressed")


def test_groups_that_do_not_divide(tmp_path: Path):
    from nanoalign.compress.config import Grid
    from nanoalign.compress.shapes import widths
    from tests.compress.models import small_model

    config = small_model("hybrid").config.to_dict()
    with pytest.raises(ConfigError, match=r"grid.mamba_num_heads: 3 does not divide into 2 groups \(n_groups\)"):
        list(widths(config, Grid(mamba_num_heads=[3])))
    with pytest.raises(ConfigError, match=r"grid.num_attention_heads: 3 does not divide into 2 groups"):
        list(widths(config, Grid(num_attention_heads=[3])))
    with pytest.raises(ConfigError, match=r"grid.mamba_num_heads: llama has none"):
        list(widths(small_model("llama").config.to_dict(), Grid(mamba_num_heads=[2])))


def test_nothing_is_learned_from_samples_without_answers(source: Path, tmp_path: Path, monkeypatch: Any):
    import numpy as np

    from nanoalign.data_recipes.prepared import Prepared

    real = Prepared.column
    monkeypatch.setattr(
        Prepared, "column", lambda self, name: np.zeros(len(self), int) if name == "trained" else real(self, name)
    )
    with pytest.raises(DataError, match=r"data.sums: 24 samples without a trained token: nothing to calibrate on"):
        _run(source, tmp_path / "compressed")
