import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from models.loading import load_model, save_model

ROOT = Path(__file__).parents[2]


def test_two_ranks_train_as_one(tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Losses and gradients are those of the whole batch, however its packs are spread over devices."""
    save_model(tiny_model, tokenizer, tmp_path / "base")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    worker = Path(__file__).with_name("ranks_worker.py")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(worker), str(tmp_path / "base"), str(tmp_path), str(port)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    one, two = (load_model(tmp_path / ranks / "model").state_dict() for ranks in ("1", "2"))
    base = load_model(tmp_path / "base").state_dict()
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=2e-5), name
    assert any(not torch.allclose(weight, base[name], atol=1e-3) for name, weight in one.items())
    for first, second in zip(*(rows(tmp_path / ranks) for ranks in ("1", "2")), strict=True):
        assert first["step"] == second["step"] and first.get("tokens") == second.get("tokens")
        for figure in {"loss", "grad_norm", "held_out_loss"} & set(first):
            assert abs(first[figure] - second[figure]) < 1e-4 * max(1, abs(first[figure])), (figure, first, second)


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
