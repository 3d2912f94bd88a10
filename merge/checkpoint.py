"""A checkpoint as a set of mapped tensors, validated before a byte of it is used.

Headers are read here rather than by the safetensors library, so that every defect is reported with the file and the
tensor at fault, and so that nothing of the weights is touched (https://github.com/huggingface/safetensors#format).
"""

import errno
import hashlib
import json
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nanoalign.common.errors import CheckpointError
from nanoalign.models.model_folder import extra_files

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OLD_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor is: bytes ``start`` to ``stop`` of ``file``; ``dtype`` as safetensors spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


class TensorSource(Protocol):
    """What can be merged: a full checkpoint, or a base with an adapter on it."""

    @property
    def folder(self) -> Path: ...

    @property
    def inputs(self) -> tuple[Path, ...]:
        """All folders that are read."""
        ...

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """By name, in file order. dtype and shape are those of a merge's output."""
        ...

    @property
    def extras(self) -> dict[str, Path]:
        """Files beside the weights (config, tokenizer, code, licence), by name."""
        ...

    def flat(self, name: str, start: int, stop: int) -> "torch.Tensor":
        """Elements ``start`` to ``stop`` of a tensor's row-major order; never to be written to."""
        ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Checkpoint:
    """A validated folder of safetensors. Weights are mapped on first use; the page cache holds them, not this
    process."""

    folder: Path
    tensors: dict[str, TensorInfo]
    extras: dict[str, Path]
    _maps: dict[Path, mmap.mmap] = field(default_factory=dict, repr=False, compare=False)

    @property
    def inputs(self) -> tuple[Path, ...]:
        return (self.folder,)

    def flat(self, name: str, start: int, stop: int) -> "torch.Tensor":
        import torch

        info = self.tensors[name]
        dtype = getattr(torch, TORCH_NAMES[info.dtype])
        if start == stop:
            return torch.empty(0, dtype=dtype)
        offset = info.start + start * ITEM_BYTES[info.dtype]
        return torch.frombuffer(self._map(info.file), dtype=dtype, count=stop - start, offset=offset)

    def fingerprint(self) -> str:
        """16 hex digits over names, dtypes, shapes and 4 KiB from the middle of every tensor: a fine-tuned model
        differs from its base, at negligible cost. It does not prove that all bytes are equal."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            info = self.tensors[name]
            middle = (info.start + info.stop) // 2
            digest.update(f"{name} {info.dtype} {info.shape}\n".encode())
            if info.nbytes:
                digest.update(self._map(info.file)[max(info.start, middle - 2048) : min(info.stop, middle + 2048)])
        return digest.hexdigest()[:16]

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as handle:
                # Copy-on-write: torch wants a writable buffer, and a private mapping can never reach the file.
                self._maps[file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[file]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads and checks all headers of a checkpoint folder (sharded or not); no weights are read.

    Raises:
        CheckpointError: the folder, config.json, the index, a shard or a tensor is missing, damaged or contradictory.
    """
    folder = _existing_folder(Path(folder))
    read_json_object(folder / "config.json")
    single, index = folder / WEIGHTS, folder / INDEX
    if single.exists() and index.exists():
        raise CheckpointError(f"{folder}: holds both {WEIGHTS} and {INDEX}; remove the stale one")
    if single.exists():
        tensors = {info.name: info for info in read_header(single)}
    elif index.exists():
        tensors = _sharded(folder, index)
    else:
        old = sorted(path.name for pattern in OLD_WEIGHTS for path in folder.glob(pattern))
        hint = f"; convert {old[0]} to safetensors first" if old else ""
        raise CheckpointError(f"{folder}: neither {WEIGHTS} nor {INDEX}{hint}")
    if not tensors:
        raise CheckpointError(f"{folder}: holds no tensors")
    return Checkpoint(folder, tensors, extra_files(folder))


