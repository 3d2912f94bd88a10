"""The evaluate stage on a real vLLM: started once, each checkpoint's own weights, figures as by transformers."""

import os
from pathlib import Path

import pytest

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
pytest.importorskip("vllm", reason="vLLM is not installed")

import torch

import nanoalign.rollouts as rollouts
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.config import Mixture
from nanoalign.evaluation import stage
from nanoalign.evaluation.config import EvaluateStage, Suite
from nanoalign.models.loading import load_model, load_tokenizer, resolve, save_model
from nanoalign.rollouts.config import Rollouts

BASE = resolve("builtin:miniature-base")
MIXTURES = {"tests": Mixture.model_validate({"sources": {"miniature:math": {"samples": 12, "split": "test"}}})}


def figures(engine: str, checkpoints: dict[str, Path], folder: Path) -> dict[str, object]:
    folder.mkdir()
    rollouts = {"engine": engine, "max_tokens": 40, "grace": 4, "temperature": 0.0, "batch_size": 12}
    config = EvaluateStage(
        kind="evaluate", of=list(checkpoints), suites=["reasoning"], budget_suite="reasoning", budgets=[4, None],
        rollouts=Rollouts.model_validate(rollouts),
    )  # fmt: skip
    context = StageContext(
        "verdict", folder, checkpoints, "nemotron-nano-v2", 0, None, "cpu", log=StageLog(folder)
    )  # fmt: skip
    return stage.run(config, MIXTURES, context, {"reasoning": Suite(data="tests")})


def test_every_checkpoint_is_measured_with_its_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = load_model(BASE)
    with torch.no_grad():  # a model that no longer knows which digit is which
        other.get_output_embeddings().weight.copy_(other.get_output_embeddings().weight.flip(0))
    save_model(other, load_tokenizer(BASE), tmp_path / "other")
    opened = []
    open_engine = rollouts.open_engine
    monkeypatch.setattr(rollouts, "open_engine", lambda *a, **k: opened.append(a[0].kind) or open_engine(*a, **k))
    checkpoints = {"base": BASE, "other": tmp_path / "other"}
    by_vllm = figures("vllm", checkpoints, tmp_path / "vllm")
    assert by_vllm == figures("hf", checkpoints, tmp_path / "hf")
    base, changed = ([value for key, value in by_vllm.items() if key.startswith(name)] for name in checkpoints)
    assert base != changed, "the second checkpoint was measured with the first one's weights"
    assert opened == ["vllm", "hf", "hf"]
