"""Triton kernels for CUDA behind the functions of :mod:`models.mamba2`, and the same in torch.

They need nothing but the Triton that comes with torch, and are used only after :func:`verify_kernels` has compared them
with the torch functions on this device.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nanoalign.common.errors import ConfigError, IsolationError
from nanoalign.models.chunks import PackLayout
from nanoalign.models.deferred import materialize
from nanoalign.models.mamba2 import causal_conv, split_channels, ssd_scan

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


Shape = tuple[int, int, int]
"""Channels of a head, size of the state, and tokens of a chunk (which the Triton scan chooses by itself)."""


def scan(
    channels_BTD: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    D_H: Tensor,
    shape: Shape,
    initial_BHPN: Tensor | None = None,
    documents: PackLayout | None = None,
    mask_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`models.mamba2.ssd_scan` of the convolution's output, x and the state's inputs and outputs side by side.

    Returns y (B, T, H P) in the channels' dtype and the last state (B, H, P, N) in fp32.
    """
    head_dim, size, chunk = shape
    x, inputs, outputs = split_channels(channels_BTD, len(A_H), head_dim, size)
    runs_BT = None if documents is None else documents.runs_BT
    y, state = ssd_scan(x, dt_BTH, A_H, inputs, outputs, chunk, D_H, initial_BHPN, runs_BT, mask_BT)
    return y.flatten(2), state


