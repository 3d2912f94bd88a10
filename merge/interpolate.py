"""Linear interpolation of two checkpoints of any architecture or sharding, written for N alphas in one pass.

Inputs are memory-mapped and taken in chunks that fit a CPU cache; a chunk is read once and merged and written once for
each alpha. The arithmetic is in :mod:`merge.pair`.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanoalign.common.errors import CheckpointError, ConfigError
from nanoalign.common.files import atomic_folder, write_json
from nanoalign.merge.adapter import open_source
from nanoalign.merge.checkpoint import (
    INDEX,
    ITEM_BYTES,
    TORCH_NAMES,
    TensorInfo,
    elements,
    header_bytes,
    open_checkpoint,
)
from nanoalign.merge.pair import CHUNK_ELEMENTS, FLOATS, Pair, check_finite, default_threads, drain, lerp, make_pair

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]
"""Called with bytes written so far and in all, from one thread at a time."""


def interpolate(
    a: Path,
    b: Path,
    outputs: Mapping[float, Path],
    *,
    base: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes one merged checkpoint folder for each alpha (weight of B) in one pass over A and B.

    A and B are checkpoint folders or peft adapters on ``base`` (default: the base that an adapter names). The output
    has A's sharding, config, tokenizer and code. Each folder is written atomically. ``threads`` defaults to the CPUs
    this process may use, at most 4.

    Raises:
        CheckpointError: a checkpoint is damaged, the two disagree, or a weight is not finite.
        ConfigError: an alpha is outside [0, 1], an output is inside an input, or the disk is too small.
    """
    write_interpolations(make_pair(open_source(a, base), open_source(b, base)), outputs, threads, progress)


def write_interpolations(
    pair: Pair,
    outputs: Mapping[float, Path],
    threads: int | None = None,
    progress: Progress | None = None,
    annotate: Callable[[float, Path], None] = lambda alpha, folder: None,
) -> None:
    """:func:`interpolate` for sources that are open already, adapters included.

    ``annotate`` may add files (a model card) to the folder of an alpha before it appears under its name.
    """
    check_alphas(outputs)
    for folder in outputs.values():
        _check_output(folder, pair)
    _check_disk(outputs, pair)
    try:
        with contextlib.ExitStack() as stack:
            folders = {alpha: stack.enter_context(atomic_folder(Path(path))) for alpha, path in outputs.items()}
            fill_folders(pair, folders, threads, progress)
            for alpha, folder in folders.items():
                annotate(alpha, folder)
    except OSError as error:
        raise ConfigError(f"writing {', '.join(map(str, outputs.values()))}: {error.strerror}") from error


def fill_folders(
    pair: Pair, folders: Mapping[float, Path], threads: int | None = None, progress: Progress | None = None
) -> None:
    """The pass itself, into existing empty folders; ends with a check that every tensor's bytes were written."""
    layout = _layout(pair)
    with contextlib.ExitStack() as stack:
        targets: list[_Target] = []
        for infos in layout.values():
            header = header_bytes(infos)
            files = {
                alpha: stack.enter_context(_create(folder / infos[0].file.name, header, infos))
                for alpha, folder in folders.items()
            }
            position = len(header)
            for info in infos:
                targets.append(_Target(info, files, position))
                position += info.nbytes
        written = _stream(pair, targets, threads or default_threads(), progress)
    expected = pair.nbytes * len(folders)
    if written != expected:
        raise CheckpointError(f"merge wrote {written} bytes of tensors instead of {expected}")
    for folder in folders.values():
        if len(layout) > 1:
            weight_map = {info.name: info.file.name for infos in layout.values() for info in infos}
            write_json(folder / INDEX, {"metadata": {"total_size": pair.nbytes}, "weight_map": weight_map})
        for name, path in pair.a.extras.items():
            shutil.copyfile(path, folder / name)
        _check_complete(folder, pair)


def check_alphas(alphas: Iterable[float]) -> None:
    """Raises ConfigError for an empty list or an alpha outside [0, 1]."""
    values = list(alphas)
    if not values:
        raise ConfigError("no alphas given")
    for alpha in values:
        if not 0.0 <= alpha <= 1.0:
            raise ConfigError(f"alpha {alpha} is outside [0, 1]")