def read_header(file: Path) -> list[TensorInfo]:
    """All tensors of one safetensors file in the order of their bytes.

    Raises:
        CheckpointError: the file is unreadable or truncated, its header is damaged, offsets overlap or leave holes,
            or a tensor's shape, dtype and bytes do not fit together.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            length_bytes = handle.read(8)
            length = int.from_bytes(length_bytes, "little")
            if len(length_bytes) < 8 or 8 + length > size:
                raise CheckpointError(f"{file}: truncated: {size} bytes, but the header alone needs {8 + length}")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(f"{file}: header of {length} bytes, not a safetensors file")
            text = handle.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: {_reason(error)}") from error
    header = _header_json(file, text)
    data_start = 8 + length
    infos = sorted(
        (_tensor_info(file, name, entry, data_start) for name, entry in header.items() if name != "__metadata__"),
        key=lambda info: (info.start, info.stop),
    )
    position = data_start
    for info in infos:
        if info.start != position:
            fault = "overlaps the tensor before it" if info.start < position else "leaves a hole before it"
            raise CheckpointError(f"{file}: {info.name}: data_offsets {fault} (byte {info.start - data_start})")
        position = info.stop
    if position != size:
        state = "truncated" if size < position else "has trailing bytes"
        last = next((info.name for info in infos if info.stop > size), None)
        where = f"; {last} is cut" if last else ""
        raise CheckpointError(f"{file}: {state}: {size} bytes, the header describes {position}{where}")
    return infos


def header_bytes(infos: list[TensorInfo]) -> bytes:
    """A safetensors header for tensors laid out one after the other in the order given, padded to 8 bytes."""
    position, entries = 0, {"__metadata__": {"format": "pt"}}
    for info in infos:
        offsets = [position, position + info.nbytes]
        entries[info.name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": offsets}  # type: ignore[dict-item]
        position += info.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is missing, unreadable, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {_reason(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value


def _existing_folder(folder: Path) -> Path:
    try:
        resolved = folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a symlink loop, in Python < 3.13
        raise CheckpointError(f"{folder}: {_reason(error)}") from error
    if not resolved.is_dir():
        raise CheckpointError(f"{folder}: not a folder")
    return resolved


def _sharded(folder: Path, index: Path) -> dict[str, TensorInfo]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: no `weight_map` of tensor names to file names")
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{index}: shard {shard!r} is outside the folder")
        for info in read_header(folder / shard):
            if info.name in tensors:
                raise CheckpointError(f"{folder}: {info.name} is in both {tensors[info.name].file.name} and {shard}")
            if weight_map.get(info.name) != shard:
                raise CheckpointError(f"{index}: {info.name} is in {shard}, the index has {weight_map.get(info.name)}")
            tensors[info.name] = info
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise CheckpointError(f"{index}: {missing[0]} is not in {weight_map[missing[0]]} ({len(missing)} missing)")
    return tensors


def _header_json(file: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
        if twice is not None:
            raise CheckpointError(f"{file}: {twice}: described twice in the header")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{file}: corrupted header: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: corrupted header: not a JSON object")
    return header


def _tensor_info(file: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]} if all(
            type(size) is int and size >= 0 for size in shape
        ):
            pass
        case _:
            raise CheckpointError(f"{file}: {name}: corrupted header entry {entry!r}")
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"{file}: {name}: unknown dtype {dtype}")
    info = TensorInfo(name, dtype, tuple(shape), file, data_start + start, data_start + stop)
    needed = info.numel * ITEM_BYTES[dtype]
    if start < 0 or info.nbytes != needed:
        raise CheckpointError(f"{file}: {name}: {dtype} {list(shape)} needs {needed} bytes, has {info.nbytes}")
    return info


def _reason(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else errno.ELOOP
    return {errno.ENOENT: "does not exist", errno.ELOOP: "symlink loop", errno.EACCES: "no permission"}.get(
        number or 0, str(error)
    )


def elements(numel: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Half-open ranges of at most ``chunk`` that cover ``numel`` elements."""
    for start in range(0, numel, chunk):
        yield start, min(start + chunk, numel)
