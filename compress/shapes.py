"""The shapes that a search may choose, known from a config.json alone: no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.compress.config import Grid
from nanoalign.models.footprint import COUNTED
from nanoalign.models.size import LETTERS, head_dim, layer_kinds

SYMBOLS = {kind: letter for letter, kind in LETTERS.items()}
PER_LAYER = ("layer_types", "layers_block_type", "no_rope_layers")
"""Keys of config.json that hold a value for each layer."""
DERIVED_HEAD_DIM = ("qwen2",)
"""Architectures whose head_dim vLLM (0.31) takes from hidden_size / num_attention_heads, whatever config.json says."""


@dataclass(frozen=True)
class Widths:
    """Every size inside a block, by its name in config.json; 0 where the model has no such part."""

    hidden_size: int
    intermediate_size: int
    mamba_num_heads: int
    mamba_head_dim: int
    num_attention_heads: int


@dataclass(frozen=True)
class Depth:
    """How many blocks stay. ``attention`` and ``mamba`` are None where their share is left to the order of removal,
    and in a model of layers."""

    blocks: int
    attention: int | None = None
    mamba: int | None = None


WIDTHS = tuple(each.name for each in fields(Widths))


def is_hybrid(config: Mapping[str, Any]) -> bool:
    """Whether Mamba-2, attention and MLP are blocks of their own, and can be removed one by one."""
    return bool(config["model_type"] == "nemotron_h")


def units(config: Mapping[str, Any]) -> list[str]:
    """What can be removed, in the model's order: the kinds of a hybrid's blocks, or ``layer`` for each layer."""
    return layer_kinds(config) if is_hybrid(config) else ["layer"] * config["num_hidden_layers"]


def own_widths(config: Mapping[str, Any]) -> Widths:
    """The model's own. Raises ConfigError for an architecture that cannot be pruned here."""
    kind = config["model_type"]
    if kind not in COUNTED or (is_hybrid(config) and "moe" in layer_kinds(config)):
        what = "nemotron_h with experts" if kind == "nemotron_h" else kind
        raise ConfigError(f"from: a model of type {what} cannot be pruned; known: {', '.join(COUNTED)}")
    return Widths(*(config.get(name, 0) for name in WIDTHS))


def depths(config: Mapping[str, Any], grid: Grid) -> list[Depth]:
    """Every combination of blocks in the grid, the deepest first.

    Raises:
        ConfigError: one asks for more blocks than there are, or for kinds of blocks of a model of layers.
    """
    kinds = units(config)
    own = {kind: kinds.count(kind) for kind in ("attention", "mamba", "mlp")}
    asked = {"blocks": len(kinds), "attention_blocks": own["attention"], "mamba_blocks": own["mamba"]}
    for key, most in asked.items():
        sizes = getattr(grid, key)
        if key != "blocks" and sizes and not is_hybrid(config):
            raise ConfigError(f"grid.{key}: {config['model_type']} has layers of attention and MLP; give grid.blocks")
        if sizes and max(sizes) > most:
            raise ConfigError(f"grid.{key}: {max(sizes)} of the model's {most}; pruning adds none")
    unasked: list[int | None] = [own["attention"] if is_hybrid(config) else None]
    attention: Sequence[int | None] = grid.attention_blocks or unasked
    mamba: Sequence[int | None] = grid.mamba_blocks or (None,)
    found = [Depth(*each) for each in product(grid.blocks or [len(kinds)], attention, mamba)]
    fitting = [depth for depth in found if _fits(depth, own)] if is_hybrid(config) else found
    if not fitting:
        raise ConfigError(f"grid.blocks: {grid.blocks} cannot be made of {own}, grid.attention_blocks and mamba_blocks")
    return sorted(dict.fromkeys(fitting), key=lambda depth: -depth.blocks)


def _fits(depth: Depth, own: Mapping[str, int]) -> bool:
    assert depth.attention is not None
    rest = depth.blocks - depth.attention - (depth.mamba or 0)
    return 0 <= rest <= own["mlp"] + (own["mamba"] if depth.mamba is None else 0)


