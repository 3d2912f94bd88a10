"""Triton kernels for CUDA behind the functions of :mod:`models.mamba2`: mamba-ssm's scan and fla's convolution.

Both come from wheels without compiled CUDA. They are chosen explicitly, ``install(model, kernels="triton")``, and only
after :func:`verify` has compared them with the torch functions on this device.
"""

import sys
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import ConfigError, IsolationError
from models.mamba2 import causal_conv, ssd_scan


def _mamba_scan() -> Callable[..., Any]:
    if "selective_scan_cuda" not in sys.modules:  # mamba_ssm imports its Mamba-1 extension, absent from pure wheels
        sys.modules["selective_scan_cuda"] = types.ModuleType("selective_scan_cuda")
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return mamba_chunk_scan_combined


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
    y, state = _mamba_scan()(
        x_BTHP.contiguous(), dt_BTH, A_H, input_BTGN.to(dtype).contiguous(), output_BTGN.to(dtype).contiguous(), chunk,
        D=D_H, initial_states=initial_BHPN, seq_idx=seq_idx, return_final_states=True,
    )  # fmt: skip
    return y, state.float()


def triton_conv(
    x_BTD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    previous_BKD: Tensor | None = None,
    document_BT: Tensor | None = None,
) -> Tensor:
    """:func:`models.mamba2.causal_conv` by flash-linear-attention's Triton kernel (without earlier inputs)."""
    if previous_BKD is not None:
        return causal_conv(x_BTD, weight_DK, bias_D, previous_BKD, document_BT)
    from fla.modules.convolution import causal_conv1d

    if document_BT is None:
        return causal_conv1d(x_BTD.contiguous(), weight_DK, bias_D)[0]
    batch, length = x_BTD.shape[:2]
    runs = document_BT.expand(batch, length)
    first = F.pad(runs[:, 1:] != runs[:, :-1], (1, 0), value=True).flatten().nonzero().flatten()
    bounds = F.pad(first, (0, 1), value=batch * length)
    return causal_conv1d(x_BTD.reshape(1, batch * length, -1), weight_DK, bias_D, cu_seqlens=bounds)[0].view_as(x_BTD)


def verify(device: torch.device, tolerance: float = 0.02) -> dict[str, float]:
    """Compares both kernels with the torch functions on a small pack: outputs, gradients, and what crosses documents.

    Returns the relative differences.

    Raises:
        ConfigError: there is no CUDA device, or a kernel cannot be imported.
        IsolationError: a kernel differs by more than bf16 explains, or lets one document change another.
    """
    if device.type != "cuda":
        raise ConfigError(f"kernels=triton: needs a CUDA device, the model is on {device}")
    try:
        _mamba_scan()
        import fla.modules.convolution  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"kernels=triton: needs mamba-ssm (its Triton part) and flash-linear-attention: {error}"
        ) from error
    length, heads, channels, groups, size, dtype = 300, 4, 64, 2, 64, torch.bfloat16
    draw = torch.Generator(device).manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype, generator=draw)

    x, inputs, outputs = (
        noise(1, length, heads, channels),
        noise(1, length, groups, size),
        noise(1, length, groups, size),
    )
    dt, A = F.softplus(noise(1, length, heads).float() - 2), -torch.arange(1.0, heads + 1, device=device)
    document = (torch.arange(length, device=device) >= 137).long().unsqueeze(0)
    weight, bias = noise(heads * channels, 4).float(), noise(heads * channels).float()

    def scan(function: Callable[..., tuple[Tensor, Tensor]], value: Tensor) -> Tensor:
        return function(value, dt, A, inputs, outputs, 128, document_BT=document)[0]

    def conv(function: Callable[..., Tensor], value: Tensor) -> Tensor:
        return function(value.flatten(2), weight, bias, document_BT=document)

    found = {}
    for name, run, ours, theirs in (("scan", scan, ssd_scan, triton_scan), ("conv", conv, causal_conv, triton_conv)):
        results = []
        for function in (ours, theirs):
            value = x.clone().requires_grad_()
            y = run(function, value)
            (grad,) = torch.autograd.grad(y.float().square().sum(), value)
            results.append((y.detach().float(), grad.float()))
        for part, a, b in zip(("output", "gradient"), *results):
            found[f"{name}.{part}"] = float((a - b).norm() / a.norm())
        loud = torch.where(document.bool()[..., None, None], x, x * 100)
        leak = float((run(theirs, loud)[:, 137:].float() - results[1][0][:, 137:]).abs().max())
        if leak > 0 or max(found[f"{name}.output"], found[f"{name}.gradient"]) > tolerance:
            raise IsolationError(f"Triton {name}: differs from torch by {found}, and crosses documents by {leak:.2e}")
    return found
