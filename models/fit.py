"""Does a model fit: weights, caches as vLLM lays them out, and what a step needs, from a config.json. No torch.

Weights, keys and values, states and convolution inputs are exact (models/footprint.py). vLLM's pages are too, as its
0.31 plans them: in a hybrid every page has the size of the largest kind's, an attention page holds as many tokens as
fill it, layers form groups of equal number, and a sequence takes whole pages of each group. Activations and the runtime
are estimates, marked as such.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from nanoalign.models.footprint import BYTES, caches, count, memory
from nanoalign.models.size import head_dim, layer_kinds, mamba_sizes

GIB = 2**30
RUNTIME = 0.9 * GIB
"""CUDA's context and libraries, captured graphs, fragments: an estimate for one H100."""
LONGEST = 2**24
"""Tokens and sequences beyond which no search goes."""


@dataclass(frozen=True)
class Serving:
    """How a model is served."""

    weights: str = "bfloat16"
    cache: str = "bfloat16"
    state: str = "float32"
    """Of Mamba states; vLLM's own choice for nemotron_h."""
    step: int = 8192
    """Tokens of a step at most (vLLM's max_num_batched_tokens)."""
    block: int = 16
    """Tokens of a page's smallest unit: 16 on CUDA, 128 on a CPU."""
    prefix_caching: bool = True
    """vLLM's default: a sequence then holds two states, the running one and the last one that can be reused."""


@dataclass(frozen=True)
class Pages:
    """How vLLM cuts the cache memory up."""

    tokens: int
    """In a page of attention; 0 without attention."""
    page: int
    """Bytes, of one layer."""
    padding: int
    """Bytes of a Mamba layer's page beyond its state."""
    layers: int
    """In a group, whose pages are taken together."""
    groups: int
    """Of attention layers."""
    state_groups: int
    """Of Mamba layers."""
    states: int
    """Pages of a state group that a sequence holds."""

    @property
    def block(self) -> int:
        """Bytes of a group's pages, the unit of the whole pool."""
        return self.page * self.layers

    def blocks(self, context: int) -> int:
        """That a sequence of ``context`` tokens takes."""
        attention = self.groups * ceil(context / self.tokens) if self.tokens else 0
        return attention + self.state_groups * self.states

    def bytes(self, context: int, batch: int) -> int:
        """Of ``batch`` such sequences, and the one block that vLLM keeps empty."""
        return (batch * self.blocks(context) + 1) * self.block


def pages(config: Mapping[str, Any], serving: Serving) -> Pages:
    """The pages of a model. Raises CheckpointError for an architecture that is not counted (models/footprint.py)."""
    count(config)
    kinds = layer_kinds(config)
    attention, mamba = kinds.count("attention"), kinds.count("mamba")
    kv, ssm, _ = caches(config)
    token = int(kv / max(1, attention) * BYTES[serving.cache])
    if not mamba:
        return Pages(serving.block, serving.block * token, 0, attention, 1, 0, 0)
    _, channels, _, width = mamba_sizes(config)
    state = int(ssm / mamba * BYTES[serving.state] + channels * (width - 1) * BYTES[serving.cache])
    states = 2 if serving.prefix_caching else 1
    if not attention:
        return Pages(0, state, 0, mamba, 0, 1, states)
    tokens = serving.block * ceil(state / (serving.block * token))
    few, many = sorted((attention, mamba))
    layers = many if many < 1.5 * few else few
    return Pages(
        tokens, tokens * token, tokens * token - state, layers, ceil(attention / layers), ceil(mamba / layers), states
    )


def activations(config: Mapping[str, Any], serving: Serving, batch: int) -> float:
    """Bytes that a step takes at its widest, an estimate: the stream and the widest block's products for all of the
    step's tokens, or the logits of all sequences in the sampler; in 2 bytes, logits and chunk states in 4."""
    kinds, hidden, tokens = set(layer_kinds(config)), config["hidden_size"], serving.step
    widths = [0.0]
    if "mlp" in kinds:
        widths.append((2 if config["model_type"] == "nemotron_h" else 3) * config["intermediate_size"])
    if "attention" in kinds:
        heads = config["num_attention_heads"]
        widths.append(2 * head_dim(config) * (heads + (config.get("num_key_value_heads") or heads)))
    if "mamba" in kinds:
        inner, channels, heads, _ = mamba_sizes(config)
        chunk = config.get("chunk_size", 128)
        states = 2 * 2 * inner * (channels - inner) / 2 / _groups(config) / chunk
        widths.append(2 * inner + 2 * channels + heads + states)
    return max(2.0 * tokens * (3 * hidden + max(widths)), batch * config["vocab_size"] * 10.0 + 6.0 * tokens * hidden)


def _groups(config: Mapping[str, Any]) -> int:
    return config.get("n_groups") or config.get("mamba_n_groups") or 1


@dataclass(frozen=True)
class Fit:
    """Bytes by part, for ``batch`` sequences of ``context`` tokens, and what would fit."""

    context: int
    batch: int
    memory: float
    """What there is."""
    blocks: dict[str, tuple[int, float]]
    """Embeddings, head and each kind of block: how many, and the bytes of their weights."""
    weights: float
    kv: float
    ssm: float
    conv: float
    pages: Pages
    cache: float
    """Of the three, as vLLM lays them out."""
    activations: float
    runtime: float
    largest_context: int
    """Of this batch; 0: none."""
    largest_batch: int
    """Of this context; 0: none."""

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.activations + self.runtime

    @property
    def fits(self) -> bool:
        return self.total <= self.memory

    def as_dict(self) -> dict[str, Any]:
        """For JSON; bytes as they are."""
        return {
            "context": self.context, "batch": self.batch, "memory": self.memory, "fits": self.fits,
            "total": self.total, "largest_context": self.largest_context, "largest_batch": self.largest_batch,
            "weights": self.weights, "weights_by_part": {name: size for name, (_, size) in self.blocks.items()},
            "kv_cache": self.kv, "ssm_state": self.ssm, "conv_state": self.conv, "vllm_cache": self.cache,
            "vllm_block_tokens": self.pages.tokens, "vllm_block_bytes": self.pages.block,
            "vllm_blocks_per_sequence": self.pages.blocks(self.context),
            "activations_estimate": self.activations, "runtime_estimate": self.runtime,
        }  # fmt: skip


def fit(config: Mapping[str, Any], context: int, memory_bytes: float, batch: int, serving: Serving) -> Fit:
    """What a model takes, and how much of it ``memory_bytes`` hold.

    Raises:
        CheckpointError: an architecture that is not counted.
    """
    counts, layout, each = count(config), pages(config, serving), BYTES[serving.weights]
    exact = memory(config, context, batch, serving.weights, serving.cache, serving.state)

    def total(context: int, batch: int) -> float:
        return exact.weights + layout.bytes(context, batch) + activations(config, serving, batch) + RUNTIME

    parts = {"embeddings": (1, counts.embedding * each), "head": (int(counts.head > 0), counts.head * each)}
    parts |= {name: (many, many * counts.each[name] * each) for name, many in counts.blocks.items()}
    return Fit(
        context, batch, memory_bytes, parts, exact.weights, exact.kv, exact.ssm, exact.conv, layout,
        layout.bytes(context, batch), activations(config, serving, batch), RUNTIME,
        _largest(lambda longer: total(longer, batch) <= memory_bytes),
        _largest(lambda more: total(context, more) <= memory_bytes),
    )  # fmt: skip


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, by halving; 0 where 1 does not."""
    if not fits(1):
        return 0
    if fits(LONGEST):
        return LONGEST
    low, high = 1, LONGEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
