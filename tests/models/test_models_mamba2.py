"""The chunked scan and the convolution against the plain recurrence, token by token in fp64."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanoalign.models.chunks import document_runs
from nanoalign.models.mamba2 import causal_conv, conv_step, ssd_scan, ssd_step


def recurrence(x, dt, A, inputs, outputs, D, initial, starts, mask):
    """The definition: one state update a token, all in fp64; ``starts`` marks the tokens before which it is zeroed."""
    x, dt, A, inputs, outputs, D = (tensor.double() for tensor in (x, dt, A, inputs, outputs, D))
    repeats = x.shape[2] // inputs.shape[2]
    inputs, outputs = inputs.repeat_interleave(repeats, 2), outputs.repeat_interleave(repeats, 2)
    state, rows = initial.double(), []
    for t in range(x.shape[1]):
        state = state * (~starts[:, t])[:, None, None, None]
        step = (dt[:, t] * mask[:, t, None])[..., None]
        state = state * torch.exp(step * A[:, None])[..., None] + (step * x[:, t])[..., None] * inputs[:, t, :, None]
        rows.append((state * outputs[:, t, :, None]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(rows, 1), state


@st.composite
def problems(draw):
    batch, heads, groups = draw(st.integers(1, 2)), 4, draw(st.sampled_from([1, 2, 4]))
    length, chunk = draw(st.integers(1, 40)), draw(st.sampled_from([1, 4, 7, 16]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(batch, length, heads, 3)
    dt = F.softplus(torch.randn(batch, length, heads) * draw(st.sampled_from([0.5, 3.0])))
    A = -torch.exp(torch.randn(heads) * 2)
    inputs, outputs = torch.randn(2, batch, length, groups, 5)
    starts = torch.rand(batch, length) < draw(st.sampled_from([0.0, 0.1, 0.6]))
    starts[:, 0] = False
    mask = (torch.rand(batch, length) < draw(st.sampled_from([1.0, 0.7]))).float()
    initial = torch.randn(batch, heads, 3, 5) * draw(st.sampled_from([0.0, 1.0]))
    return x, dt, A, inputs, outputs, torch.randn(heads), initial, starts, mask, chunk


@settings(max_examples=80, deadline=None)
@given(problems())
def test_scan_is_the_recurrence(problem):
    *tensors, initial, starts, mask, chunk = problem
    tensors = [tensor.requires_grad_() for tensor in tensors]
    initial = initial.requires_grad_()
    want, want_state = recurrence(*tensors, initial, starts, mask)
    documents = starts.cumsum(1)
    x, dt, A, inputs, outputs, D = tensors
    y, state = ssd_scan(x, dt, A, inputs, outputs, chunk, D, initial, documents, mask)
    scale = max(1.0, want.abs().max().item(), want_state.abs().max().item())
    assert (y - want).abs().max() < 2e-6 * scale
    assert (state - want_state).abs().max() < 2e-6 * scale

    weight, state_weight = torch.randn_like(y), torch.randn_like(state)
    leaves = [*tensors, initial]
    wanted = torch.autograd.grad((want * weight).sum() + (want_state * state_weight).sum(), leaves)
    got = torch.autograd.grad((y * weight).sum() + (state * state_weight).sum(), leaves)
    for name, a, b in zip(["x", "dt", "A", "inputs", "outputs", "D", "initial"], got, wanted):
        assert (a - b).abs().max() <= 1e-4 * max(1.0, float(b.abs().max())), name  # sums of cancelling terms


def test_scan_over_many_chunks_goes_block_by_block():
    torch.manual_seed(0)
    length = 700  # 175 chunks, in three blocks
    x, A, D = torch.randn(1, length, 2, 3), -torch.rand(2), torch.ones(2)
    dt = torch.rand(1, length, 2)
    inputs, outputs = torch.randn(2, 1, length, 1, 4)
    starts = torch.zeros(1, length, dtype=torch.bool)
    starts[0, [130, 131, 512]] = True
    mask, initial = torch.ones(1, length), torch.randn(1, 2, 3, 4)
    want, want_state = recurrence(x, dt, A, inputs, outputs, D, initial, starts, mask)
    y, state = ssd_scan(x, dt, A, inputs, outputs, 4, D, initial, starts.cumsum(1))
    assert torch.allclose(y.double(), want, atol=1e-5)
    assert torch.allclose(state.double(), want_state, atol=1e-5)


def test_a_strong_decay_early_in_a_chunk_costs_no_precision_later():
    torch.manual_seed(0)
    length = 64
    x, inputs, outputs = torch.randn(1, length, 1, 2), *torch.randn(2, 1, length, 1, 2)
    dt = torch.full((1, length, 1), 1e-3)
    dt[:, 3] = 3e4  # an exponent of -30,000: sums of fp32 logarithms would keep 0.002 of the later ones
    want, _ = recurrence(
        x, dt, -torch.ones(1), inputs, outputs, torch.zeros(1), torch.zeros(1, 1, 2, 2),
        torch.zeros(1, length, dtype=torch.bool), torch.ones(1, length),
    )  # fmt: skip
    y, _ = ssd_scan(x, dt, -torch.ones(1), inputs, outputs, 64)
    assert ((y - want).abs() / want.abs().clamp(min=1))[:, 4:].max() < 1e-5


def test_nothing_crosses_a_document_start():
    """Exactly: whatever one document holds, the next one's bits stay as they are."""
    torch.manual_seed(0)
    x, inputs, outputs = torch.randn(1, 24, 2, 3), *torch.randn(2, 1, 24, 1, 4)
    dt, A, documents = torch.rand(1, 24, 2), -torch.rand(2), (torch.arange(24) >= 13).long()[None]
    weight = torch.randn(6, 4)
    clean = ssd_scan(x, dt, A, inputs, outputs, 8, document_BT=documents)
    conv = causal_conv(x.flatten(2), weight, document_BT=documents)
    x[:, :13] *= 1e30
    loud = ssd_scan(x, dt, A, inputs, outputs, 8, document_BT=documents)
    assert torch.equal(clean[0][:, 13:], loud[0][:, 13:])
    assert torch.equal(clean[1], loud[1])
    assert torch.equal(conv[:, 13:], causal_conv(x.flatten(2), weight, document_BT=documents)[:, 13:])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**31), st.sampled_from([0.0, 0.3]))
