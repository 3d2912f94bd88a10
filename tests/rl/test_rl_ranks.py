"""GRPO on one process and on several: losses, advantages and weights are those of one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.toy import toy_model

ROOT = Path(__file__).parents[2]
WAYS = {
    "one": [
        "two",
        "three",
        "packed",
        "shared_engine",
        "ahead",
        "resumed",
        "zero1",
        "zero2",
        "zero3",
        "zero3_resumed",
        "zero3_shared",
    ],
    "lora": ["lora_two", "lora_zero3"],
    "cut": ["cut_two", "cut_zero3"],
    "kl": ["kl_two", "kl_zero3"],
}
PLAYED = {
    "dpo": ["dpo_two", "dpo_zero3", "dpo_own", "dpo_server", "dpo_zero3_killed"],
    "dpo_lora": ["dpo_lora_zero3"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_base: Path) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    ways = [way for alone, others in (WAYS | PLAYED).items() for way in (alone, *others)]
    command = [sys.executable, str(Path(__file__).with_name("ranks_worker.py")), str(small_base), str(folder), *ways,
               "reward", "reward_zero3", "dpo_half_zero3"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Any]:
    ways = [way for alone, others in WAYS.items() for way in (alone, *others)]
    return {way: torch.load(folder / way / "end.pt", weights_only=False) for way in ways}


@pytest.mark.parametrize(("alone", "way"), [(alone, way) for alone, others in WAYS.items() for way in others])
def test_processes_together_train_as_one(runs: dict[str, Any], alone: str, way: str) -> None:
    one, many = runs[alone], runs[way]
    same = ("reward", "reward_std", "frac_reward_zero_std", "rewards/length/mean", "mismatch", "completions/max_length")
    for first, second in zip(one["log"], many["log"], strict=True):
        for name in same:
            assert first[name] == pytest.approx(second[name], rel=1e-5), name
    for name in ("loss", "grad_norm", "entropy"):  # of the first step: its weights are the same
        assert one["log"][0][name] == pytest.approx(many["log"][0][name], rel=1e-3, abs=2e-5), name
    start = toy_model("hybrid").state_dict()
    for name, weight in one["weights"].items():  # AdamW makes whole steps of gradients that are mere rounding
        far = torch.linalg.vector_norm(weight - start[name])
        assert torch.linalg.vector_norm(weight - many["weights"][name]) <= 2e-2 * far + 1e-6, name


def test_a_reason_is_counted_once(runs: dict[str, Any]) -> None:
    counts = [
        [row.get("reason/cut", 0.0) for row in runs[way]["log"]] for way in ("one", "three", "shared_engine", "ahead")
    ]
    assert all(each == [0.0, 1.0, 2.0] for each in counts)


def test_a_reward_model_that_is_split_is_saved_whole(folder: Path) -> None:
    one, two = (load_file(folder / way / "model/model.safetensors") for way in ("reward", "reward_zero3"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert torch.linalg.vector_norm(weight - two[name]) <= 2e-2 * torch.linalg.vector_norm(weight) + 1e-6, name


def test_what_was_split_in_half_precision_is_saved_in_it(folder: Path) -> None:
    for model in ("round-1/model", "round-2/model", "model"):
        weights = load_file(folder / "dpo_half_zero3" / model / "model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize(("alone", "way"), [(alone, way) for alone, others in PLAYED.items() for way in others])
def test_dpo_plays_and_trains_as_one(folder: Path, alone: str, way: str) -> None:
    """The same episodes and pairs, played by two; the same weights within rounding."""
    one, two = folder / alone, folder / way
    episodes = [
        [json.loads(line) for line in (f / "round-1/episodes.jsonl").read_text().splitlines()] for f in (one, two)
    ]
    assert len(episodes[0]) == len(episodes[1]) == 16
    for first, second in zip(*episodes, strict=True):
        assert (first["task"], first["sample"], first["success"]) == (
            second["task"],
            second["sample"],
            second["success"],
        )
        assert [turn["token_ids"] for turn in first["turns"]] == [turn["token_ids"] for turn in second["turns"]]
    figures = [json.loads((f / "figures.json").read_text()) for f in (one, two)]
    assert figures[0]["pairs_round_1"] == figures[1]["pairs_round_1"] > 2
    assert figures[0]["sampled_round_1"] == figures[1]["sampled_round_1"]
    weights = [load_file(f / "round-1/model/model.safetensors") for f in (one, two)]
    for name, weight in weights[0].items():
        assert torch.linalg.vector_norm(weight - weights[1][name]) <= 1e-3 * torch.linalg.vector_norm(weight) + 1e-6, (
            name
        )
    logged = [(f / "metrics.jsonl").read_text().count("held_out_success") for f in (one, two)]
    assert logged == [3, 4 if "killed" in way else 3]  # a resumed stage says again how it began
