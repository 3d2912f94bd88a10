"""What every tensor of a checkpoint becomes, and the pruned checkpoint, written tensor by tensor.

A tensor is a slice of its original along its axes; nothing is averaged or scaled. Names that no rule knows are errors,
so that nothing is left out in silence.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoalign.common.errors import CheckpointError
from nanoalign.common.files import atomic_folder, write_json
from nanoalign.compress.shapes import Widths, is_hybrid, pruned_config
from nanoalign.models.footprint import count
from nanoalign.models.model_folder import INDEX, TensorHeader, extra_files, read_config, read_tensors
from nanoalign.models.size import head_dim

if TYPE_CHECKING:
    from torch import Tensor

NAME = re.compile(r"(?P<before>(?:[a-z_]+\.)?layers\.)(?P<block>\d+)\.(?P<tail>.+)")
SHARD_BYTES = 4 * 10**9
"""Bytes of a file of weights: as much of the new model is in memory at a time."""

HYBRID: dict[str, tuple[str | None, ...]] = {
    "embeddings.weight": (None, "hidden"),
    "norm_f.weight": ("hidden",),
    "lm_head.weight": (None, "hidden"),
    "norm.weight": ("hidden",),
    "mixer.in_proj.weight": ("projected", "hidden"),
    "mixer.in_proj.bias": ("projected",),
    "mixer.conv1d.weight": ("convolved", None, None),
    "mixer.conv1d.bias": ("convolved",),
    "mixer.A_log": ("mamba_heads",),
    "mixer.D": ("mamba_heads",),
    "mixer.dt_bias": ("mamba_heads",),
    "mixer.norm.weight": ("channels",),
    "mixer.out_proj.weight": ("hidden", "channels"),
    "mixer.out_proj.bias": ("hidden",),
    "mixer.up_proj.weight": ("neurons", "hidden"),
    "mixer.up_proj.bias": ("neurons",),
    "mixer.down_proj.weight": ("hidden", "neurons"),
    "mixer.down_proj.bias": ("hidden",),
    "mixer.q_proj.weight": ("queries", "hidden"),
    "mixer.k_proj.weight": (None, "hidden"),
    "mixer.v_proj.weight": (None, "hidden"),
    "mixer.o_proj.weight": ("hidden", "queries"),
}
PLAIN: dict[str, tuple[str | None, ...]] = {
    "embed_tokens.weight": (None, "hidden"),
    "norm.weight": ("hidden",),
    "lm_head.weight": (None, "hidden"),
    "input_layernorm.weight": ("hidden",),
    "post_attention_layernorm.weight": ("hidden",),
    "self_attn.q_proj.weight": ("queries", "hidden"),
    "self_attn.q_proj.bias": ("queries",),
    "self_attn.k_proj.weight": (None, "hidden"),
    "self_attn.k_proj.bias": (None,),
    "self_attn.v_proj.weight": (None, "hidden"),
    "self_attn.v_proj.bias": (None,),
    "self_attn.o_proj.weight": ("hidden", "queries"),
    "self_attn.o_proj.bias": ("hidden",),
    "self_attn.q_norm.weight": (None,),
    "self_attn.k_norm.weight": (None,),
    "mlp.gate_proj.weight": ("neurons", "hidden"),
    "mlp.gate_proj.bias": ("neurons",),
    "mlp.up_proj.weight": ("neurons", "hidden"),
    "mlp.up_proj.bias": ("neurons",),
    "mlp.down_proj.weight": ("hidden", "neurons"),
    "mlp.down_proj.bias": ("hidden",),
}
"""The axes of each tensor, by what is pruned along them: None is left whole."""


@dataclass(frozen=True)
class Kept:
    """What stays of a model: numbers along each axis, ascending. What is not named stays whole."""

    blocks: Sequence[int]
    """Numbers of the blocks, in the model's order."""
    hidden: Sequence[int] | None = None
    """Embedding channels."""
    neurons: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """By block: MLP neurons."""
    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """By block: query heads, equally many of each group."""
    mamba_heads: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """By block: Mamba-2 heads, equally many of each group."""
    mamba_channels: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """By block: channels of every Mamba-2 head."""


