"""The stage from rows to a saved model, on a model of 60,000 parameters."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanoalign.common.errors import ConfigError, DataError, IsolationError
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.config import Mixture
from nanoalign.models.loading import load_model, save_model
from nanoalign.sft.config import SFTStage
from nanoalign.sft.stage import run
from nanoalign.sft.trainer import LongestFirst

MIXTURES = {"all": Mixture.model_validate({"sources": {"miniature:math": 120, "miniature:chat": 60}})}
TRAIN = {
    "learning_rate": 1e-2, "batch_size": 4, "micro_batch_size": 2, "dtype": "float32", "checkpoint_every": 3,
    "schedule": "wsd",
}  # fmt: skip


@pytest.fixture
def base(tiny_model: Any, tokenizer: Any, tmp_path: Path) -> Path:
    save_model(tiny_model, tokenizer, tmp_path / "base")
    return tmp_path / "base"


def context(folder: Path, base: Path) -> StageContext:
    return StageContext(
        name="first", folder=folder, inputs={"from": base}, chat="nemotron-nano-v2", seed=3, data_root=None,
        device="cpu", log=StageLog(folder),
    )  # fmt: skip


def stage(train: dict[str, Any], **more: Any) -> SFTStage:
    return SFTStage.model_validate({"kind": "sft", "from": "base", "data": "all", "train": {**TRAIN, **train}, **more})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder).state_dict())


def test_a_packed_stage_learns_and_gives_an_account_of_every_sample(base: Path, tmp_path: Path) -> None:
    where = context(tmp_path / "packed", base)
    figures = run(stage({"steps": 14}, pack={"length": 512}, strip_reasoning=0.5), MIXTURES, where)
    assert figures["loss_last"] < figures["loss_first"] - 0.5
    assert figures["held_out_loss_last"] < figures["held_out_loss_first"] - 0.5
    assert figures["steps"] == 14 and figures["tokens_per_s"] > 0 and figures["fill"] > 0.9
    account = json.loads((where.folder / "data.json").read_text())
    assert sum(account["by_domain"].values()) + account["held_out"] == 180
    assert 40 < account["changed"]["reasoning stripped"] < 80
    assert account["document_tokens"] == figures["document_tokens"] > figures["trained_tokens"] > 0
    rows = [json.loads(line) for line in (where.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 15))
    shown = [json.loads(line) for line in (where.folder / "samples.jsonl").read_text().splitlines()]
    assert {piece["trained"] for sample in shown for piece in sample["runs"]} == {True, False}
    changed = weights(where.folder / "model")
    assert all(torch.isfinite(weight).all() for weight in changed.values())
    assert not torch.equal(changed["lm_head.weight"], weights(base)["lm_head.weight"])


def test_an_unpacked_stage_learns(base: Path, tmp_path: Path) -> None:
    figures = run(stage({"steps": 12}), MIXTURES, context(tmp_path / "padded", base))
    assert figures["loss_last"] < figures["loss_first"] - 0.5 and figures["rows"] == figures["documents"]


def test_lora_trains_adapters_and_saves_a_plain_model(base: Path, tmp_path: Path) -> None:
    where = context(tmp_path / "lora", base)
    figures = run(stage({"steps": 12, "lora": {"rank": 8}}, pack={"length": 512}), MIXTURES, where)
    assert figures["loss_last"] < figures["loss_first"]
    before, after = weights(base), weights(where.folder / "model")
    assert set(before) == set(after)
    assert torch.equal(before["model.embeddings.weight"], after["model.embeddings.weight"])
    assert not torch.equal(
        before["model.layers.0.mixer.out_proj.weight"], after["model.layers.0.mixer.out_proj.weight"]
    )
    with pytest.raises(ConfigError, match="did you mean `in_proj`"):
        run(stage({"lora": {"targets": ["in_porj"]}}), MIXTURES, context(tmp_path / "typo", base))


def test_bad_rows_and_long_samples_stop_before_training(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    good = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}
    rows.write_text("\n".join([json.dumps(good), "{", json.dumps({"messages": []}), json.dumps(good)]))
    mixtures = {"all": Mixture.model_validate({"sources": {f"file:{rows}": 2}})}
    with pytest.raises(DataError, match=r"rows.jsonl:2.*\n.*\n.*rows.jsonl:3"):
        run(stage({}), mixtures, context(tmp_path / "bad", base))
    with pytest.raises(DataError, match="longer than 16 tokens"):
        run(stage({}, pack={"length": 16}), MIXTURES, context(tmp_path / "long", base))
    assert not (tmp_path / "bad" / "model").exists() and not (tmp_path / "long" / "checkpoints").exists()


def test_a_leak_stops_the_stage_before_its_first_step(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanoalign.models import adapters
    from nanoalign.models.hybrid import uninstall

    def leaking(*args: Any) -> Any:
        model = load_model(*args)
        uninstall(model)
        return model

    monkeypatch.setattr(adapters, "load_model", leaking)
    where = context(tmp_path / "leak", base)
    with pytest.raises(IsolationError, match="documents influence each other"):
        run(stage({"steps": 4}, pack={"length": 512}), MIXTURES, where)
    assert not (where.folder / "metrics.jsonl").exists()
    plain = stage({"steps": 2}, pack={"length": 512, "isolate": False})  # the paper's plain concatenation, as asked for
    assert run(plain, MIXTURES, context(tmp_path / "plain", base))["steps"] == 2


def test_rows_of_a_step_come_longest_first_and_stay_in_their_step() -> None:
    lengths = np.random.default_rng(0).integers(1, 9, 50)
    sampler = LongestFirst(lengths, 12, seed=5)
    drawn = list(sampler.order)

    def epoch(number: int) -> list[int]:
        sampler.set_epoch(number)
        return list(sampler)

    for start in range(0, 50, 12):
        step = epoch(0)[start : start + 12]
        assert sorted(step) == sorted(drawn[start : start + 12])
        assert [lengths[row] for row in step] == sorted(lengths[step], reverse=True)
    assert epoch(0) == epoch(0) != epoch(1)
    assert sorted(epoch(1)) == list(range(50)) and len(sampler) == 50


@pytest.mark.parametrize("pack", [{"length": 512}, None])
def test_a_stage_that_was_killed_ends_with_the_same_model_bitwise(
    base: Path, tmp_path: Path, pack: dict[str, int] | None
) -> None:
    config = stage({"steps": 8, "lora": {"rank": 4, "dropout": 0.2}}, pack=pack)
    whole = context(tmp_path / "whole", base)
    first = run(config, MIXTURES, whole)
    checkpoints = sorted(path.name for path in (whole.folder / "checkpoints").iterdir())
    killed = tmp_path / "killed"  # what a kill in the middle leaves: an older checkpoint, a half-written newer one
    for name in checkpoints:
        shutil.copytree(whole.folder / "checkpoints" / name, killed / "checkpoints" / name)
    newest = max((killed / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    (newest / "whole").unlink()
    (newest / "optimizer.pt").unlink()
    second = run(config, MIXTURES, context(killed, base))
    for name, weight in weights(whole.folder / "model").items():
        assert torch.equal(weight, weights(killed / "model")[name]), name
    same = ("loss_first", "loss_last", "held_out_loss_first", "held_out_loss_last", "tokens", "steps")
    assert {name: first[name] for name in same} == {name: second[name] for name in same}
