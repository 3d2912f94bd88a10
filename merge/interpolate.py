"""Linear interpolation (1 - alpha) * A + alpha * B of two checkpoints of any architecture or sharding.

Inputs are memory-mapped and taken in chunks that fit a CPU cache; each chunk is read once for N alphas. 16-bit tensors
are computed in fp32 as A + alpha * (B - A), from alpha 0.5 on as B - (1 - alpha) * (B - A) (``torch.lerp``): their
differences are nearly always exact in fp32, so that nearly all results equal those of float64, which products of
rounded weights miss at the many ties of a decimal alpha. fp32 and fp64 tensors are computed in fp64. Weights at alpha
0 and 1 are copied bit by bit.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import CheckpointError, ConfigError
from common.files import whole_folder, write_json
from merge.agree import agree, same_values
from merge.checkpoint import (
    INDEX,
    ITEM_BYTES,
    TORCH_NAMES,
    TensorInfo,
    TensorSource,
    elements,
    header_bytes,
    open_checkpoint,
)  # fmt: skip

if TYPE_CHECKING:
    import torch

FLOATS = {"F64", "F32", "F16", "BF16"}
CHUNK_ELEMENTS = 1 << 19
"""1 MiB of bf16: two inputs and an output stay within the second-level cache of a core."""
Progress = Callable[[int, int], None]
"""Called with bytes written so far and in all, from one thread at a time."""


@dataclass(frozen=True)
class Pair:
    """Two sources that agree, and the tensors to merge."""

    a: TensorSource
    b: TensorSource
    names: tuple[str, ...]

    def info(self, name: str) -> TensorInfo:
        return self.a.tensors[name]

    @property
    def nbytes(self) -> int:
        """Bytes of one merged model's tensors."""
        return sum(self.info(name).nbytes for name in self.names)


def make_pair(a: TensorSource, b: TensorSource) -> Pair:
    """Checks that two sources can be interpolated.

    Raises:
        CheckpointError: they disagree (:func:`merge.agree.agree`), or a tensor that is not floating point differs.
    """
    names = tuple(agree(a, b))
    for name in names:
        dtype = a.tensors[name].dtype
        if dtype in ("F8_E4M3", "F8_E5M2"):
            raise CheckpointError(f"{name}: {dtype} weights carry scales and cannot be interpolated; dequantize first")
        if dtype not in FLOATS and not same_values(a, name, b, name):
            raise CheckpointError(f"{name}: {dtype} values differ between {a.folder} and {b.folder}")
    return Pair(a, b, names)


