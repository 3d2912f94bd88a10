"""Tiled losses and MLPs equal the whole ones, forward and backward."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.common.errors import ConfigError
from nanoalign.models.hybrid import install
from nanoalign.models.loss import causal_loss, linear_cross_entropy
from nanoalign.models.tiling import tile
from tests.models.small import VOCAB, small_model


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 1.0]))
def test_loss_is_torchs_cross_entropy(tokens: int, tile: int, seed: int, ignored: float):
    torch.manual_seed(seed)
    hidden, weight = torch.randn(tokens, 7, requires_grad=True), torch.randn(23, 7, requires_grad=True)
    labels = torch.randint(0, 23, (tokens,)).masked_fill(torch.rand(tokens) < ignored, -100)
    want = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    got = linear_cross_entropy(hidden, weight, labels, tile)
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)
    for a, b in zip(torch.autograd.grad(3 * got, [hidden, weight]), torch.autograd.grad(3 * want, [hidden, weight])):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, labels = torch.randn(9, 4, requires_grad=True), torch.randn(5, 4), torch.arange(9) % 5
    linear_cross_entropy(hidden, weight, labels, 4).backward()
    assert weight.grad is None and hidden.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, labels, 4).requires_grad
    with pytest.raises(ValueError, match=r"got \(9, 4\), \(5, 4\), \(8,\)"):
        linear_cross_entropy(hidden, weight, labels[:8], 4)


def test_autocast_multiplies_in_bf16():
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32, requires_grad=True), torch.randn(100, 32, requires_grad=True)
    labels = torch.randint(0, 100, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_cross_entropy(hidden, weight, labels, 16)
        want = F.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum")
    assert torch.allclose(got, want, rtol=1e-5)
    for a, b in zip(torch.autograd.grad(got, [hidden, weight]), torch.autograd.grad(want, [hidden, weight])):
        assert (a - b).norm() < 0.01 * b.norm()


@pytest.mark.parametrize("name", ["nemotron_h", "llama"])
def test_a_models_loss_and_gradients_with_everything_tiled(name: str):
    whole = small_model(name)
    install(whole)
    tiled = copy.deepcopy(whole).train()
    tiled.gradient_checkpointing_enable({"use_reentrant": False})
    assert tile(tiled, 7) == tile(tiled, 8) > 0
    torch.manual_seed(0)
    ids = torch.randint(3, VOCAB, (2, 30))
    labels = ids.masked_fill(torch.rand(2, 30) < 0.3, -100)
    want = whole(ids, labels=labels, use_cache=False).loss
    got = causal_loss(tiled, labels, tile=9, input_ids=ids, use_cache=False)
    assert torch.allclose(got, want, rtol=1e-5)
    assert torch.allclose(
        causal_loss(tiled, labels, num_items=10, input_ids=ids) * 10, want * (labels[:, 1:] != -100).sum()
    )
    want.backward()
    got.backward()
    for (parameter, a), (_, b) in zip(whole.named_parameters(), tiled.named_parameters()):
        assert (a.grad - b.grad).norm() < 1e-5 * a.grad.norm() + 1e-7, parameter


def test_models_that_scale_their_logits_are_refused():
    model = small_model("falcon_h1")
    model.config.lm_head_multiplier = 0.5
    ids = torch.arange(6)[None]
    with pytest.raises(ConfigError, match="lm_head_multiplier"):
        causal_loss(model, ids, input_ids=ids)


def test_triton_kernels_need_a_gpu():
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        install(small_model("nemotron_h"), kernels="triton")
