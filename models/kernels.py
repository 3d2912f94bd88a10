"""Triton kernels for CUDA behind the functions of :mod:`models.mamba2`: mamba-ssm's scan and kernels of our own.

All come from wheels without compiled CUDA. They are used only after :func:`verify` has compared them with the torch
functions on this device.
"""

import logging
import os
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.errors import ConfigError, IsolationError
from models.mamba2 import causal_conv, ssd_scan

Kernels = Literal["auto", "torch", "triton"]
log = logging.getLogger(__name__)


def gated_norm(y: Tensor, gate: Tensor, weight: Tensor, group: int, eps: float) -> Tensor:
    """``rms_norm(y * silu(gate)) * weight`` over groups of ``group`` channels, in fp32; (..., D) in y's dtype."""
    gated = y.float() * F.silu(gate.float())
    normed = F.rms_norm(gated.unflatten(-1, (-1, group)), (group,), eps=eps).flatten(-2)
    return (normed * weight.float()).to(y.dtype)


def squared_relu(x: Tensor) -> Tensor:
    """``relu(x) ** 2``."""
    return F.relu(x).square()


def mamba_ssm() -> Any:
    """mamba-ssm's module of the scan, with the shipped configurations.

    Raises:
        ImportError: they, or triton, are not there.
    """
    if "selective_scan_cuda" not in sys.modules:  # mamba_ssm imports its Mamba-1 extension, absent from pure wheels
        sys.modules["selective_scan_cuda"] = types.ModuleType("selective_scan_cuda")
    # Triton keeps what its autotuners find beside the kernels it compiled, so that only the first process searches.
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    from mamba_ssm.ops.triton import ssd_combined

    from models.tuned import load

    load()
    return ssd_combined


def triton_scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    input_BTGN: Tensor,
    output_BTGN: Tensor,
    chunk: int,
    D_H: Tensor | None = None,
    initial_BHPN: Tensor | None = None,
    document_BT: Tensor | None = None,
    mask_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`models.mamba2.ssd_scan` by mamba-ssm's Triton kernels."""
    dt_BTH = dt_BTH.float() if mask_BT is None else dt_BTH.float() * mask_BT.unsqueeze(-1)
    batch, length = dt_BTH.shape[:2]
    seq_idx = None if document_BT is None else document_BT.int().expand(batch, length).contiguous()
    dtype = x_BTHP.dtype
    inputs = (x_BTHP, dt_BTH, A_H, input_BTGN.to(dtype), output_BTGN.to(dtype), D_H, initial_BHPN, seq_idx)
    tokens = _SavedScan.apply(chunk, *inputs)
    return _Scan.apply(*tokens, chunk, *(None if tensor is None else tensor.detach() for tensor in inputs))


