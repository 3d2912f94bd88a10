"""Pairs that do not fill the last batch of an epoch are trained on once, on however many processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.rl.each_pair_once import part_of
from tests.rl.pairs_worker import RANKS, WAYS

ROOT = Path(__file__).parents[2]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.data())
def test_weights_are_those_of_one_process(ranks: int, rows: int, steps: int, split: bool, data: st.DataObject) -> None:
    """Of one process that takes as many rows at a time, or all of a batch at once."""
    size = ranks * rows * steps
    pairs = data.draw(st.integers(1, size))
    alone = rows if split else size
    parts = [part_of(first, rows, pairs, alone) for first in range(0, size, rows)]
    assert sum(part.pairs for part in parts) == pairs
    assert sum(part.weight for part in parts) == pytest.approx(1)
    if not split:  # the mean over all pairs
        assert all(part.weight == pytest.approx(part.pairs / pairs) for part in parts)
    else:  # the mean of the micro-batches' means
        filled = [part.weight for part in parts if part.pairs]
        assert filled == pytest.approx([1 / len(filled)] * len(filled))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_base: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pairs")
    command = [sys.executable, str(Path(__file__).with_name("pairs_worker.py")), str(small_base), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    names = [f"{way}-{ranks}" for way in WAYS for ranks in RANKS]
    return {name: torch.load(folder / name / "end.pt", weights_only=False) for name in names}


@pytest.mark.parametrize("ranks", RANKS[1:])
@pytest.mark.parametrize("way", WAYS)
def test_several_processes_train_as_one(runs: dict[str, Any], way: str, ranks: int) -> None:
    one, many = runs[f"{way}-1"], runs[f"{way}-{ranks}"]
    assert len(one["log"]) == len(many["log"]) == (2 if way == "dpo-few" else 4)
    assert one["tokens"] == many["tokens"]
    means = ("logps/chosen", "rewards/margins") if way in ("dpo", "dpo-few") else ()
    for first, second in zip(one["log"], many["log"], strict=True):
        for name in ("loss", "grad_norm", *means):
            assert first[name] == pytest.approx(second[name], rel=2e-3, abs=1e-5), name
    for name, weight in one["weights"].items():
        assert torch.linalg.vector_norm(weight - many["weights"][name]) <= 1e-3 * torch.linalg.vector_norm(weight), name


def test_a_resumed_training_ends_alike(runs: dict[str, Any]) -> None:
    for ranks in RANKS:
        whole, resumed = runs[f"dpo-{ranks}"]["weights"], runs[f"dpo-killed-{ranks}"]["weights"]
        assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
