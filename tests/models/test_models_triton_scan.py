"""The Triton scan against torch's: on a GPU where there is one, else through Triton's interpreter, else skipped."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanoalign.models.chunks import PackLayout
from nanoalign.models.kernels import scan, triton_scan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="Triton is not installed (it comes with torch's CUDA builds)")

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def drawn(batch: int, tokens: int, heads: int, head_dim: int, groups: int, size: int) -> Inputs:
    """Channels, time steps, A, D and an initial state."""
    draw = torch.Generator(DEVICE).manual_seed(tokens)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE, generator=draw)

    channels, steps = (
        noise(batch, tokens, heads * head_dim + 2 * groups * size),
        F.softplus(noise(batch, tokens, heads)),
    )
    return channels, steps, -3 * noise(heads).abs(), noise(heads), noise(batch, heads, head_dim, size)


def documents(*lengths: int) -> PackLayout:
    sizes = torch.tensor(lengths, device=DEVICE)
    return PackLayout(torch.repeat_interleave(sizes).unsqueeze(0))


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 2),
    st.lists(st.integers(1, 90), min_size=1, max_size=3),
    st.sampled_from([(2, 16, 1, 16), (4, 8, 2, 8), (4, 24, 4, 40), (32, 8, 1, 8)]),
    st.booleans(),
    st.booleans(),
)
def test_outputs_and_gradients(batch: int, lengths: list[int], shape: tuple[int, ...], goes_on: bool, masked: bool):
    _, head_dim, _, size = shape
    channels, steps, A, D, initial = drawn(batch, sum(lengths), *shape)
    mask = (torch.arange(sum(lengths), device=DEVICE) >= 2).expand(batch, -1) if masked else None
    inputs = [channels, steps, A, D, *([initial] if goes_on else [])]
    results = []
    for function in (scan, triton_scan):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        state = leaves[4] if goes_on else None
        y, last = function(*leaves[:4], (head_dim, size, 16), state, documents(*lengths), mask)
        grads = torch.autograd.grad([y, last], leaves, [torch.cos(y.detach()), torch.sin(last.detach())])
        results.append([y.detach(), last.detach(), *grads])
    for want, got in zip(*results):
        assert float((want - got).norm()) < 2e-4 * float(want.norm()) + 1e-5


def test_rows_of_one_document_each():
    channels, steps, A, D, _ = drawn(3, 70, 2, 16, 1, 16)
    for want, got in zip(scan(channels, steps, A, D, (16, 16, 32)), triton_scan(channels, steps, A, D, (16, 16, 32))):
        assert torch.allclose(want, got, rtol=1e-4, atol=1e-4)


def test_strong_decays_overflow_nowhere():
    channels, steps, A, D, _ = drawn(1, 70, 2, 16, 1, 16)
    channels.requires_grad_()
    y, _ = triton_scan(channels, steps * 50, A * 20, D, (16, 16, 32), None, documents(3, 67))
    (grad,) = torch.autograd.grad(y.sum(), channels)
    assert bool(y.isfinite().all() and grad.isfinite().all())


@pytest.mark.parametrize("before", [(1,), (63, 64), (40, 90)])
def test_a_document_has_the_same_bits_wherever_it_lies(before: tuple[int, ...]):
    """Outputs and gradients, whatever lies before and behind it: even a plain NaN."""
    channels, steps, A, D, _ = drawn(1, 100, 2, 16, 1, 16)
    loud = torch.full((1, sum(before), channels.shape[2]), torch.nan, device=DEVICE)
    found = []
    for lengths, x, dt in (
        ((100,), channels, steps),
        ((*before, 100), torch.cat([loud, channels], 1), torch.cat([loud[..., :2].abs(), steps], 1)),
    ):
        x = x.clone().requires_grad_()
        y, last = triton_scan(x, dt, A, D, (16, 16, 32), None, documents(*lengths))
        slope = torch.zeros_like(y)
        slope[:, -100:] = torch.cos(y[:, -100:]).detach()
        (grad,) = torch.autograd.grad(y, x, slope)
        found.append((y[:, -100:].detach(), last.detach(), grad[:, -100:]))
    for alone, packed in zip(*found):
        assert torch.equal(alone, packed)


def test_a_pack_in_two_calls_is_the_pack():
    """The state after one call starts the next, to the last bit where the first ends with a chunk."""
    channels, steps, A, D, _ = drawn(1, 150, 2, 16, 1, 16)
    shape = (16, 16, 32)
    whole, last = triton_scan(channels, steps, A, D, shape, None, documents(20, 130))
    cut = 20 + 64
    first, state = triton_scan(channels[:, :cut], steps[:, :cut], A, D, shape, None, documents(20, 64))
    rest, end = triton_scan(channels[:, cut:], steps[:, cut:], A, D, shape, state, documents(66))
    assert torch.equal(torch.cat([first, rest], 1), whole) and torch.equal(end, last)


def test_strides_of_every_kind():
    """A row of one token may have any stride, and torch calls it contiguous; a state may come in bf16, transposed."""
    channels, steps, A, D, initial = drawn(3, 1, 2, 16, 1, 16)
    channels = channels.as_strided(channels.shape, (channels.shape[2], 999, 1))
    initial = initial.bfloat16().transpose(2, 3)
    assert channels.is_contiguous() and not initial.is_contiguous()
    for want, got in zip(*(function(channels, steps, A, D, (16, 16, 32), initial) for function in (scan, triton_scan))):
        assert torch.allclose(want, got, rtol=1e-4, atol=1e-4)