class _SavedScan(torch.autograd.Function):
    """Saves what the scan's backward pass reads, before the scan runs, so that a checkpoint's recomputation ends here.

    Returns two tensors without memory, which stand for the scan's outputs until :class:`_Scan` computes them.
    """

    @staticmethod
    def forward(ctx: Any, chunk: int, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.chunk = chunk
        ctx.save_for_backward(*inputs)
        x, _, _, entered = inputs[:4]
        assert x is not None and entered is not None
        batch, _, heads, channels = x.shape
        state = x.new_empty((), dtype=torch.float32).expand(batch, heads, channels, entered.shape[-1])
        return x.new_empty(()).expand(x.shape), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, entered, read, D, initial, seq_idx = ctx.saved_tensors
        backward = mamba_ssm()._mamba_chunk_scan_combined_bwd
        dx, ddt, dA, d_entered, d_read, dD, _, _, d_initial = backward(
            grad_y, x, dt, A, entered, read, x, ctx.chunk,  # of the output it takes the shape only: there is no gate
            D=D, initial_states=initial, dfinal_states=grad_state.contiguous(), seq_idx=seq_idx,
        )  # fmt: skip
        return None, dx, ddt, dA, d_entered, d_read, dD, d_initial, None


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, state: Tensor, chunk: int, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        x, dt, A, entered, read, D, initial, seq_idx = inputs
        forward = mamba_ssm()._mamba_chunk_scan_combined_fwd
        out = forward(x, dt, A, entered, read, chunk, D=D, initial_states=initial, seq_idx=seq_idx)
        return out[0], out[5].float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        return grad_y, grad_state, None, *[None] * 8


def triton_conv(
    x_BTD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    previous_BKD: Tensor | None = None,
    document_BT: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """:func:`models.mamba2.causal_conv` in one pass."""
    from models.triton_kernels import CausalConv

    if previous_BKD is not None:
        previous_BKD = previous_BKD.to(x_BTD.dtype)
    return CausalConv.apply(x_BTD, weight_DK, bias_D, previous_BKD, document_BT, silu)


def triton_gated_norm(y: Tensor, gate: Tensor, weight: Tensor, group: int, eps: float) -> Tensor:
    """:func:`gated_norm` in one pass."""
    from models.triton_kernels import GatedNorm

    return GatedNorm.apply(y, gate, weight, group, eps)


def triton_squared_relu(x: Tensor) -> Tensor:
    """:func:`squared_relu` in one pass."""
    from models.triton_kernels import SquaredReLU

    return SquaredReLU.apply(x)


@dataclass(frozen=True)
class KernelSet:
    """The functions that a Mamba-2 mixer and a tiled block run on."""

    scan: Callable[..., tuple[Tensor, Tensor]]
    conv: Callable[..., Tensor]
    gated_norm: Callable[[Tensor, Tensor, Tensor, int, float], Tensor]
    squared_relu: Callable[[Tensor], Tensor]


TORCH = KernelSet(ssd_scan, causal_conv, gated_norm, squared_relu)
TRITON = KernelSet(triton_scan, triton_conv, triton_gated_norm, triton_squared_relu)


def choose(kernels: Kernels, device: torch.device) -> KernelSet:
    """The kernels for a device. ``auto`` takes Triton's on CUDA where they can be had and agree with torch's.

    Raises:
        ConfigError: ``triton`` is asked for and cannot run here.
        IsolationError: it differs from the torch functions, or leaks.
    """
    if kernels == "torch" or (kernels == "auto" and device.type != "cuda"):
        return TORCH
    try:
        verify(device)
    except (ConfigError, IsolationError) as error:
        if kernels == "triton":
            raise
        log.warning("kernels: auto takes the slower torch functions: %s", error)
        return TORCH
    return TRITON


@cache
def verify(device: torch.device, tolerance: float = 0.02) -> dict[str, float]:
    """Compares the kernels with the torch functions on a small pack: outputs, gradients, and what crosses documents.

    Returns the relative differences.

    Raises:
        ConfigError: there is no CUDA device, or a kernel cannot be imported.
        IsolationError: a kernel differs by more than bf16 explains, or lets one document change another.
    """
    if device.type != "cuda":
        raise ConfigError(f"kernels=triton: needs a CUDA device, the model is on {device}")
    try:
        mamba_ssm()
        import models.triton_kernels  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"kernels=triton: needs mamba-ssm (its Triton part) and triton: {error}") from error
    found = {}
    for name, outputs, inputs, leak in _trials(device):
        for part, (a, b) in {"output": outputs, "gradient": inputs}.items():
            found[f"{name}.{part}"] = float((a - b).norm() / a.norm())
        wrong = max(found[f"{name}.output"], found[f"{name}.gradient"])
        if leak > 0 or not wrong <= tolerance:
            raise IsolationError(f"Triton {name}: differs from torch by {found}, and crosses documents by {leak:.2e}")
    return found


def _trials(device: torch.device) -> Iterator[tuple[str, tuple[Tensor, Tensor], tuple[Tensor, Tensor], float]]:
    """For every kernel: its name, outputs and gradients of all inputs (torch's, Triton's), and what crosses documents.

    The scan and the convolution continue an earlier stretch, as tiles do (see :mod:`models.tiling`). Lengths divide by
    16, as tiles' do, so that nothing is compiled for this check alone.
    """
    length, start, heads, channels, groups, size, dtype = 2048, 937, 32, 80, 2, 128, torch.bfloat16
    draw = torch.Generator(device).manual_seed(0)

    def noise(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype, generator=draw)

    x = noise(1, length, heads, channels)
    document = (torch.arange(length, device=device) >= start).long().unsqueeze(0)
    A = -torch.arange(1.0, heads + 1, device=device)
    scanned = [x, F.softplus(noise(1, length, heads).float() - 2), noise(1, length, groups, size),
               noise(1, length, groups, size), noise(heads, dtype=torch.float32),
               noise(1, heads, channels, size, dtype=torch.float32)]  # fmt: skip
    convolved = [x.flatten(2), noise(heads * channels, 4), noise(heads * channels), noise(1, 3, heads * channels)]
    normed = [x.flatten(2), noise(1, length, heads * channels), noise(heads * channels)]

    def scan(function: Any) -> Callable[..., Tensor]:
        def run(x: Tensor, dt: Tensor, inputs: Tensor, outputs: Tensor, D: Tensor, initial: Tensor) -> Tensor:
            y, state = function(x, dt, A, inputs, outputs, 128, D, initial, document)
            return torch.cat([y.float().flatten(), state.flatten()])

        return run

    def conv(function: Any) -> Callable[..., Tensor]:
        return lambda x, weight, bias, previous: function(x, weight, bias, previous, document, silu=True)

    def norm(function: Any) -> Callable[..., Tensor]:
        return lambda y, gate, weight: function(y, gate, weight, 2 * channels, 1e-5)

    makers: dict[str, tuple[Callable[[Any], Callable[..., Tensor]], list[Tensor]]] = {
        "scan": (scan, scanned),
        "conv": (conv, convolved),
        "gated_norm": (norm, normed),
        "squared_relu": (lambda function: function, [x]),
    }
    for name, (make, inputs) in makers.items():
        outputs, grads = [], []
        for kernels in (TORCH, TRITON):
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            y = make(getattr(kernels, name))(*leaves)
            grad = torch.autograd.grad(y.float().square().sum(), leaves)
            outputs.append(y.detach().float())
            grads.append(torch.cat([(part / part.norm()).float().flatten() for part in grad]))
        leak = 0.0
        if name in ("scan", "conv"):
            loud = inputs[0].clone()
            loud[:, :start] *= 100
            run, width = make(getattr(TRITON, name)), heads * channels
            first, second = (
                run(value, *inputs[1:]).flatten()[start * width : length * width] for value in (inputs[0], loud)
            )
            leak = float((first.float() - second.float()).abs().max())
        yield name, (outputs[0], outputs[1]), (grads[0], grads[1]), leak
