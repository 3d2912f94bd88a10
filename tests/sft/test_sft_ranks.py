"""One stage on one process and on several: data parallelism, packs shared by processes, ZeRO-3, and these together."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanoalign.models.fp8_layers import EMULATE
from nanoalign.models.loading import load_model, save_model
from tests.tiny import tiny_hybrid, token_ids

ROOT = Path(__file__).parents[2]
WAYS = {
    "one": ["data", "sequence", "zero3", "zero3_sequence", "mixed"],
    "lora": ["lora_sequence", "lora_zero3"],
    "distil": ["distil_data", "distil_zero3_sequence"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    save_model(tiny_hybrid(len(tokenizer), **token_ids(tokenizer)), tokenizer, folder / "base")
    expert = tiny_hybrid(len(tokenizer), **token_ids(tokenizer))
    with torch.no_grad():
        for weight in expert.parameters():
            weight += 0.1 * weight.std() * torch.randn_like(weight) if weight.numel() > 1 else 0
    save_model(expert, tokenizer, folder / "teacher")
    worker = Path(__file__).with_name("ranks_worker.py")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", EMULATE: "1"}
    ways = [way for alone, others in WAYS.items() for way in (alone, *others)]
    ways += ["all", "fp8", "fp8_zero3_sequence"]
    command = [sys.executable, str(worker), str(folder / "base"), str(folder), *ways]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.mark.parametrize(("alone", "way"), [(alone, way) for alone, others in WAYS.items() for way in others])
def test_processes_together_train_as_one(runs: Path, alone: str, way: str) -> None:
    """Losses, gradients and weights are those of the whole batch, however packs, or what is in them, are spread."""
    one, many, base = (
        load_model(folder).state_dict() for folder in (runs / alone / "model", runs / way / "model", runs / "base")
    )
    assert one.keys() == many.keys() == base.keys()
    for name, weight in one.items():  # AdamW makes whole steps of gradients that are mere rounding
        assert torch.allclose(weight, many[name], atol=1e-4), name
        assert torch.linalg.vector_norm(weight - many[name]) <= 1e-3 * torch.linalg.vector_norm(weight - base[name])
    assert any(not torch.allclose(weight, base[name], atol=1e-3) for name, weight in one.items())
    first, second = rows(runs / alone), rows(runs / way)
    assert [row["step"] for row in first] == [row["step"] for row in second]
    for a, b in zip(first, second, strict=True):
        assert abs(a.get("tokens", 0) - b.get("tokens", 0)) <= 16  # rows are filled up to a multiple of the ranks
        for figure in {"loss", "kl", "cross_entropy", "grad_norm", "held_out_loss", "held_out_kl"} & set(a):
            assert abs(a[figure] - b[figure]) < 1e-4 * max(1, abs(a[figure])), (figure, a, b)


def test_half_precision_adapters_zero3_and_shared_packs_go_together(runs: Path) -> None:
    losses = [row["held_out_loss"] for row in rows(runs / "all") if "held_out_loss" in row]
    assert losses[-1] < losses[0] - 0.01
    trained, base = (load_model(folder).state_dict() for folder in (runs / "all" / "model", runs / "base"))
    assert trained.keys() == base.keys()
    assert torch.equal(trained["lm_head.weight"], base["lm_head.weight"].bfloat16().float())


def test_fp8_on_processes_that_share_packs_and_weights_is_that_of_one(runs: Path) -> None:
    """As near as rounding to eight bits lets it come: sums in another order round other values the other way."""
    one, many = rows(runs / "fp8"), rows(runs / "fp8_zero3_sequence")
    for a, b in zip(one, many, strict=True):
        for figure, gap in {"loss": 0.01, "held_out_loss": 0.01, "grad_norm": 0.1}.items():
            assert abs(a.get(figure, 0) - b.get(figure, 0)) <= gap * a.get(figure, 0), (figure, a, b)
    assert many[-1]["held_out_loss"] < many[0]["held_out_loss"] - 0.05


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