def interpolate(
    a: Path,
    b: Path,
    outputs: Mapping[float, Path],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes one merged checkpoint folder for each alpha (weight of B) in one pass over A and B.

    The output has A's sharding, config, tokenizer and code. Each folder appears whole or not at all. ``threads``
    defaults to the CPUs this process may use, at most 4.

    Raises:
        CheckpointError: a checkpoint is damaged, the two disagree, or a weight is not finite.
        ConfigError: an alpha is outside [0, 1], an output lies in an input, or the disk is too small.
    """
    write_interpolations(make_pair(open_checkpoint(a), open_checkpoint(b)), outputs, threads, progress)


def write_interpolations(
    pair: Pair, outputs: Mapping[float, Path], threads: int | None = None, progress: Progress | None = None
) -> None:
    """:func:`interpolate` for sources that are open already, adapters included."""
    check_alphas(outputs)
    for folder in outputs.values():
        _check_output(folder, pair)
    _check_disk(outputs, pair)
    with contextlib.ExitStack() as stack:
        folders = {alpha: stack.enter_context(whole_folder(Path(path))) for alpha, path in outputs.items()}
        fill_folders(pair, folders, threads, progress)


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
                alpha: stack.enter_context(_create(folder / infos[0].file.name, header))
                for alpha, folder in folders.items()
            }
            position = len(header)
            for info in infos:
                targets.append(_Target(info, files, position))
                position += info.nbytes
        written = _stream(pair, targets, threads or default_threads(), progress)
    expected = pair.nbytes * len(folders)
    if written != expected:
        raise CheckpointError(f"merge wrote {written} bytes of tensors, {expected} were due")
    for folder in folders.values():
        if len(layout) > 1:
            weight_map = {info.name: info.file.name for infos in layout.values() for info in infos}
            write_json(folder / INDEX, {"metadata": {"total_size": pair.nbytes}, "weight_map": weight_map})
        for name, path in pair.a.extras.items():
            shutil.copyfile(path, folder / name)
        _check_complete(folder, pair)


def lerp(x: "torch.Tensor", y: "torch.Tensor", alpha: float, out: "torch.Tensor") -> "torch.Tensor":
    """(1 - alpha) * x + alpha * y into ``out``, rounded once to its dtype; shapes equal, all floating point."""
    import torch

    if alpha in (0.0, 1.0):
        return out.copy_(y if alpha else x)
    if out.dtype in (torch.bfloat16, torch.float16):
        if x.dtype == y.dtype == out.dtype:
            return torch.lerp(x, y, alpha, out=out)  # computes in fp32 inside
        return out.copy_(torch.lerp(x.float(), y.float(), alpha))
    return out.copy_(x.double() * (1.0 - alpha) + y.double() * alpha)


def lerp_into(pair: Pair, name: str, alpha: float, out: "torch.Tensor") -> "torch.Tensor":
    """One whole tensor of the merge into ``out`` (flat, contiguous, any floating dtype).

    Raises:
        CheckpointError: a weight is not finite; the message names the tensor and the checkpoint.
    """
    for start, stop in elements(pair.info(name).numel, CHUNK_ELEMENTS):
        x, y = pair.a.flat(name, start, stop), pair.b.flat(name, start, stop)
        check_finite(lerp(x, y, alpha, out[start:stop]), x, y, name, pair)
    return out


def tensors_at(pair: Pair, alpha: float) -> "Iterator[tuple[str, torch.Tensor]]":
    """The merged model at ``alpha``, tensor by tensor, recomputed from A and B; at most one tensor is held here."""
    import torch

    for name in pair.names:
        info = pair.info(name)
        out = torch.empty(info.numel, dtype=getattr(torch, TORCH_NAMES[info.dtype]))
        yield name, lerp_into(pair, name, alpha, out).view(info.shape)


def check_finite(out: "torch.Tensor", x: "torch.Tensor", y: "torch.Tensor", name: str, pair: Pair) -> None:
    """Raises CheckpointError if a merged chunk has NaN or infinity; ``x`` and ``y`` tell whose it is."""
    import torch

    if not out.dtype.is_floating_point or out.numel() == 0:
        return
    low, high = torch.aminmax(out)  # NaN in any element comes out as NaN
    if not torch.isfinite(high - low):
        for letter, source, values in (("A", pair.a, x), ("B", pair.b, y)):
            if not torch.isfinite(values).all():
                kind = "NaN" if torch.isnan(values).any() else "infinity"
                raise CheckpointError(f"{name}: {kind} in {letter} ({source.folder})")
        if not torch.isfinite(out).all():
            raise CheckpointError(f"{name}: the merge of finite values overflows {pair.info(name).dtype}")


def check_alphas(alphas: Iterable[float]) -> None:
    """Raises ConfigError for an empty list or an alpha outside [0, 1]."""
    values = list(alphas)
    if not values:
        raise ConfigError("no alphas given")
    for alpha in values:
        if not 0.0 <= alpha <= 1.0:
            raise ConfigError(f"alpha {alpha} is outside [0, 1]")


def default_threads() -> int:
    """One thread a CPU this process may use, at most four: beyond that the memory bus is full."""
    return min(4, len(os.sched_getaffinity(0)))


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
def _create(path: Path, header: bytes) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, header)
        yield descriptor
    finally:
        os.close(descriptor)


def _stream(pair: Pair, targets: list[_Target], threads: int, progress: Progress | None) -> int:
    """Drains all chunks through ``threads`` workers; returns the bytes written."""
    import torch

    chunks = ((target, span) for target in targets for span in elements(target.info.numel, CHUNK_ELEMENTS))
    total = sum(target.info.nbytes * len(target.files) for target in targets)
    lock, stopped, written = threading.Lock(), threading.Event(), 0

    def work() -> None:
        nonlocal written
        torch.set_num_threads(1)  # of this worker: chunks are the unit of parallelism
        buffer = torch.empty(CHUNK_ELEMENTS * max(ITEM_BYTES.values()), dtype=torch.uint8)
        while not stopped.is_set():
            with lock:
                chunk = next(chunks, None)
            if chunk is None:
                return
            count = _write_chunk(pair, *chunk, buffer)
            with lock:
                written += count
                if progress:
                    progress(written, total)

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, "merge") as pool:
            try:
                for future in [pool.submit(work) for _ in range(threads)]:
                    future.result()
            finally:
                stopped.set()
    finally:
        torch.set_num_threads(before)
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
        if info.dtype in FLOATS:
            lerp(x, y, alpha, out)
            if interior is None or alpha == interior:  # an interior merge shows the faults of both inputs
                check_finite(out, x, y, info.name, pair)
        else:
            out.copy_(x)
        _write_all(descriptor, memory, target.position + start * ITEM_BYTES[info.dtype])
    return size * len(target.files)


def _write_all(descriptor: int, memory: memoryview, offset: int) -> None:
    while memory:
        count = os.pwrite(descriptor, memory, offset)
        memory, offset = memory[count:], offset + count


def _check_output(folder: Path, pair: Pair) -> None:
    resolved = Path(folder).resolve()
    for source in (pair.a.folder, pair.b.folder):
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
