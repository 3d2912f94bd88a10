"""What is in a model folder, read from config.json and safetensors headers alone (no torch, no weights in memory)."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoalign.common.errors import CheckpointError

INDEX = "model.safetensors.index.json"
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
BYTES |= {"U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a checkpoint."""

    dtype: str
    """Safetensors' name: F32, BF16, ..."""
    shape: tuple[int, ...]
    file: Path

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * BYTES[self.dtype]


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """``config.json`` of a model folder, or a file of another name.

    Raises:
        CheckpointError: the folder or the file is missing, or it is not a JSON object with a ``model_type``.
    """
    path = folder / name
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder")
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; a model folder has config.json, *.safetensors and tokenizer files")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"{path}: has no model_type")
    return config


def read_shard(path: Path) -> dict[str, TensorHeader]:
    """The tensors of one safetensors file; checks that the file is as long as its header says.

    Raises:
        CheckpointError: the file is missing, cut short, or its header is damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise CheckpointError(f"{path}: damaged: its header claims {length:,} bytes of a file of {size:,}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {name: TensorHeader(entry["dtype"], tuple(entry["shape"]), path) for name, entry in header.items()}
        data = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            if end - start != tensors[name].nbytes:
                raise CheckpointError(f"{path}: damaged: {name} has {end - start:,} bytes for shape {entry['shape']}")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: damaged: not a safetensors header ({error})") from error
    if size != 8 + length + data:
        raise CheckpointError(f"{path}: damaged: {size:,} bytes where its header describes {8 + length + data:,}")
    return tensors


def read_tensors(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of a model folder, of all its shards.

    Raises:
        CheckpointError: there are no weights, a shard is missing or damaged, or index and shards disagree.
    """
    index = folder / INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{folder}: contains no *.safetensors")
        return {name: info for file in files for name, info in read_shard(file).items()}
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: damaged: {error!r}") from error
    found = {name: info for file in sorted(set(places.values())) for name, info in read_shard(folder / file).items()}
    for name, file in places.items():
        if name not in found or found[name].file.name != file:
            raise CheckpointError(f"{index}: lists {name} in {file}, which does not contain it")
    return found


def extra_files(folder: Path) -> dict[str, Path]:
    """The files beside the weights, by name. README.md is left out: who writes a model writes its card."""
    skipped = {INDEX, "README.md", "training_args.bin", "trainer_state.json"}
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in skipped and path.suffix not in {".safetensors", ".bin", ".pt", ".pth"}
        and not path.name.startswith(".")
    }  # fmt: skip
