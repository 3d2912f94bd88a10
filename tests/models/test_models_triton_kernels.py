"""Our Triton kernels against torch: on a GPU where there is one, else through Triton's interpreter, else skipped."""

import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.kernels import gated_norm
from models.mamba2 import causal_conv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined
pytest.importorskip("triton", reason="Triton is not installed (it comes with torch's CUDA builds)")

from models.triton_kernels import CausalConv, GatedNorm, SquaredReLU  # noqa: E402
from models.triton_loss import losses_and_slopes  # noqa: E402


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 2), st.integers(1, 140), st.integers(1, 140), st.booleans(), st.booleans(), st.booleans())
def test_convolution(batch: int, tokens: int, channels: int, silu: bool, earlier: bool, packed: bool):
    torch.manual_seed(tokens)
    wide = torch.randn(batch, tokens, channels + 9, device=DEVICE, requires_grad=True)
    weight, bias = (torch.randn(channels, *more, device=DEVICE, requires_grad=True) for more in ((4,), ()))
    previous = torch.randn(batch, 3, channels, device=DEVICE, requires_grad=True) if earlier else None
    document = (torch.rand(batch, tokens, device=DEVICE) < 0.2).long().cumsum(1) if packed else None
    if document is not None:
        document = document - document[:, :1]
    inputs = [tensor for tensor in (wide, weight, bias, previous) if tensor is not None]
    slope = torch.randn(batch, tokens, channels, device=DEVICE)
    results = []
    for function in (causal_conv, CausalConv.apply):
        y = function(wide[..., 4 : 4 + channels], weight, bias, previous, document, silu)
        results.append((y.detach(), *torch.autograd.grad(y, inputs, slope)))
    for want, got in zip(*results):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "groups", "group"), [(1, 1, 7), (37, 3, 40), (16, 2, 128)])
def test_gated_norm(rows: int, groups: int, group: int):
    torch.manual_seed(0)
    channels = groups * group
    y, wide = torch.randn(1, rows, channels, device=DEVICE), torch.randn(1, rows, channels + 5, device=DEVICE)
    inputs = [tensor.requires_grad_() for tensor in (y, wide, torch.randn(channels, device=DEVICE))]
    slope = torch.randn(1, rows, channels, device=DEVICE)
    results = []
    for function in (gated_norm, GatedNorm.apply):
        out = function(y, wide[..., 2 : 2 + channels], inputs[2], group, 1e-5)
        results.append((out.detach(), *torch.autograd.grad(out, inputs, slope)))
    for want, got in zip(*results):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)


def test_squared_relu():
    x = torch.randn(3, 5000, device=DEVICE, requires_grad=True)
    for a, b in zip(
        (SquaredReLU.apply(x), *torch.autograd.grad(SquaredReLU.apply(x).sum(), x)),
        (F.relu(x).square(), *torch.autograd.grad(F.relu(x).square().sum(), x)),
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("vocabulary", [5, 4096, 9001])
def test_losses_and_slopes(vocabulary: int):
    torch.manual_seed(0)
    logits = (torch.randn(7, vocabulary, device=DEVICE) * 4).requires_grad_()
    labels = torch.randint(0, vocabulary, (7,), device=DEVICE)
    labels[2], labels[0] = -100, vocabulary - 1
    want = F.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
    slopes = logits.detach().clone()
    assert torch.allclose(losses_and_slopes(slopes, labels, -100), want, atol=1e-5)
    assert torch.allclose(slopes, torch.autograd.grad(want.sum(), logits)[0], atol=1e-5)
