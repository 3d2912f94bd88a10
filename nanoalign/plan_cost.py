"""Rough costs: memory and device time from a model's size and the tokens that pass through it.

Accurate within a factor of two or three; a stage that ran before also shows its measured time.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanoalign.models.config import Training

PROCESS_BYTES = 0.7e9
"""Python with torch and transformers, before there is a model."""


@dataclass(frozen=True)
class Speed:
    """A device's FLOPs per second, and the tokens per second at which small models top out."""

    train_flops: float
    generate_flops: float
    train_tokens: float
    generate_tokens: float


SPEEDS = {
    # two AVX-512 cores: the miniature's 4,500 tokens/s of training and 2,100 of generation (5M parameters)
    "cpu": Speed(1.3e11, 2.1e10, 2e4, 1e4),
    # one H100 in bf16: 40% of its peak; 0.75M and 58K tokens/s measured on a 4.4M model
    "cuda": Speed(4e14, 1.5e14, 7.5e5, 5.8e4),
}


def device_of(device: str, launch: str) -> str:
    """cpu or cuda; ``auto`` takes cuda where NVIDIA's driver is installed, or stages run on a cluster."""
    if device == "auto":
        return "cuda" if launch != "local" or shutil.which("nvidia-smi") else "cpu"
    return device


def train_seconds(parameters: int, tokens: float, train: Training, device: str, devices: int) -> float:
    """6 FLOPs per parameter and token, 8 with gradient checkpointing (Kaplan et al. 2020, arXiv 2001.08361)."""
    speed = SPEEDS[device]
    work = 8 if train.gradient_checkpointing else 6
    return tokens / min(speed.train_tokens, speed.train_flops / (work * parameters)) / devices


def forward_seconds(parameters: int, tokens: float, device: str) -> float:
    """A forward pass without gradients: a third of a training step's work."""
    speed = SPEEDS[device]
    return tokens / min(speed.train_tokens, speed.train_flops / (2 * parameters))


def generate_seconds(parameters: int, tokens: float, device: str) -> float:
    """2 FLOPs per parameter and token, at the far lower rate of decoding."""
    speed = SPEEDS[device]
    return tokens / min(speed.generate_tokens, speed.generate_flops / (2 * parameters))


@dataclass(frozen=True)
class Share:
    """How a training is spread over devices."""

    devices: int = 1
    sequence_parallel: int = 1
    """Devices that share each sequence."""
    zero: int = 0
    """ZeRO stage: 1 splits the optimizer's moments over the devices, 2 the gradients too, 3 the weights too."""


def train_bytes(
    model: Mapping[str, Any], train: Training, length: float, share: Share, copies: int = 1,
    packed: int | None = None, whole_logits: bool = True,
) -> float:  # fmt: skip
    """One device's weights, gradients and AdamW's two moments in fp32 (``copies`` of the weights besides, such as a
    reference), and its part of the activations of a micro batch of ``length`` tokens a sequence, or of ``packed``
    tokens together; with the logits, unless the head works in tiles."""
    parameters, blocks = model["parameters"], sum(model["blocks"].values())
    trained = parameters if train.lora is None else 0.02 * parameters
    parts = {3: 4 * parameters * copies, 2: 4 * trained, 1: 8 * trained}
    state = sum(size / (share.devices if share.zero >= stage else 1) for stage, size in parts.items())
    width = 4 if train.dtype == "float32" else 2
    groups = share.devices // share.sequence_parallel
    tokens = max(packed, length) if packed else length / share.sequence_parallel * train.micro_batch(groups)
    block = model["hidden_size"] * width * (1 if train.gradient_checkpointing else 20)
    logits = 3 * 4 * model["vocab_size"] if whole_logits else 0
    return PROCESS_BYTES + state + tokens * (blocks * block + logits)


def generate_bytes(model: Mapping[str, Any], batch: int, length: float, device: str) -> float:
    """Weights (bf16, fp32 on CPU) and the caches of ``batch`` sequences of ``length`` tokens."""
    weights = model["parameters"] * (4 if device == "cpu" else 2)
    cache = batch * (length * model["kv_bytes_per_token"] + model["state_bytes_per_sequence"])
    return PROCESS_BYTES + weights + cache
