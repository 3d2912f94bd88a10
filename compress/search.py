"""Every shape of a grid that fits a budget, known from a config.json alone: no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.compress.config import Budget, Grid, Throughput
from nanoalign.compress.shapes import Depth, Widths, depths, guessed_blocks, pruned_config, widths
from nanoalign.models.footprint import BYTES, Memory, caches, count, memory
from nanoalign.models.size import head_dim, layer_kinds

GIB = 2**30


@dataclass(frozen=True)
class Candidate:
    """One shape."""

    depth: Depth
    sizes: Widths
    blocks: tuple[int, ...]
    """Numbers of the blocks that stay; before any removal was measured, as many of each kind as may stay."""
    parameters: int
    memory: Memory
    tokens_per_s: float
    """Of all sequences together, by :func:`speed`."""

    @property
    def name(self) -> str:
        """Unique in a search, and fit for a folder."""
        kinds = f"{self.depth.blocks}"
        kinds += f"a{self.depth.attention}" if self.depth.attention is not None else ""
        kinds += f"m{self.depth.mamba}" if self.depth.mamba is not None else ""
        sizes = self.sizes
        mamba = f"-mamba{sizes.mamba_num_heads}x{sizes.mamba_head_dim}" if sizes.mamba_num_heads else ""
        heads = f"-heads{sizes.num_attention_heads}"
        return f"blocks{kinds}-hidden{sizes.hidden_size}-ffn{sizes.intermediate_size}{mamba}{heads}"

    def as_dict(self) -> dict[str, Any]:
        """For tables and JSON; memory in GiB."""
        return {
            "name": self.name,
            "blocks": self.depth.blocks,
            "attention_blocks": self.depth.attention,
            "mamba_blocks": self.depth.mamba,
            **{key: size for key, size in vars(self.sizes).items() if size},
            "parameters": self.parameters,
            "memory_gib": self.memory.total / GIB,
            "weights_gib": self.memory.weights / GIB,
            "cache_gib": (self.memory.total - self.memory.weights) / GIB,
            "tokens_per_s": self.tokens_per_s,
        }


def search(
    config: Mapping[str, Any],
    grid: Grid,
    budget: Budget,
    throughput: Throughput,
    stays: Callable[[Depth], Sequence[int]] | None = None,
) -> list[Candidate]:
    """The shapes of the grid within budget and above the floor of throughput, the largest first.

    Args:
        config: of the whole model.
        stays: the blocks that stay at a depth; None guesses, before their removal was measured.

    Raises:
        ConfigError: the grid does not fit the model, or nothing in it the budget or the floor; the key is named.
    """
    stays = stays or (lambda depth: guessed_blocks(config, depth))
    every, sizes = [], list(widths(config, grid))
    for depth in depths(config, grid):
        blocks = tuple(stays(depth))
        every += [_candidate(config, depth, each, blocks, budget, throughput) for each in sizes]
    fitting = [each for each in every if each.memory.total <= budget.gib * GIB]
    if not fitting:
        least = min(each.memory.total for each in every)
        raise ConfigError(
            f"memory.gib: none of {len(every)} candidates fits {budget.gib:g} GiB at {budget.context:,} tokens; the "
            f"smallest takes {least / GIB:.4g}"
        )
    fast = [each for each in fitting if each.tokens_per_s >= throughput.floor]
    if not fast and not throughput.measure:
        most = max(each.tokens_per_s for each in fitting)
        raise ConfigError(
            f"throughput.floor: none of {len(fitting)} candidates within memory.gib reaches {throughput.floor:g} "
            f"tokens/s by the model of the GPU; the fastest reaches {most:.1f}"
        )
    return sorted(fast or fitting, key=lambda each: (-each.parameters, each.name))


def _candidate(
    config: Mapping[str, Any], depth: Depth, sizes: Widths, blocks: tuple[int, ...], budget: Budget,
    throughput: Throughput,
) -> Candidate:  # fmt: skip
    new = pruned_config(config, blocks, sizes)
    taken = memory(new, budget.context, budget.batch, budget.weights, budget.cache, budget.state)
    return Candidate(depth, sizes, blocks, count(new).total, taken, speed(new, throughput, budget))


def speed(config: Mapping[str, Any], throughput: Throughput, budget: Budget) -> float:
    """Tokens per second of ``throughput.batch`` sequences together, prompts included, by the limits of the GPU.

    A decoding step reads every weight but the embedding's, keys and values, and reads and writes each state; prompts
    are bound by products. No kernel's own overhead is known here: shapes are compared, not predicted.
    """
    parts, (kv, ssm, conv) = count(config), caches(config)
    batch, context = throughput.batch, throughput.prompt + throughput.answer / 2
    weights = parts.total - (parts.embedding if parts.head else 0)
    read = weights * BYTES[budget.weights] + batch * kv * context * BYTES[budget.cache]
    read += 2 * batch * (ssm * BYTES[budget.state] + conv * BYTES[budget.cache])
    channels = layer_kinds(config).count("attention") * config["num_attention_heads"] * head_dim(config)
    step = max(
        read / (throughput.bandwidth * 1e9),
        batch * (2 * weights + 4 * channels * context) / (throughput.tflops * 1e12),
    )
    of_blocks = parts.total - parts.embedding - parts.head
    prompt = batch * throughput.prompt * (2 * of_blocks + 2 * channels * throughput.prompt) / (throughput.tflops * 1e12)
    seconds = (prompt + throughput.answer * step) / throughput.efficiency
    return batch * throughput.answer / seconds