@dataclass(frozen=True)
class _Target:
    """Where one tensor goes: the open file of each alpha and the byte at which the tensor starts."""

    info: TensorInfo
    files: Mapping[float, int]
    position: int


def _layout(pair: Pair) -> dict[Path, list[TensorInfo]]:
    layout: dict[Path, list[TensorInfo]] = {}
    for name in pair.names:
        info = pair.info(name)
        layout.setdefault(info.file, []).append(info)
    return layout


@contextlib.contextmanager
def _create(path: Path, header: bytes, infos: list[TensorInfo]) -> Iterator[int]:
    """A file of its final size: disk space is reserved before a byte is computed, and writes are cheaper."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, len(header) + sum(info.nbytes for info in infos))
        os.write(descriptor, header)
        yield descriptor
    finally:
        os.close(descriptor)


def _stream(pair: Pair, targets: list[_Target], threads: int, progress: Progress | None) -> int:
    """Merges and writes all chunks; returns the bytes written."""
    import torch

    chunks = ((target, span) for target in targets for span in elements(target.info.numel, CHUNK_ELEMENTS))
    total = sum(target.info.nbytes * len(target.files) for target in targets)
    local, lock, written = threading.local(), threading.Lock(), 0

    def work(chunk: tuple[_Target, tuple[int, int]]) -> None:
        nonlocal written
        if not hasattr(local, "buffer"):
            local.buffer = torch.empty(CHUNK_ELEMENTS * max(ITEM_BYTES.values()), dtype=torch.uint8)
        count = _write_chunk(pair, *chunk, local.buffer)
        with lock:
            written += count
            if progress:
                progress(written, total)

    drain(chunks, work, threads)
    return written


def _write_chunk(pair: Pair, target: _Target, span: tuple[int, int], buffer: "torch.Tensor") -> int:
    import torch

    info, (start, stop) = target.info, span
    size = (stop - start) * ITEM_BYTES[info.dtype]
    x, y = pair.a.flat(info.name, start, stop), pair.b.flat(info.name, start, stop)
    out = buffer[:size].view(getattr(torch, TORCH_NAMES[info.dtype]))
    memory = memoryview(buffer.numpy())[:size]
    interior = next((alpha for alpha in target.files if 0.0 < alpha < 1.0), None)
    for alpha, descriptor in target.files.items():
        lerp(x, y, alpha, out)
        if info.dtype in FLOATS and (interior is None or alpha == interior):
            check_finite(out, x, y, info.name, pair)  # an interior merge shows the faults of both inputs
        _write_all(descriptor, memory, target.position + start * ITEM_BYTES[info.dtype])
    return size * len(target.files)


def _write_all(descriptor: int, memory: memoryview, offset: int) -> None:
    while memory:
        count = os.pwrite(descriptor, memory, offset)
        memory, offset = memory[count:], offset + count


def _check_output(folder: Path, pair: Pair) -> None:
    resolved = Path(folder).resolve()
    for source in (*pair.a.inputs, *pair.b.inputs):
        if resolved == source or resolved in source.parents or source in resolved.parents:
            raise ConfigError(f"output {folder} and input {source} overlap")


def _check_disk(outputs: Mapping[float, Path], pair: Pair) -> None:
    extras = sum(path.stat().st_size for path in pair.a.extras.values())
    needed: dict[int, int] = {}
    for path in outputs.values():
        existing = next(parent for parent in Path(path).resolve().parents if parent.exists())
        device = existing.stat().st_dev
        needed[device] = needed.get(device, 0) + pair.nbytes + extras + (1 << 20)
        free = shutil.disk_usage(existing).free
        if needed[device] > free:
            raise ConfigError(f"{path}: the merge needs {needed[device]:,} bytes, the disk has {free:,} free")


def _check_complete(folder: Path, pair: Pair) -> None:
    """Reads the output's headers back: every tensor is there, with its shape and dtype."""
    tensors = open_checkpoint(folder).tensors
    for name in pair.names:
        info, found = pair.info(name), tensors.get(name)
        if found is None or (found.dtype, found.shape) != (info.dtype, info.shape):
            raise CheckpointError(f"{folder}: {name} was not written as {info.dtype} {list(info.shape)}")
