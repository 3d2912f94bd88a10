"""What a compress stage would search, known from the model's config.json alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nanoalign.common.errors import CheckpointError, ConfigError
from nanoalign.common.printable import counted
from nanoalign.compress.config import CompressStage
from nanoalign.compress.search import GIB, search, speed
from nanoalign.compress.shapes import check_protected, depths, own_widths, units
from nanoalign.graph import BASE, inputs_of
from nanoalign.models.footprint import count, memory
from nanoalign.models.loading import model_config
from nanoalign.recipe.schema import Recipe

SHOWN = 12
"""Candidates that a plan's text lists."""
COLUMNS = {
    "blocks": "blocks", "attention_blocks": "attention", "mamba_blocks": "mamba", "hidden_size": "hidden",
    "intermediate_size": "FFN", "mamba_num_heads": "mamba heads", "mamba_head_dim": "x dim",
    "num_attention_heads": "heads",
}  # fmt: skip


def whole_shape(recipe: Recipe, name: str) -> Mapping[str, Any] | None:
    """The config.json of the model that a compress stage prunes; None where it is not known before the run: the base is
    not here, a stage makes it, or it has been compressed before."""
    stage = recipe.stages[name].from_
    while stage != BASE:
        if recipe.stages[stage].kind in ("compress", "pretrain"):
            return None
        stage = next(iter(inputs_of(recipe, stage).values()), BASE)
    try:
        return model_config(recipe.model)
    except CheckpointError:
        return None


def candidates(whole: Mapping[str, Any], stage: CompressStage, name: str) -> list[dict[str, Any]]:
    """The whole model's row, and one of each candidate within the budget, the largest first.

    Raises:
        ConfigError: as :func:`compress.search.search` and :func:`compress.shapes.check_protected`.
    """
    try:
        found = search(whole, stage.grid, stage.memory, stage.throughput)
        check_protected(whole, stage.grid, stage.protect)
    except ConfigError as error:
        raise ConfigError(f"stages.{name}.{error}") from error
    budget, kinds = stage.memory, units(whole)
    taken = memory(whole, budget.context, budget.batch, budget.weights, budget.cache, budget.state)
    row = {
        "name": "whole", "blocks": len(kinds), "attention_blocks": kinds.count("attention") or None,
        "mamba_blocks": kinds.count("mamba") or None, **vars(own_widths(whole)), "parameters": count(whole).total,
        "memory_gib": taken.total / GIB, "tokens_per_s": speed(whole, stage.throughput, budget),
    }  # fmt: skip
    return [row, *(each.as_dict() for each in found)]


def tokens(whole: Mapping[str, Any], stage: CompressStage, within: int) -> int:
    """Tokens that pass through a whole model's worth of blocks: importance, removals, losses of candidates."""
    calibration, blocks = stage.calibration, len(units(whole))
    removed = blocks - min(depth.blocks for depth in depths(whole, stage.grid))
    passes = calibration.rows + removed * calibration.depth_rows * (blocks + 1) / 2
    passes += calibration.held_out_rows * min(stage.screen, within)
    return round(passes * calibration.length)


def candidate_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table of a plan: sizes that vary, parameters, memory, throughput by the model of the GPU."""
    whole, *found = rows
    varying = [key for key in COLUMNS if len({row.get(key) for row in rows}) > 1]
    head = ["", *(COLUMNS[key] for key in varying), "parameters", "GiB", "tokens/s"]
    shown = [whole, *found[:SHOWN]]
    lines = [
        [
            "whole" if row is whole else "",
            *("" if row.get(key) is None else f"{row[key]:,}" for key in varying),
            f"{row['parameters'] / 1e9:.2f}B" if row["parameters"] >= 1e9 else f"{row['parameters'] / 1e6:.2f}M",
            f"{row['memory_gib']:{'.2f' if whole['memory_gib'] >= 1 else '.4f'}}",
            f"{row['tokens_per_s']:,.1f}",
        ]
        for row in shown
    ]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    largest = f", the largest {SHOWN}:" if found[SHOWN:] else ":"
    yield f"  search    {counted(len(found), 'shape')} within the budget{largest}"
    for line in [head, *lines]:
        yield "    " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip()
