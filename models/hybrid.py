"""This suite's Mamba-2 path inside transformers' hybrid models: NemotronH, Bamba, GraniteMoeHybrid, FalconH1.

:func:`install` gives the mixers of one model object another class, with the same parameters and a forward built on
:mod:`models.mamba2`, and lets its decoder read packs (:mod:`models.packed_attention`). Nothing happens at import, other
models in the process stay as they are, and a saved model is a plain transformers model.

Departure from transformers 5.17: NemotronH's time step is limited by ``config.time_step_limit``, as in NVIDIA's
training code and in vLLM. transformers raises it to ``time_step_min`` in training and prefill but not in decoding:
there the two disagree, and smaller steps get no gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.bamba.modeling_bamba import BambaMixer
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Mixer
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridMambaLayer
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer

from nanoalign.models.chunks import PackLayout, pack_layout
from nanoalign.models.kernels import TORCH, Kernels, KernelSet, choose_kernels
from nanoalign.models.lowrank import project
from nanoalign.models.mamba2 import conv_step, split_channels, ssd_step
from nanoalign.models.packed_attention import isolate, unisolate


class Mamba2Path:
    """The forward that all four mixers share; the classes below define where they differ."""

    layer_idx: int
    num_heads: int
    head_dim: int
    n_groups: int
    ssm_state_size: int
    intermediate_size: int
    conv_dim: int
    conv_kernel_size: int
    chunk_size: int
    time_step_limit: tuple[float, float]
    in_proj: nn.Module
    conv1d: nn.Conv1d
    norm: nn.Module
    out_proj: nn.Module
    A_log: Tensor
    D: Tensor
    dt_bias: Tensor
    kernels: KernelSet = TORCH

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Cache | None = None,
        attention_mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """(B, T, hidden) to (B, T, hidden); ``attention_mask`` (B, T) marks padding with 0, ``seq_idx`` documents."""
        gate, x_BTD, dt = self.parts(self.project(hidden_states))
        dt_BTH = self._steps(dt)
        layer = None
        if cache_params is not None and cache_params.has_previous_state(self.layer_idx):
            layer = cache_params.layers[self.layer_idx]
        if layer is not None and hidden_states.shape[1] == 1 and not layer.record_past:
            y = self._decode(x_BTD[:, 0], dt_BTH[:, 0], layer)
        else:
            y = self._scan(x_BTD, dt_BTH, cache_params, layer, attention_mask, seq_idx)
        return self.out_proj(self.gate(y.flatten(2), gate).to(hidden_states.dtype))

    def project(self, hidden_states: Tensor) -> Tensor:
        """(B, T, hidden) to gate, convolution channels and time steps side by side."""
        return project(self.in_proj, hidden_states)

    def parts(self, projected: Tensor) -> tuple[Tensor, ...]:
        """Gate, the convolution's channels, and time steps before their bias, of :meth:`project`'s output."""
        return projected.split([self.intermediate_size, self.conv_dim, self.num_heads], dim=-1)

    def segment(
        self,
        x_BTD: Tensor,
        dt: Tensor,
        previous_BKD: Tensor | None,
        state_BHPN: Tensor | None,
        documents: PackLayout | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Convolution and scan of a segment of a longer sequence, from :meth:`parts`.

        The convolution's inputs before the segment and the state that enters it belong to document 0; None for both at
        the start. Returns y (B, T, heads x channels), and the two for the next segment.
        """
        last_BKD = x_BTD[:, -(self.conv_kernel_size - 1) :].clone()
        x_BTD = self._convolve(x_BTD, previous_BKD, documents)
        y, state_BHPN = self._recur(x_BTD, self._steps(dt), state_BHPN, documents, None)
        return y, last_BKD, state_BHPN

    def gate(self, y: Tensor, gate: Tensor) -> Tensor:
        """What goes into ``out_proj``."""
        return self.norm(y, gate)

    def _steps(self, dt: Tensor) -> Tensor:
        """Time steps in fp32."""
        dt_BTH = F.softplus(dt.float() + self.dt_bias.float())
        low, high = self._time_step_limit()
        return dt_BTH.clamp(low, high) if low > 0 or high < float("inf") else dt_BTH

    def _time_step_limit(self) -> tuple[float, float]:
        return self.time_step_limit

    def _decode(self, x_BD: Tensor, dt_BH: Tensor, layer: Any) -> Tensor:
        x_BD, conv_state = conv_step(x_BD, layer.conv_states[0], self.conv1d.weight.squeeze(1), self.conv1d.bias)
        x, inputs, outputs = split_channels(F.silu(x_BD), self.num_heads, self.head_dim, self.ssm_state_size)
        A_H = -torch.exp(self.A_log.float())
        y, state = ssd_step(x, dt_BH, A_H, inputs, outputs, layer.recurrent_states[0], self.D)
        if torch.compiler.is_compiling():  # CUDA graphs want the cache's tensors to keep their addresses
            layer.conv_states[0].copy_(conv_state)
            layer.recurrent_states[0].copy_(state)
        else:
            layer.conv_states[0], layer.recurrent_states[0] = conv_state, state
        return y.unsqueeze(1)

    def _scan(
        self,
        x_BTD: Tensor,
        dt_BTH: Tensor,
        cache: Cache | None,
        layer: Any,
        mask_BT: Tensor | None,
        seq_idx_BT: Tensor | None,
    ) -> Tensor:
        """Many tokens at once, to (B, T, heads x channels). ``layer``: the cache's where it holds earlier tokens."""
        if mask_BT is not None:
            x_BTD = x_BTD * mask_BT.unsqueeze(-1).to(x_BTD.dtype)
        documents = None if seq_idx_BT is None else pack_layout(seq_idx_BT)
        previous_BKD = None if layer is None else layer.conv_states[0].transpose(1, 2).clone()
        state = None if layer is None else layer.recurrent_states[0]
        if cache is not None:
            cache.update_conv_state(x_BTD.transpose(1, 2), self.layer_idx, conv_kernel_size=self.conv_kernel_size)
        x_BTD = self._convolve(x_BTD, previous_BKD, documents)
        y, state = self._recur(x_BTD, dt_BTH, state, documents, mask_BT)
        if cache is not None:
            cache.update_recurrent_state(state, self.layer_idx)
        return y

    def _convolve(self, x_BTD: Tensor, previous_BKD: Tensor | None, documents: PackLayout | None) -> Tensor:
        runs_BT = None if documents is None else documents.runs_BT
        weight_DK, bias_D = self.conv1d.weight.squeeze(1), self.conv1d.bias
        return self.kernels.conv(x_BTD, weight_DK, bias_D, previous_BKD, runs_BT, silu=True)

    def _recur(
        self,
        x_BTD: Tensor,
        dt_BTH: Tensor,
        state_BHPN: Tensor | None,
        documents: PackLayout | None,
        mask_BT: Tensor | None,
        heads: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """The scan of the mixer's ``heads``, whose channels and time steps come in, with its last state."""
        A_H, D_H = -torch.exp(self.A_log[heads].float()), self.D[heads].float()
        shape = (self.head_dim, self.ssm_state_size, self.chunk_size)
        return self.kernels.scan(x_BTD, dt_BTH, A_H, D_H, shape, state_BHPN, documents, mask_BT)


class NemotronHPath(Mamba2Path, NemotronHMamba2Mixer):
    """NemotronH: the time step's limit as trained (see the module's docstring), and a norm over groups."""

    def gate(self, y: Tensor, gate: Tensor) -> Tensor:
        if self.kernels is TORCH:
            return self.norm(y, gate)
        return self.kernels.gated_norm(y, gate, self.norm.weight, self.norm.group_size, self.norm.variance_epsilon)

    def _time_step_limit(self) -> tuple[float, float]:
        return self.config.time_step_limit


class BambaPath(Mamba2Path, BambaMixer):
    """Bamba."""


class GraniteMoeHybridPath(Mamba2Path, GraniteMoeHybridMambaLayer):
    """Granite 4."""


class FalconH1Path(Mamba2Path, FalconH1Mixer):
    """Falcon H1: multipliers around the input projection, and a norm that is optional."""

    def project(self, hidden_states: Tensor) -> Tensor:
        return self.in_proj(hidden_states * self.ssm_in_multiplier) * self.mup_vector

    def gate(self, y: Tensor, gate: Tensor) -> Tensor:
        return self.norm(y, gate) if self.mamba_rms_norm else y * F.silu(gate)


PATHS: dict[type[nn.Module], type[nn.Module]] = {
    NemotronHMamba2Mixer: NemotronHPath,
    BambaMixer: BambaPath,
    GraniteMoeHybridMambaLayer: GraniteMoeHybridPath,
    FalconH1Mixer: FalconH1Path,
}
"""transformers' mixers and the classes that replace them."""


def install(model: PreTrainedModel, kernels: Kernels = "torch") -> int:
    """Puts this suite's Mamba-2 path and packed attention into ``model``, in place. Idempotent.

    Parameters, their names and the saved form stay as they are. ``kernels`` chooses those of :mod:`models.kernels` for
    training and prefill: ``triton`` (CUDA, verified first), ``torch``, or ``auto``, the faster that runs here. Returns
    the number of mixers on this path: 0 for a model of attention alone, which still learns to read packs.

    Raises:
        ConfigError: Triton kernels are requested and cannot run here.
        IsolationError: they differ from the torch functions, or leak.
    """
    for module in model.modules():
        module.__class__ = PATHS.get(type(module), type(module))
    count = use_kernels(model, kernels, model.device)
    isolate(model)
    return count


def use_kernels(model: nn.Module, kernels: Kernels, device: torch.device) -> int:
    """Sets the kernels of every mixer on this path, for training and prefill on ``device``. Returns their number.

    Raises:
        ConfigError: Triton kernels are requested and cannot run here.
        IsolationError: they differ from the torch functions, or leak.
    """
    mixers = [module for module in model.modules() if isinstance(module, Mamba2Path)]
    sizes = [(mixer.head_dim, mixer.ssm_state_size, mixer.num_heads // mixer.n_groups) for mixer in mixers]
    chosen = {size: choose_kernels(kernels, device, size) for size in sorted(set(sizes))}
    for mixer, size in zip(mixers, sizes):
        mixer.kernels = chosen[size]
    return len(mixers)


def uninstall(model: PreTrainedModel) -> None:
    """Gives the model transformers' own forward back."""
    originals = {path: mixer for mixer, path in PATHS.items()}
    for module in model.modules():
        if isinstance(module, Mamba2Path):
            del module.kernels
        module.__class__ = originals.get(type(module), type(module))
    unisolate(model)
