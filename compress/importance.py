"""How much each neuron, channel and head matters, from the activations of one forward pass over the calibration rows.

An activation's magnitude is averaged over a document, and the L2 norm of these means is taken over the documents
(Minitron, arXiv 2407.14679). Mamba-2 heads are scored nested (arXiv 2504.11409): first a head's channels, over all
heads, then each head by the channels that stay. Heads compete within their group only, so that every group keeps as
many.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nanoalign.compress.calibrate import Row, inputs
from nanoalign.compress.shapes import Widths, own_widths
from nanoalign.compress.surgery import Kept
from nanoalign.models.size import head_dim, mamba_sizes

NORMS = ("norm", "input_layernorm", "post_attention_layernorm")
"""Of a block, before a mixer or an MLP: what they give out is the embedding's activation."""


@dataclass(frozen=True)
class Scores:
    """Larger matters more; on the CPU, in fp64. Blocks by their numbers."""

    hidden: Tensor
    """(D,) embedding channels, over all blocks."""
    neurons: dict[int, Tensor]
    """(F,) MLP neurons."""
    heads: dict[int, Tensor]
    """(H,) query heads."""
    mamba: dict[int, Tensor]
    """(H, P) channels of Mamba-2 heads."""

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        parts = {
            f"{part}.{block}": tensor
            for part in ("neurons", "heads", "mamba")
            for block, tensor in getattr(self, part).items()
        }
        save_file({"hidden": self.hidden, **parts}, path)

    @classmethod
    def load(cls, path: Path) -> "Scores":
        from safetensors.torch import load_file

        stored = load_file(path)
        parts: dict[str, dict[int, Tensor]] = {"neurons": {}, "heads": {}, "mamba": {}}
        for name, tensor in stored.items():
            part, _, block = name.partition(".")
            if block:
                parts[part][int(block)] = tensor
        return cls(stored["hidden"], **parts)


class _Means:
    """Squares of document means, summed over documents, by name."""

    def __init__(self) -> None:
        self.sums: dict[Any, Tensor] = {}
        self.document_T = torch.empty(0, dtype=torch.long)
        self.lengths_S = torch.empty(0)

    def begin(self, row: Row, device: torch.device) -> None:
        """The documents of the row that comes."""
        self.document_T = row["seq_idx"][0].to(device).long()
        self.lengths_S = torch.bincount(self.document_T).float()

    def add(self, name: Any, magnitude_TC: Tensor) -> None:
        """``magnitude_TC``: the row's activations without signs."""
        sums_SC = torch.zeros(len(self.lengths_S), magnitude_TC.shape[1], device=magnitude_TC.device)
        sums_SC.index_add_(0, self.document_T, magnitude_TC.float())
        squares_C = (sums_SC / self.lengths_S.unsqueeze(1)).double().square().sum(0)
        self.sums[name] = self.sums.get(name, 0) + squares_C


def measure(model: PreTrainedModel, rows: Sequence[Row], on_row: Callable[[int], None] = lambda done: None) -> Scores:
    """One forward pass over the rows; activations are aggregated as they come and never kept."""
    config, means = model.config.to_dict(), _Means()
    sizes = own_widths(config)
    hooks = [hook for number, block in enumerate(model.base_model.layers) for hook in _watch(block, number, config,
                                                                                           means)]  # fmt: skip
    try:
        with torch.inference_mode():
            for number, row in enumerate(rows, 1):
                means.begin(row, model.device)
                model.base_model(**inputs(row, model.device), use_cache=False)
                on_row(number)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, dict[int, Tensor]] = {"hidden": {}, "neurons": {}, "heads": {}, "mamba": {}}
    for (part, block, _), squares in means.sums.items():
        found[part][block] = found[part].get(block, 0) + squares.cpu()
    mamba = {block: sums.view(-1, sizes.mamba_head_dim).sqrt() for block, sums in found["mamba"].items()}
    hidden = torch.stack([*found["hidden"].values()]).sum(0).sqrt()
    neurons, heads = ({block: sums.sqrt() for block, sums in found[part].items()} for part in ("neurons", "heads"))
    return Scores(hidden, neurons, heads, mamba)


def _watch(block: nn.Module, number: int, config: dict[str, Any], means: _Means) -> list[Any]:
    """Hooks on one block's norms and projections."""
    hooks = []
    for name, module in block.named_modules():
        last = name.rpartition(".")[2]

        def output(_: nn.Module, args: Any, out: Tensor, at: str = name) -> None:
            means.add(("hidden", number, at), out[0].abs())

        def neurons(_: nn.Module, args: Any, at: str = name) -> None:
            means.add(("neurons", number, at), args[0][0].abs())

        def heads(_: nn.Module, args: Any, at: str = name) -> None:
            means.add(("heads", number, at), args[0][0].unflatten(-1, (-1, head_dim(config))).float().norm(dim=-1))

        def mamba(_: nn.Module, args: Any, out: Tensor, at: str = name) -> None:
            inner = mamba_sizes(config)[0]
            means.add(("mamba", number, at), out[0, :, inner : 2 * inner].abs())

        if name in NORMS:
            hooks.append(module.register_forward_hook(output))
        elif last == "down_proj":
            hooks.append(module.register_forward_pre_hook(neurons))
        elif last == "o_proj":
            hooks.append(module.register_forward_pre_hook(heads))
        elif last == "in_proj":
            hooks.append(module.register_forward_hook(mamba))
    return hooks


def choose(scores: Scores, config: dict[str, Any], blocks: Sequence[int], sizes: Widths) -> Kept:
    """The best of each part, as many as ``sizes`` says; ties go to the first."""
    mamba_channels = {b: best(score.square().sum(0), sizes.mamba_head_dim) for b, score in scores.mamba.items()}
    mamba_heads = {
        block: best(score[:, mamba_channels[block]].square().sum(1), sizes.mamba_num_heads, config["n_groups"])
        for block, score in scores.mamba.items()
    }
    groups = config.get("num_key_value_heads") or config["num_attention_heads"]
    return Kept(
        blocks=blocks,
        hidden=best(scores.hidden, sizes.hidden_size),
        neurons={block: best(score, sizes.intermediate_size) for block, score in scores.neurons.items()},
        heads={block: best(score, sizes.num_attention_heads, groups) for block, score in scores.heads.items()},
        mamba_heads=mamba_heads,
        mamba_channels=mamba_channels,
    )


def best(scores: Tensor, count: int, groups: int = 1) -> list[int]:
    """The places of the ``count`` largest of (N,) scores, ascending, ``count / groups`` of each of ``groups`` runs of
    neighbours."""
    grouped = scores.view(groups, -1)
    order = grouped.argsort(dim=1, descending=True, stable=True)[:, : count // groups]
    first = torch.arange(groups).unsqueeze(1) * grouped.shape[1]
    return sorted((order + first).flatten().tolist())
