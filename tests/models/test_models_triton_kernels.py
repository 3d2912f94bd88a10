"""Our Triton kernels against torch: on a GPU where there is one, else through Triton's interpreter, else skipped."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.models.kernels import gated_norm
from nanoalign.models.mamba2 import causal_conv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="Triton is not installed (it comes with torch's CUDA builds)")

from nanoalign.models import triton_conv  # noqa: E402
from nanoalign.models.triton_conv import CausalConv  # noqa: E402
from nanoalign.models.triton_kernels import GatedNorm, SquaredReLU  # noqa: E402
from nanoalign.models.triton_loss import losses_and_grads  # noqa: E402


@pytest.fixture(scope="module")
def short_stretches():
    """Programs of few tokens, so that a few tokens have stretches inside one document, across two and at both ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_conv, "FORWARD_TOKENS", 8)
        patch.setattr(triton_conv, "BACKWARD_TOKENS", 16)
        yield


def check_convolution(
    batch: int,
    tokens: int,
    channels: int,
    silu: bool,
    earlier: bool,
    packed: bool,
    width: int = 4,
    frozen: bool = False,
):
    torch.manual_seed(tokens)
    wide = torch.randn(batch, tokens, channels + 9, device=DEVICE, requires_grad=True)
    weight, bias = (torch.randn(channels, *more, device=DEVICE, requires_grad=not frozen) for more in ((width,), ()))
    previous = torch.randn(batch, 3, channels, device=DEVICE, requires_grad=not frozen) if earlier else None
    document = (torch.rand(batch, tokens, device=DEVICE) < 0.1).long().cumsum(1) if packed else None
    if document is not None and not earlier:
        document = document - document[:, :1]
    inputs = [tensor for tensor in (wide, weight, bias, previous) if tensor is not None and tensor.requires_grad]
    slope = torch.randn(batch, tokens, channels + 1, device=DEVICE)[..., 1:]
    results = []
    for function in (causal_conv, CausalConv.apply):
        y = function(wide[..., 4 : 4 + channels], weight, bias, previous, document, silu)
        results.append((y.detach(), *torch.autograd.grad(y, inputs, slope)))
    for want, got in zip(*results, strict=True):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 2),
    tokens=st.integers(1, 60),
    channels=st.sampled_from([1, 5, 520]),
    silu=st.booleans(),
    earlier=st.booleans(),
    packed=st.booleans(),
    width=st.sampled_from([2, 4]),
    frozen=st.booleans(),
)
def test_convolution(short_stretches: None, **case):
    check_convolution(**case)


def test_convolution_of_shipped_stretches():
    check_convolution(batch=1, tokens=300, channels=5, silu=True, earlier=True, packed=True, width=4, frozen=False)


@pytest.mark.parametrize(("weight_learns", "bias_learns"), [(True, False), (False, True), (False, False)])
def test_convolution_gives_the_gradients_asked_for(short_stretches: None, weight_learns: bool, bias_learns: bool):
    x = torch.randn(1, 20, 3, device=DEVICE, requires_grad=True)
    weight = torch.randn(3, 4, device=DEVICE, requires_grad=weight_learns)
    bias = torch.randn(3, device=DEVICE, requires_grad=bias_learns)
    wants = []
    for function in (causal_conv, CausalConv.apply):
        function(x, weight, bias, None, None, True).square().sum().backward()
        wants.append([tensor.grad for tensor in (x, weight, bias)])
        x.grad = weight.grad = bias.grad = None
    for want, got in zip(*wants, strict=True):
        assert want is got is None or torch.allclose(want, got, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("before", [1, 15, 22])
def test_a_documents_bits_do_not_hang_on_its_place(short_stretches: None, before: int, dtype: torch.dtype):
    torch.manual_seed(before)
    length, after, channels = 51, 9, 5
    x, slope = (torch.randn(1, before + length + after, channels, device=DEVICE, dtype=dtype) for _ in range(2))
    weight, bias = torch.randn(channels, 4, device=DEVICE, dtype=dtype), torch.randn(channels, device=DEVICE)
    sizes = torch.tensor([before, length, after], device=DEVICE)
    document = torch.arange(3, device=DEVICE).repeat_interleave(sizes).unsqueeze(0)
    previous = torch.randn(1, 3, channels, device=DEVICE, dtype=dtype)
    part = slice(before, before + length)
    pack, alone = x.clone().requires_grad_(), x[:, part].clone().requires_grad_()
    packed = CausalConv.apply(pack, weight, bias, previous, document, True)[:, part]
    single = CausalConv.apply(alone, weight, bias, None, None, True)
    assert torch.equal(packed, single)
    (grad,) = torch.autograd.grad(packed, pack, slope[:, part])
    assert torch.equal(grad[:, part], *torch.autograd.grad(single, alone, slope[:, part]))
    assert not grad[:, :before].any() and not grad[:, before + length :].any()


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
    assert torch.allclose(losses_and_grads(slopes, labels, -100), want, atol=1e-5)
    assert torch.allclose(slopes, torch.autograd.grad(want.sum(), logits)[0], atol=1e-5)
