"""A colocated vLLM in each of a launcher's processes answers as one in a process of its own."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")


def test_an_engine_a_process(small_base, tmp_path):
    for ranks in ("1", "2"):
        worker = [sys.executable, "-m", "tests.rollouts.vllm_ranks", small_base, tmp_path, ranks]
        subprocess.run(worker, check=True, timeout=400)
    alone, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first == alone
    assert second == [alone[0], alone[0]]
    assert alone[0] != alone[1] == alone[2] == alone[3]
