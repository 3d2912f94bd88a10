"""The Mamba-2 path of this suite inside transformers' hybrid models.

:func:`install` gives the mixers of one model object another class with the same parameters and a forward built on
:mod:`models.mamba2`, and a hook on its decoder that reads packed inputs. Nothing happens at import, other models in the
process stay as they are, and a saved model is a plain transformers model.

Departure from transformers 5.17: NemotronH's time step is limited by ``config.time_step_limit``, as in NVIDIA's training
code and in vLLM. transformers raises it to ``time_step_min`` in training and prefill, but not in decoding: there the
two modes differ, and smaller steps get no gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer

from common.errors import IsolationError
from models.mamba2 import causal_conv, conv_step, document_runs, ssd_scan, ssd_step


class Mamba2Mixer(NemotronHMamba2Mixer):
    """NemotronH's mixer with its forward on :mod:`models.mamba2`."""

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Cache | None = None,
        attention_mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """(B, T, hidden) to (B, T, hidden); ``attention_mask`` (B, T) marks padding with 0, ``seq_idx`` documents."""
        projected = self.in_proj(hidden_states)
        gate, x_BTD, dt = projected.split([self.intermediate_size, self.conv_dim, self.num_heads], dim=-1)
        dt_BTH = F.softplus(dt.float() + self.dt_bias.float()).clamp(*self.config.time_step_limit)
        A_H = -torch.exp(self.A_log.float())
        decoding = cache_params is not None and cache_params.has_previous_state(self.layer_idx)
        if decoding and hidden_states.shape[1] == 1 and not cache_params.layers[self.layer_idx].record_past:
            y = self._decode(x_BTD[:, 0], dt_BTH[:, 0], A_H, cache_params.layers[self.layer_idx])
        else:
            y = self._scan(x_BTD, dt_BTH, A_H, cache_params, decoding, attention_mask, seq_idx)
        return self.out_proj(self.norm(y.flatten(2), gate).to(hidden_states.dtype))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The convolution's output as x (..., H, P), input and output (..., G, N)."""
        sizes = [self.intermediate_size, self.n_groups * self.ssm_state_size, self.n_groups * self.ssm_state_size]
        x, inputs, outputs = F.silu(x).split(sizes, dim=-1)
        by_group = (self.n_groups, self.ssm_state_size)
        return x.unflatten(-1, (self.num_heads, -1)), inputs.unflatten(-1, by_group), outputs.unflatten(-1, by_group)

    def _decode(self, x_BD: Tensor, dt_BH: Tensor, A_H: Tensor, layer: Any) -> Tensor:
        x_BD, conv_state = conv_step(x_BD, layer.conv_states[0], self.conv1d.weight.squeeze(1), self.conv1d.bias)
        x, inputs, outputs = self._split(x_BD)
        y, state = ssd_step(x, dt_BH, A_H, inputs, outputs, layer.recurrent_states[0], self.D)
        layer.conv_states[0].copy_(conv_state)  # in place: the cache's tensors keep their addresses
        layer.recurrent_states[0].copy_(state)
        return y.unsqueeze(1)

    def _scan(
        self,
        x_BTD: Tensor,
        dt_BTH: Tensor,
        A_H: Tensor,
        cache: Cache | None,
        decoding: bool,
        mask_BT: Tensor | None,
        seq_idx_BT: Tensor | None,
    ) -> Tensor:
        if mask_BT is not None:
            x_BTD = x_BTD * mask_BT.unsqueeze(-1).to(x_BTD.dtype)
        document_BT = None if seq_idx_BT is None else document_runs(seq_idx_BT)
        previous_BKD = state = None
        if decoding:
            state = cache.layers[self.layer_idx].recurrent_states[0]
        if cache is not None:
            seen = cache.update_conv_state(
                x_BTD.transpose(1, 2), self.layer_idx, conv_kernel_size=self.conv_kernel_size
            )
            if decoding:
                previous_BKD = seen[:, :, : -x_BTD.shape[1]].transpose(1, 2)
        x_BTD = causal_conv(x_BTD, self.conv1d.weight.squeeze(1), self.conv1d.bias, previous_BKD, document_BT)
        x, inputs, outputs = self._split(x_BTD)
        y, state = ssd_scan(
            x, dt_BTH, A_H, inputs, outputs, self.chunk_size, self.D, state, document_BT=document_BT, mask_BT=mask_BT
        )
        if cache is not None:
            cache.update_recurrent_state(state, self.layer_idx)
        return y


