"""A pack spread over ranks against one process: losses, logits and gradients, documents across every border."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanoalign.common.errors import ConfigError
from nanoalign.models.hybrid import install
from nanoalign.models.sequence_parallel import parallelize
from tests.models.small import small_model

ROOT = Path(__file__).parents[2]
TWO, FOUR = ["nemotron_h", "llama"], ["nemotron_h", "llama", "mistral", "bamba", "granitemoehybrid", "falcon_h1"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    worker = Path(__file__).with_name("sequence_worker.py")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folders = {}
    for ranks, names in ((2, TWO), (4, FOUR)):
        folders[ranks] = tmp_path_factory.mktemp(f"ranks{ranks}")
        command = [sys.executable, str(worker), str(ranks), str(folders[ranks]), *names]
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-3000:]
    return folders


@pytest.mark.parametrize(("ranks", "name"), [(2, name) for name in TWO] + [(4, name) for name in FOUR])
def test_ranks_together_compute_what_one_does(results: dict[int, Path], ranks: int, name: str) -> None:
    """4 ranks are more than the 2 heads of keys and values, and than the 2 Mamba groups: these are repeated."""
    found = torch.load(results[ranks] / f"{name}.pt")
    assert found["isolated"]
    assert found["one"].keys() == found["many"].keys()
    for part, expected in found["one"].items():
        assert float(expected.abs().max()) > 0, part
        error = float((found["many"][part] - expected).abs().max() / expected.abs().max())
        assert error < 2e-5, (part, error)


def test_heads_that_do_not_divide_are_refused() -> None:
    class Three:
        """Of a process group, only its size matters here."""

        def size(self) -> int:
            return 3

    for name in ("llama", "nemotron_h"):
        model = small_model(name)
        install(model)
        with pytest.raises(ConfigError, match="3 ranks do not divide the model's 4 attention heads"):
            parallelize(model, Three())  # type: ignore[arg-type]
    model = small_model("nemotron_h")
    with pytest.raises(ConfigError, match="cannot spread attention 'sdpa'"):
        parallelize(model, Three())  # type: ignore[arg-type]