@dataclass(frozen=True)
class Fate:
    """What became of one tensor of the original."""

    name: str
    shape: tuple[int, ...]
    becomes: str | None
    """Its name in the pruned model; None: its block is gone."""
    new_shape: tuple[int, ...] = ()
    axes: tuple[Sequence[int] | None, ...] = ()
    """What stays along each axis; None: all."""

    def as_dict(self) -> dict[str, Any]:
        """For the table of tensors."""
        return {"tensor": self.name, "shape": list(self.shape), "becomes": self.becomes, "to": list(self.new_shape)}


def fates(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], kept: Kept) -> list[Fate]:
    """What each tensor becomes, in the order of ``shapes``, which are the original's.

    Raises:
        CheckpointError: a name that no rule knows, or a shape that the config does not give it.
    """
    rules, new_number = HYBRID if is_hybrid(config) else PLAIN, {old: new for new, old in enumerate(kept.blocks)}
    found, axes = [], _Axes(config, kept)
    for name, shape in shapes.items():
        match = NAME.fullmatch(name)
        tail = match["tail"] if match else name.removeprefix("model.").removeprefix("backbone.")
        if tail not in rules:
            raise CheckpointError(f"{name}: no rule says how a tensor of this name is pruned ({config['model_type']})")
        block = int(match["block"]) if match else None
        if block is not None and block not in new_number:
            found.append(Fate(name, tuple(shape), None))
            continue
        rule = rules[tail]
        if len(rule) != len(shape):
            raise CheckpointError(f"{name}: expected {len(rule)} axes, has shape {list(shape)}")
        stays = tuple(axes.of(axis, block) for axis in rule)
        for axis, places, size in zip(rule, stays, shape):
            if places is not None and size != axes.size(axis):
                raise CheckpointError(f"{name}: {axis} is {axes.size(axis)} in config.json, has shape {list(shape)}")
        becomes = name if match is None else f"{match['before']}{new_number[int(match['block'])]}.{tail}"
        new_shape = tuple(size if places is None else len(places) for places, size in zip(stays, shape))
        found.append(Fate(name, tuple(shape), becomes, new_shape, stays))
    return found


class _Axes:
    """From what is kept to places along an axis, which may hold several channels of a head."""

    def __init__(self, config: Mapping[str, Any], kept: Kept) -> None:
        self.config, self.kept = config, kept
        self.head_dim = head_dim(config)
        self.heads, self.channels = config.get("mamba_num_heads", 0), config.get("mamba_head_dim", 0)
        self.shared = 2 * config.get("n_groups", 0) * config.get("ssm_state_size", 0)
        self.known: dict[tuple[str, int | None], Sequence[int] | None] = {}

    def size(self, axis: str | None) -> int:
        """The original's places along an axis."""
        inner = self.heads * self.channels
        sizes = {
            "hidden": self.config["hidden_size"], "neurons": self.config.get("intermediate_size", 0),
            "queries": self.config["num_attention_heads"] * self.head_dim, "mamba_heads": self.heads,
            "channels": inner, "convolved": inner + self.shared, "projected": 2 * inner + self.shared + self.heads,
        }  # fmt: skip
        return sizes[str(axis)]

    def of(self, axis: str | None, block: int | None) -> Sequence[int] | None:
        """The places that stay; None: all."""
        if axis is None:
            return None
        key = axis, None if axis == "hidden" else block
        if key not in self.known:
            places = self._places(axis, block)
            self.known[key] = None if places is None or len(places) == self.size(axis) else places
        return self.known[key]

    def _places(self, axis: str, block: int | None) -> Sequence[int] | None:
        if axis == "hidden":
            return self.kept.hidden
        assert block is not None
        if axis == "neurons":
            return self.kept.neurons.get(block)
        if axis == "queries":
            heads = self.kept.heads.get(block)
            return None if heads is None else [h * self.head_dim + c for h in heads for c in range(self.head_dim)]
        heads = self.kept.mamba_heads.get(block, range(self.heads))
        channels = self.kept.mamba_channels.get(block, range(self.channels))
        if axis == "mamba_heads":
            return heads
        inner = [head * self.channels + channel for head in heads for channel in channels]
        if axis == "channels":
            return inner
        width = self.heads * self.channels
        convolved = [*inner, *range(width, width + self.shared)]
        if axis == "convolved":
            return convolved
        steps = [2 * width + self.shared + head for head in heads]
        return [*inner, *(width + place for place in convolved), *steps]