def test_convolution_is_torchs_on_each_document(length, width, seed, share):
    torch.manual_seed(seed)
    x, weight, bias = torch.randn(2, length, 6), torch.randn(6, width), torch.randn(6)
    starts = (torch.rand(length) < share).nonzero().flatten().tolist()
    documents = torch.zeros(1, length, dtype=torch.int64)
    for start in starts:
        documents[:, start:] += 1
    cuts = sorted({0, *starts, length})
    pieces = [
        F.conv1d(F.pad(x[:, a:b].transpose(1, 2), (width - 1, 0)), weight[:, None], bias, groups=6).transpose(1, 2)
        for a, b in pairwise(cuts)
    ]
    assert torch.allclose(causal_conv(x, weight, bias, document_BT=documents), torch.cat(pieces, 1), atol=1e-5)


def test_steps_continue_a_scan():
    torch.manual_seed(0)
    length, prompt, width = 20, 7, 4
    x, dt, A, D = torch.randn(2, length, 4, 3), torch.rand(2, length, 4), -torch.rand(4), torch.randn(4)
    inputs, outputs = torch.randn(2, 2, length, 2, 5)
    whole, last = ssd_scan(x, dt, A, inputs, outputs, 8, D)
    _, state = ssd_scan(x[:, :prompt], dt[:, :prompt], A, inputs[:, :prompt], outputs[:, :prompt], 8, D)
    flat, weight, bias = x.flatten(2), torch.randn(12, width), torch.randn(12)
    conv = causal_conv(flat, weight, bias)
    conv_state = flat[:, prompt - width : prompt].transpose(1, 2)
    later = causal_conv(flat[:, prompt:], weight, bias, previous_BKD=conv_state.transpose(1, 2))
    assert torch.allclose(later, conv[:, prompt:], atol=1e-6)
    for t in range(prompt, length):
        y, state = ssd_step(x[:, t], dt[:, t], A, inputs[:, t], outputs[:, t], state, D)
        assert torch.allclose(y, whole[:, t], atol=1e-5)
        z, conv_state = conv_step(flat[:, t], conv_state, weight, bias)
        assert torch.allclose(z, conv[:, t], atol=1e-6)
    assert torch.allclose(state, last, atol=1e-5)


@pytest.mark.parametrize("values, want", [([5, 5, 2, 2, 5], [0, 0, 1, 1, 2]), ([3], [0]), ([0, 1, 2], [0, 1, 2])])
def test_runs_never_share_a_number(values: list[int], want: list[int]):
    runs: Tensor = document_runs(torch.tensor([values]))
    assert runs.tolist() == [want]


def test_scan_follows_bf16_inputs():
    torch.manual_seed(0)
    x, inputs, outputs = torch.randn(1, 50, 2, 4), *torch.randn(2, 1, 50, 1, 8)
    dt, A = torch.rand(1, 50, 2), -torch.rand(2)
    want, _ = ssd_scan(x, dt, A, inputs, outputs, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = ssd_scan(x.bfloat16(), dt, A, inputs.bfloat16(), outputs.bfloat16(), 16)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert (y - want).norm() < 0.01 * want.norm()
