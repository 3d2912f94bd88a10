"""What a model takes, known from its config.json: parameters by part, and bytes of weights and caches. No torch.

Exact for NemotronH without experts and for plain decoders of attention and MLP; compared with transformers' own models
in tests, and with the published sizes of Nemotron Nano 2 (arXiv 2508.14444: 12.31B, 8.89B).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanoalign.common.errors import CheckpointError
from nanoalign.models.size import head_dim, layer_kinds, mamba_sizes

PLAIN = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Architectures of attention and a gated MLP in every layer, one norm before each."""
COUNTED = ("nemotron_h", *PLAIN)
"""Architectures whose parameters are counted."""
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
"""Bytes of an element, without the scales of quantized kinds (a block of 128 with a float32 scale adds 1/32 byte)."""


@dataclass(frozen=True)
class Counts:
    """Parameters of a model by part."""

    embedding: int
    head: int
    """The output head; 0 where it is the embedding."""
    norm: int
    """The last norm."""
    blocks: Mapping[str, int]
    """Blocks of each kind: mamba, attention, mlp."""
    each: Mapping[str, int]
    """Parameters of one block of each kind, with the norm before it."""

    @property
    def total(self) -> int:
        """All parameters, tied ones once."""
        blocks = sum(count * self.each[kind] for kind, count in self.blocks.items())
        return self.embedding + self.head + self.norm + blocks


@dataclass(frozen=True)
class Memory:
    """Bytes of a model that serves sequences: no activations, no framework."""

    weights: float
    kv: float
    """Keys and values of the attention blocks."""
    ssm: float
    """States of the Mamba blocks."""
    conv: float
    """The last inputs of their convolutions."""

    @property
    def total(self) -> float:
        return self.weights + self.kv + self.ssm + self.conv


def count(config: Mapping[str, Any]) -> Counts:
    """Parameters by part of a config.json.

    Raises:
        CheckpointError: an architecture that is not counted, or a block of experts.
    """
    kind, kinds = config["model_type"], layer_kinds(config)
    if kind not in COUNTED or "moe" in kinds:
        what = "a nemotron_h with experts" if kind == "nemotron_h" else f"model_type {kind!r}"
        raise CheckpointError(f"{what}: parameters are counted for {', '.join(COUNTED)}, without experts")
    embedding = config["vocab_size"] * config["hidden_size"]
    of_block = {"mamba": _mamba, "attention": _attention, "mlp": _mlp}
    return Counts(
        embedding=embedding,
        head=0 if is_tied(config) else embedding,
        norm=config["hidden_size"],
        blocks={name: kinds.count(name) for name in of_block if name in kinds},
        each={name: config["hidden_size"] + block(config) for name, block in of_block.items() if name in kinds},
    )


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the output head is the embedding, as transformers 5.17 builds it: never for nemotron_h, whatever its
    config says."""
    if config["model_type"] == "nemotron_h":
        return False
    return bool(config.get("tie_word_embeddings", config["model_type"] == "smollm3"))


def memory(
    config: Mapping[str, Any],
    context: int,
    batch: int = 1,
    weights: str = "bfloat16",
    cache: str = "bfloat16",
    state: str = "float32",
) -> Memory:
    """Bytes of the weights and of the caches of ``batch`` sequences of ``context`` tokens.

    Args:
        weights, cache, state: what weights, keys and values, and Mamba states are stored as, a key of :data:`BYTES`.
            The convolution's inputs are stored as keys and values are.

    Raises:
        CheckpointError: as :func:`count`.
    """
    kv, ssm, conv = caches(config)
    return Memory(
        weights=count(config).total * BYTES[weights],
        kv=batch * context * kv * BYTES[cache],
        ssm=batch * ssm * BYTES[state],
        conv=batch * conv * BYTES[cache],
    )


def caches(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Elements of one token's keys and values, and of one sequence's Mamba states and convolution inputs, for every
    architecture of :mod:`models.hybrid` too.

    The convolution holds its whole width, as transformers' cache does (vLLM one token less). A sliding window is not
    subtracted.
    """
    kinds = layer_kinds(config)
    kv = ssm = conv = 0
    if "attention" in kinds:
        kv = kinds.count("attention") * 2 * _kv_heads(config) * head_dim(config)
    if "mamba" in kinds:
        inner, channels, _, width = mamba_sizes(config)
        size = config["ssm_state_size"] if config["model_type"] == "nemotron_h" else config["mamba_d_state"]
        ssm, conv = kinds.count("mamba") * inner * size, kinds.count("mamba") * channels * width
    return kv, ssm, conv


def _mamba(config: Mapping[str, Any]) -> int:
    """in_proj (gate, convolution channels, time steps), convolution, A, D, time step bias, gated norm, out_proj."""
    hidden = config["hidden_size"]
    inner, channels, heads, width = mamba_sizes(config)
    projected = inner + channels + heads
    biases = (projected + hidden) * bool(config.get("use_bias")) + channels * bool(config.get("use_conv_bias", True))
    return projected * hidden + channels * width + 3 * heads + inner + inner * hidden + biases


def _attention(config: Mapping[str, Any]) -> int:
    hidden, kind = config["hidden_size"], config["model_type"]
    heads, kv_heads, dim = config["num_attention_heads"], _kv_heads(config), head_dim(config)
    inputs = (heads + 2 * kv_heads) * dim
    biases = inputs if kind == "qwen2" else (inputs + hidden) * bool(config.get("attention_bias"))
    if kind == "nemotron_h":
        biases = 0  # transformers 5.17 gives it none, whatever attention_bias says
    return inputs * hidden + heads * dim * hidden + biases + (2 * dim if kind == "qwen3" else 0)


def _mlp(config: Mapping[str, Any]) -> int:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    up = 1 if config["model_type"] == "nemotron_h" else 2  # and a gate
    return (up + 1) * hidden * inner + (up * inner + hidden) * bool(config.get("mlp_bias"))


def _kv_heads(config: Mapping[str, Any]) -> int:
    return config.get("num_key_value_heads") or config["num_attention_heads"]