def slice_tensor(tensor: "Tensor", fate: Fate) -> "Tensor":
    """What stays of a tensor, contiguous and on its device."""
    import torch

    for axis, places in enumerate(fate.axes):
        if places is not None:
            tensor = tensor.index_select(axis, torch.tensor(places, device=tensor.device))
    return tensor.contiguous()


def write_pruned(source: Path, kept: Kept, sizes: Widths, folder: Path) -> list[Fate]:
    """Writes the pruned checkpoint of ``source`` atomically: config.json, weights, and every other file as it is.

    One tensor of the original is read at a time; at most :data:`SHARD_BYTES` of the new ones are in memory. Returns
    what became of each tensor.

    Raises:
        CheckpointError: as :func:`fates`; or the tensors together are not those of the new config.json.
    """
    config, headers = read_config(source), read_tensors(source)
    table = fates(config, {name: header.shape for name, header in headers.items()}, kept)
    new = pruned_config(config, kept.blocks, sizes)
    _check_complete(new, table, source)
    shards = list(_shards(table, headers))
    with atomic_folder(folder) as temporary:
        for name, path in extra_files(source).items():
            shutil.copyfile(path, temporary / name)
        text = json.dumps(new, indent=2, ensure_ascii=False)  # with Infinity, as hub configs have it
        (temporary / "config.json").write_text(text + "\n", encoding="utf-8")
        places: dict[str | None, str] = {}
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
            _write_shard(shard, headers, temporary / file)
            places |= {fate.becomes: file for fate in shard}
        if len(shards) > 1:
            total = sum(_new_bytes(fate, headers) for fate in table if fate.becomes)
            write_json(temporary / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
        read_tensors(temporary)
    return table


def _check_complete(config: Mapping[str, Any], table: Sequence[Fate], source: Path) -> None:
    """The pruned tensors are as large as the config says. A tied head may be stored or not."""
    import math

    expected = count(config)
    found = sum(math.prod(fate.new_shape) for fate in table if fate.becomes)
    stored_head = not expected.head and any(fate.name.endswith("lm_head.weight") for fate in table)
    if found != expected.total + (expected.embedding if stored_head else 0):
        raise CheckpointError(
            f"{source}: its tensors become {found:,} parameters, the pruned config.json has {expected.total:,}; a "
            "tensor is missing, or the config has parts that are not known here"
        )


def _shards(table: Sequence[Fate], headers: Mapping[str, TensorHeader]) -> Iterator[list[Fate]]:
    shard: list[Fate] = []
    size = 0
    for fate in table:
        if fate.becomes is None:
            continue
        nbytes = _new_bytes(fate, headers)
        if shard and size + nbytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(fate)
        size += nbytes
    yield shard


def _new_bytes(fate: Fate, headers: Mapping[str, TensorHeader]) -> int:
    header = headers[fate.name]
    kept = 1.0
    for new, old in zip(fate.new_shape, fate.shape):
        kept *= new / old
    return round(header.nbytes * kept)


def _write_shard(shard: Sequence[Fate], headers: Mapping[str, TensorHeader], file: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for source in dict.fromkeys(headers[fate.name].file for fate in shard):
        with safe_open(source, framework="pt") as opened:
            for fate in shard:
                if headers[fate.name].file == source:
                    assert fate.becomes is not None
                    tensors[fate.becomes] = slice_tensor(opened.get_tensor(fate.name), fate)
    save_file(tensors, file, metadata={"format": "pt"})


def write_table(table: Sequence[Fate], path: Path) -> None:
    """The table of tensors as JSON lines."""
    lines = [json.dumps(fate.as_dict(), separators=(",", ":")) for fate in table]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