def quotas(config: Mapping[str, Any], depth: Depth) -> list[tuple[frozenset[str], int]]:
    """How many blocks of which kinds have to go, so that ``depth`` is reached: exactly so many of each set of kinds."""
    kinds = units(config)
    if depth.attention is None:
        return [(frozenset(kinds), len(kinds) - depth.blocks)]
    gone = len(kinds) - depth.blocks
    attention = kinds.count("attention") - depth.attention
    if depth.mamba is None:
        return [(frozenset({"attention"}), attention), (frozenset({"mamba", "mlp"}), gone - attention)]
    mamba = kinds.count("mamba") - depth.mamba
    return [
        (frozenset({"attention"}), attention),
        (frozenset({"mamba"}), mamba),
        (frozenset({"mlp"}), gone - attention - mamba),
    ]


def check_protected(config: Mapping[str, Any], grid: Grid, protect: Sequence[int]) -> None:
    """Raises ConfigError where ``protect`` names a block that the model has not, or leaves too few that may go."""
    kinds = units(config)
    if protect and max(protect) >= len(kinds):
        raise ConfigError(f"protect: {max(protect)} is no block of the model's {len(kinds)}, numbered from 0")
    for depth in depths(config, grid):
        for names, count in quotas(config, depth):
            free = sum(kind in names and number not in protect for number, kind in enumerate(kinds))
            if free < count:
                what = " and ".join(sorted(names))
                raise ConfigError(f"protect: leaves {free} {what} blocks to remove, and the grid removes {count}")


def guessed_blocks(config: Mapping[str, Any], depth: Depth) -> list[int]:
    """Blocks that may stay, before any removal was measured: of kinds that share a quota, as many of each go."""
    kinds = units(config)
    gone: set[int] = set()
    for names, count in quotas(config, depth):
        places = {name: [i for i, kind in enumerate(kinds) if kind == name] for name in sorted(names)}
        for _ in range(count):
            fullest = max(places, key=lambda name: len(places[name]))
            gone.add(places[fullest].pop())
    return [i for i in range(len(kinds)) if i not in gone]


def widths(config: Mapping[str, Any], grid: Grid) -> Iterator[Widths]:
    """Every combination of sizes in the grid, of a qwen2 those that vLLM serves too.

    Raises:
        ConfigError: a size is larger than the model's, of a part that it has not, or does not divide into its groups.
    """
    own = own_widths(config)
    for key in WIDTHS:
        for size in getattr(grid, key):
            _check_width(config, key, size, getattr(own, key))
    every = [Widths(*sizes) for sizes in product(*(dict.fromkeys(getattr(grid, key) or [getattr(own, key)])
                                                   for key in WIDTHS))]  # fmt: skip
    if config["model_type"] in DERIVED_HEAD_DIM:
        dim, asked = head_dim(config), every
        every = [each for each in asked if each.hidden_size == dim * each.num_attention_heads]
        if not every:
            raise ConfigError(
                f"grid.hidden_size: vLLM reads no head_dim of a {config['model_type']}: hidden_size has to be "
                f"{dim} times num_attention_heads, and none of {len(asked)} combinations is"
            )
    yield from every


def _check_width(config: Mapping[str, Any], key: str, size: int, most: int) -> None:
    if not most:
        raise ConfigError(f"grid.{key}: {config['model_type']} has none")
    if size > most:
        raise ConfigError(f"grid.{key}: {size} is more than the model's {most}; pruning adds none")
    groups = {"mamba_num_heads": "n_groups", "num_attention_heads": "num_key_value_heads"}.get(key)
    if groups and size % (count := config.get(groups) or size):
        raise ConfigError(f"grid.{key}: {size} does not divide into {count} groups ({groups}) of equal size")


def pruned_config(config: Mapping[str, Any], blocks: Sequence[int], sizes: Widths) -> dict[str, Any]:
    """The config.json of the model that keeps these blocks, in their order, at these widths."""
    new = dict(config)
    new |= {key: getattr(sizes, key) for key in WIDTHS if key in config}
    new["head_dim"] = head_dim(config)  # else many architectures take hidden_size / num_attention_heads
    if "hybrid_override_pattern" in config:
        kinds = layer_kinds(config)
        new["hybrid_override_pattern"] = "".join(SYMBOLS[kinds[block]] for block in blocks)
    if config["model_type"] == "smollm3" and not config.get("no_rope_layers"):
        interval = config.get("no_rope_layer_interval", 4)
        new["no_rope_layers"] = [int((block + 1) % interval != 0) for block in blocks]
    for key in PER_LAYER:
        if config.get(key):
            new[key] = [config[key][block] for block in blocks]
    if "num_hidden_layers" in config:
        new["num_hidden_layers"] = len(blocks)
    return new
