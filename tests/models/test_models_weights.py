"""Whole weights: the plain model's names and values, with adapters merged, whole or split over processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanoalign.models.adapters import merge_adapter
from nanoalign.models.loading import load_model
from nanoalign.models.weights import changed_share, whole_weights
from tests.models.weights_worker import KINDS, adapted, plain

ROOT = Path(__file__).parents[2]


def state(model):
    """Tied weights once, under their first name."""
    found, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_without_adapters_they_are_the_models_own(kind):
    model = plain(kind)
    found, expected = dict(whole_weights(model)), state(model)
    assert found.keys() == expected.keys()
    assert all(found[name].data_ptr() == tensor.data_ptr() for name, tensor in expected.items())


def test_the_builtin_hybrid_with_its_persistent_buffers():
    model = load_model("builtin:miniature-base")
    model.register_buffer("seen", torch.tensor([3]))
    model.register_buffer("scratch", torch.tensor([4]), persistent=False)
    assert dict(whole_weights(model)).keys() == model.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_merged_as_peft_merges_them(kind, dtype):
    """In bfloat16 within the last bit: the sum is rounded once, where peft rounds the product too."""
    model = adapted(kind, dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = dict(whole_weights(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    expected = state(merge_adapter(model))
    assert found.keys() == expected.keys()
    changed = 0
    for name, tensor in expected.items():
        changed += not torch.equal(tensor, plain(kind).to(dtype).state_dict()[name])
        assert found[name].dtype == tensor.dtype
        rtol, atol = (2**-7, 1e-2) if dtype == torch.bfloat16 else (1e-6, 1e-7)
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=atol)
    assert changed >= 6


def test_a_process_that_does_not_want_them_gets_none():
    assert not list(whole_weights(plain("hybrid"), want=False))


def test_split_over_processes_they_are_those_of_one():
    worker = Path(__file__).with_name("weights_worker.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, str(worker)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]


def test_a_step_below_bfloat16s_resolution_changes_nothing_that_an_engine_sees(tmp_path):
    from safetensors.torch import save_file

    weights = torch.full((4, 5), 0.5)
    for name, step in (("before", 0.0), ("small", 1e-4), ("large", 1e-2)):
        (tmp_path / name).mkdir()
        save_file({"a": weights, "b": weights + step, "scale": torch.tensor(1.0)}, tmp_path / name / "x.safetensors")
    before = tmp_path / "before"
    assert changed_share(before, tmp_path / "small", torch.float32) == 20 / 41
    assert changed_share(before, tmp_path / "small", torch.bfloat16) == 0
    assert changed_share(before, tmp_path / "large", torch.bfloat16) == 20 / 41