def triton_scan(
    channels_BTD: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    D_H: Tensor,
    shape: Shape,
    initial_BHPN: Tensor | None = None,
    documents: PackLayout | None = None,
    mask_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`scan` by :mod:`models.triton_scan`."""
    from nanoalign.models.triton_scan import Scan, forward

    dt_BTH = dt_BTH.float() if mask_BT is None else dt_BTH.float() * mask_BT.unsqueeze(-1)
    if initial_BHPN is not None:
        initial_BHPN = initial_BHPN.float().contiguous()
    inputs = (channels_BTD, dt_BTH.contiguous(), A_H, D_H, initial_BHPN, documents, *shape[:2])
    return materialize(lambda: forward(*inputs), *Scan.apply(*inputs))


def triton_conv(
    x_BTD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    previous_BKD: Tensor | None = None,
    document_BT: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """:func:`models.mamba2.causal_conv` in one pass."""
    from nanoalign.models.triton_conv import CausalConv

    if previous_BKD is not None:
        previous_BKD = previous_BKD.to(x_BTD.dtype)
    return CausalConv.apply(x_BTD, weight_DK, bias_D, previous_BKD, document_BT, silu)


def triton_gated_norm(y: Tensor, gate: Tensor, weight: Tensor, group: int, eps: float) -> Tensor:
    """:func:`gated_norm` in one pass."""
    from nanoalign.models.triton_kernels import GatedNorm

    return GatedNorm.apply(y, gate, weight, group, eps)


def triton_squared_relu(x: Tensor) -> Tensor:
    """:func:`squared_relu` in one pass."""
    from nanoalign.models.triton_kernels import SquaredReLU

    return SquaredReLU.apply(x)


@dataclass(frozen=True)
class KernelSet:
    """The functions that a Mamba-2 mixer and a tiled block run on."""

    scan: Callable[..., tuple[Tensor, Tensor]]
    conv: Callable[..., Tensor]
    gated_norm: Callable[[Tensor, Tensor, Tensor, int, float], Tensor]
    squared_relu: Callable[[Tensor], Tensor]


TORCH = KernelSet(scan, causal_conv, gated_norm, squared_relu)
TRITON = KernelSet(triton_scan, triton_conv, triton_gated_norm, triton_squared_relu)


def choose_kernels(kernels: Kernels, device: torch.device, size: tuple[int, int, int] = (80, 128, 16)) -> KernelSet:
    """The kernels for a device. ``auto`` takes Triton's on CUDA where they are available and agree with torch's, for
    mixers of this ``size``: channels of a head, size of the state, heads of a group.

    Raises:
        ConfigError: ``triton`` is requested and cannot run here.
        IsolationError: it differs from the torch functions, or leaks.
    """
    if kernels == "torch" or (kernels == "auto" and device.type != "cuda"):
        return TORCH
    try:
        verify_kernels(device, size)
    except (ConfigError, IsolationError) as error:
        if kernels == "triton":
            raise
        log.warning("kernels: auto takes the slower torch functions: %s", error)
        return TORCH
    return TRITON


@cache
def verify_kernels(
    device: torch.device, size: tuple[int, int, int] = (80, 128, 16), tolerance: float = 0.02
) -> dict[str, float]:
    """Compares the kernels with the torch functions on a small pack in bf16: outputs, gradients, and a packed document
    against itself unpacked, which must agree to the last bit. ``size`` is :func:`choose_kernels`'s.

    Returns the relative differences.

    Raises:
        ConfigError: there is no CUDA device, or no Triton, or the kernels do not run on it.
        IsolationError: a kernel differs by more than bf16 explains, or a document by anything.
    """
    if device.type != "cuda":
        raise ConfigError(f"kernels=triton: needs a CUDA device, the model is on {device}")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"kernels=triton: needs triton, which comes with torch's CUDA builds: {error}") from error
    try:
        trials = list(_trials(device, *size))
    except Exception as error:  # no C compiler, too little shared memory: Triton's errors have no base in common
        raise ConfigError(f"kernels=triton: cannot run here: {type(error).__name__}: {error}") from error
    found = {}
    for name, outputs, inputs, leak in trials:
        for part, (a, b) in {"output": outputs, "gradient": inputs}.items():
            found[f"{name}.{part}"] = float((a - b).norm() / a.norm())
        wrong = max(found[f"{name}.output"], found[f"{name}.gradient"])
        if leak != 0 or not wrong <= tolerance:
            raise IsolationError(f"Triton {name}: differs from torch by {found}, and alone from packed by {leak:.2e}")
    return found


Pair = tuple[Tensor, Tensor]


def _trials(device: torch.device, head_dim: int, size: int, share: int) -> Iterator[tuple[str, Pair, Pair, float]]:
    """For every kernel: its name, outputs and gradients of all inputs (torch's, Triton's), and how far the second
    document, behind a loud one, is from itself alone.

    The scan and the convolution continue an earlier segment, as tiles do (see :mod:`models.tiling`). Lengths divide by
    16, as tiles' do, so that nothing is compiled for this check alone.
    """
    length, start, heads, groups, dtype = 2048, 928, 2 * share, 2, torch.bfloat16
    inner = heads * head_dim
    width = inner + 2 * groups * size
    draw = torch.Generator(device).manual_seed(0)

    def noise(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype, generator=draw)

    document = (torch.arange(length, device=device) >= start).long().unsqueeze(0)
    A = -torch.arange(1.0, heads + 1, device=device)
    channels, y = noise(1, length, width), noise(1, length, inner)
    scanned = [channels, F.softplus(noise(1, length, heads).float() - 2), noise(heads, dtype=torch.float32),
               noise(1, heads, head_dim, size, dtype=torch.float32)]  # fmt: skip
    convolved = [channels, noise(width, 4), noise(width), noise(1, 3, width)]

    def ends(tokens: int) -> PackLayout:
        return PackLayout(document[:, -tokens:])

    def scan(function: Any) -> Callable[..., Tensor]:
        def run(channels: Tensor, dt: Tensor, D: Tensor, initial: Tensor) -> Tensor:
            y, state = function(channels, dt, A, D, (head_dim, size, 128), initial, ends(channels.shape[1]))
            return torch.cat([y.float().flatten(), state.flatten()])

        return run

    def conv(function: Any) -> Callable[..., Tensor]:
        def run(x: Tensor, weight: Tensor, bias: Tensor, previous: Tensor) -> Tensor:
            return function(x, weight, bias, previous, document[:, -x.shape[1] :], silu=True).flatten()

        return run

    def norm(function: Any) -> Callable[..., Tensor]:
        return lambda y, gate, weight: function(y, gate, weight, share * head_dim, 1e-5)

    makers: dict[str, tuple[Callable[[Any], Callable[..., Tensor]], list[Tensor]]] = {
        "scan": (scan, scanned),
        "conv": (conv, convolved),
        "gated_norm": (norm, [y, noise(1, length, inner), noise(inner)]),
        "squared_relu": (lambda function: function, [y]),
    }
    for name, (make, inputs) in makers.items():
        outputs, grads = [], []
        for kernels in (TORCH, TRITON):
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            out = make(getattr(kernels, name))(*leaves)
            grad = torch.autograd.grad(out.float().square().sum(), leaves)
            outputs.append(out.detach().float())
            grads.append(torch.cat([(part / part.norm()).float().flatten() for part in grad]))
        leak = 0.0
        if name in ("scan", "conv"):
            run, each = make(getattr(TRITON, name)), inner if name == "scan" else width
            loud, alone = list(inputs), list(inputs)
            loud[0] = torch.cat([inputs[0][:, :start] * 100, inputs[0][:, start:]], dim=1)
            alone[0] = inputs[0][:, start:]
            if name == "scan":
                alone[1] = inputs[1][:, start:]
            alone[-1] = torch.zeros_like(inputs[-1])
            packed, single = run(*loud)[start * each : length * each], run(*alone)[: (length - start) * each]
            leak = float((packed.float() - single.float()).abs().max())
        yield name, (outputs[0], outputs[1]), (grads[0], grads[1]), leak
