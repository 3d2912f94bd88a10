"""Tiny checkpoints of several architectures, with noise between two versions of each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.tiny import tiny_hybrid

TOKENIZER = {
    "tokenizer.json": {"version": "1.0", "truncation": None, "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}}},
    "tokenizer_config.json": {"eos_token": "b", "model_max_length": 128},
}


def llama(tied: bool) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )


def build(kind: str) -> PreTrainedModel:
    """bf16, but for ``mixed``, whose norms and Mamba scalars stay in fp32."""
    torch.manual_seed(0)
    if kind == "fp32":
        return llama(tied=False)
    if kind == "fp16":
        return llama(tied=False).half()
    model = tiny_hybrid() if kind in ("nemotron_h", "mixed") else llama(tied=kind == "tied")
    model = model.bfloat16()
    if kind == "mixed":
        for name, parameter in model.named_parameters():
            if name.endswith(("A_log", "D", "dt_bias", "norm.weight")):
                parameter.data = parameter.data.float()
    return model


def write(model: PreTrainedModel, folder: Path, max_shard_size: str = "1GB") -> Path:
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    for name, value in TOKENIZER.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def shift(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The same model after some training: every weight moved by about a tenth of its size."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.1 * parameter.float() * torch.randn(parameter.shape)).to(parameter.dtype)
    return model


@pytest.fixture
def make_pair_of(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes checkpoints A and B of a kind, B with other values."""

    def make(kind: str, shards: tuple[str, str] = ("1GB", "1GB")) -> tuple[Path, Path]:
        a = write(build(kind), tmp_path / "a", shards[0])
        b = write(shift(build(kind), 1), tmp_path / "b", shards[1])
        return a, b

    return make


@pytest.fixture
def llama_pair(make_pair_of: Callable[..., tuple[Path, Path]]) -> tuple[Path, Path]:
    return make_pair_of("llama")


@pytest.fixture
def miniature_pair(tmp_path: Path) -> tuple[Path, Path]:
    """The miniature's base, and a noisy copy of it."""
    base, other = Path(__file__).parents[2] / "recipes/assets/miniature-base", tmp_path / "other"
    shutil.copytree(base, other)
    generator = torch.Generator().manual_seed(0)
    noisy = {
        name: tensor + (0.2 * tensor.float() * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        for name, tensor in load_file(base / "model.safetensors").items()
    }
    save_file(noisy, other / "model.safetensors", metadata={"format": "pt"})
    return base, other


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, by the safetensors library."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


@pytest.fixture
def tensors_of() -> Callable[[Path], dict[str, torch.Tensor]]:
    return read_all


@pytest.fixture
def edit() -> Callable[[Path, Callable[[dict[str, torch.Tensor]], object]], None]:
    """Rewrites a single-file checkpoint after a change to its tensors."""

    def apply(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        tensors = read_all(folder)
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


@pytest.fixture
def leftovers() -> Callable[[Path], list[str]]:
    """What lies in a folder beside its inputs a and b."""
    return lambda folder: sorted(path.name for path in folder.iterdir() if path.name not in ("a", "b", "base"))


@pytest.fixture
def copy() -> Callable[[Path, Path], Path]:
    return lambda source, target: shutil.copytree(source, target)