MIXERS: dict[type[nn.Module], type[nn.Module]] = {NemotronHMamba2Mixer: Mamba2Mixer}


def install(model: PreTrainedModel) -> int:
    """Puts this suite's Mamba-2 path into ``model``, in place. Returns the number of mixers that now use it.

    Idempotent; 0 for a model without known mixers, which stays as it is. Parameters, names and the saved form are
    unchanged.
    """
    mixers = [module for module in model.modules() if type(module) in MIXERS]
    for mixer in mixers:
        mixer.__class__ = MIXERS[type(mixer)]
    if mixers:
        model.base_model.register_forward_pre_hook(_read_packing, with_kwargs=True)
    return sum(type(module) in MIXERS.values() for module in model.modules())


def uninstall(model: PreTrainedModel) -> None:
    """Gives the mixers transformers' own forward back."""
    originals = {ours: theirs for theirs, ours in MIXERS.items()}
    for module in model.modules():
        module.__class__ = originals.get(type(module), type(module))
    hooks = model.base_model._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is _read_packing]:
        del hooks[key]


def _read_packing(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Gives attention and mixers one view of the documents in a pack, whichever of the usual inputs tells of them.

    Documents come from ``seq_idx``, from restarts in ``position_ids``, or from ``cu_seq_lens_q``. transformers isolates
    attention by position_ids alone, only without an attention mask and a cache, and mixers by seq_idx alone.
    """
    position_ids, mask, cache = (kwargs.get(key) for key in ("position_ids", "attention_mask", "past_key_values"))
    seq_idx, bounds = kwargs.get("seq_idx"), kwargs.get("cu_seq_lens_q")
    if isinstance(mask, dict) or (cache is not None and cache.get_seq_length() > 0):
        return None
    padded = mask is not None and mask.dim() == 2 and not bool((mask == 1).all())
    if seq_idx is None and bounds is not None:
        length = (args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))).shape[1]
        tokens = torch.arange(length, device=bounds.device)
        seq_idx = torch.bucketize(tokens, bounds.flatten()[1:].long(), right=True).unsqueeze(0)
    if seq_idx is None and position_ids is not None and position_ids.dim() == 2 and not padded:
        seq_idx = (position_ids[:, 1:] != position_ids[:, :-1] + 1).cumsum(1)
        seq_idx = F.pad(seq_idx, (1, 0))
    if seq_idx is None or bool((seq_idx == seq_idx[:, :1]).all()):
        return args, {key: value for key, value in kwargs.items() if key != "seq_idx"}
    if padded or cache is not None:
        raise IsolationError(
            "a pack of several documents came with "
            + ("padding in attention_mask" if padded else "a cache")
            + ": attention cannot keep them apart; pad packs with tokens of their own document, and use no cache"
        )
    starts = document_runs(seq_idx)
    if position_ids is None:
        tokens = torch.arange(seq_idx.shape[1], device=seq_idx.device).expand_as(starts)
        first = torch.where(F.pad(starts[:, 1:] != starts[:, :-1], (1, 0)), tokens, 0).cummax(1).values
        position_ids = tokens - first
    return args, kwargs | {
        "seq_idx": seq_idx,
        "position_ids": position_ids,
        "attention_mask": None,
        "use_cache": False,
    }
