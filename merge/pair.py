"""Two checkpoints that fit together, and the arithmetic between them.

The merge is (1 - alpha) * A + alpha * B. 16-bit tensors are computed in fp32 as A + alpha * (B - A), from alpha 0.5 on
as B - (1 - alpha) * (B - A) (``torch.lerp``): their differences are nearly always exact in fp32, so that nearly all
results equal those of float64, which products of rounded weights miss at the many ties of a decimal alpha. fp32 and
fp64 tensors are computed in fp64. Weights at alpha 0 and 1 are copied bit by bit.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from nanoalign.common.errors import CheckpointError
from nanoalign.merge.checkpoint import TORCH_NAMES, TensorInfo, TensorSource, elements
from nanoalign.merge.compatibility import require_compatible, same_values

if TYPE_CHECKING:
    import torch

FLOATS = {"F64", "F32", "F16", "BF16"}
CHUNK_ELEMENTS = 1 << 19
"""1 MiB of bf16: a chunk of both inputs and the output stay near a core, and what a chunk costs in Python is small."""
Chunk = TypeVar("Chunk")


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
        CheckpointError: they disagree (:func:`merge.compatibility.require_compatible`), or a tensor that is not
            floating point differs.
    """
    names = tuple(require_compatible(a, b))
    for name in names:
        dtype = a.tensors[name].dtype
        if dtype in ("F8_E4M3", "F8_E5M2"):
            raise CheckpointError(f"{name}: {dtype} weights carry scales and cannot be interpolated; dequantize first")
        if dtype not in FLOATS and not same_values(a, name, b, name):
            raise CheckpointError(f"{name}: {dtype} values differ between {a.folder} and {b.folder}")
    return Pair(a, b, names)


def lerp(x: "torch.Tensor", y: "torch.Tensor", alpha: float, out: "torch.Tensor") -> "torch.Tensor":
    """(1 - alpha) * x + alpha * y into ``out``, rounded once to its dtype. Integers are equal in both."""
    import torch

    if alpha in (0.0, 1.0) or not out.is_floating_point():
        return out.copy_(y if alpha == 1.0 else x)
    if out.dtype in (torch.bfloat16, torch.float16):
        if x.dtype == y.dtype == out.dtype:
            return torch.lerp(x, y, alpha, out=out)  # computes in fp32 inside
        return out.copy_(torch.lerp(x.float(), y.float(), alpha))
    return out.copy_(x.double() * (1.0 - alpha) + y.double() * alpha)


def tensors_at(
    pair: Pair, alpha: float, live: "Mapping[str, torch.Tensor] | None" = None
) -> "Iterator[tuple[str, torch.Tensor]]":
    """The merged model at ``alpha``, recomputed from A and B, tensor by tensor; all threads work on one model.

    Tensors of ``live`` (by their names in A) of the stored dtype, contiguous on the CPU, are computed in place before
    the first is yielded; the others are computed one by one, and none of those is kept here. Values are not checked:
    call :func:`require_finite` once.
    """
    import torch

    def compute(chunk: "tuple[str, torch.Tensor, tuple[int, int]]") -> None:
        name, out, (start, stop) = chunk
        x, y = pair.a.flat(name, start, stop), pair.b.flat(name, start, stop)
        with torch.no_grad():
            lerp(x, y, alpha, out.view(-1)[start:stop])

    def chunks(name: str, out: "torch.Tensor") -> "Iterator[tuple[str, torch.Tensor, tuple[int, int]]]":
        return ((name, out, span) for span in elements(out.numel(), CHUNK_ELEMENTS))

    dtypes = {name: getattr(torch, TORCH_NAMES[pair.info(name).dtype]) for name in pair.names}
    in_place = {
        name: tensor for name, tensor in (live or {}).items()
        if tensor.dtype == dtypes[name] and tensor.device.type == "cpu" and tensor.is_contiguous()
    }  # fmt: skip
    drain((chunk for name, out in in_place.items() for chunk in chunks(name, out)), compute, default_threads())
    for name in pair.names:
        out = in_place.get(name)
        if out is None:
            out = torch.empty(pair.info(name).shape, dtype=dtypes[name])
            drain(chunks(name, out), compute, default_threads())
        yield name, out


def require_finite(pair: Pair) -> None:
    """Raises CheckpointError, which names tensor and checkpoint, if a weight of A or B is NaN or infinite."""

    def check(chunk: tuple[str, tuple[int, int]]) -> None:
        name, span = chunk
        x, y = pair.a.flat(name, *span), pair.b.flat(name, *span)
        for values in (x, y):
            check_finite(values, x, y, name, pair)

    floats = (name for name in pair.names if pair.info(name).dtype in FLOATS)
    chunks = ((name, span) for name in floats for span in elements(pair.info(name).numel, CHUNK_ELEMENTS))
    drain(chunks, check, default_threads())


def drain(chunks: Iterator[Chunk], work: Callable[[Chunk], None], threads: int) -> None:
    """Calls ``work`` on every chunk from ``threads`` threads. The first error stops all threads and is raised.

    torch's own threads wait by spinning, which is ruinous on busy cores; chunks are large enough to be shared out here.
    """
    import torch

    lock, stopped = threading.Lock(), threading.Event()

    def run() -> None:
        torch.set_num_threads(1)
        while not stopped.is_set():
            with lock:
                chunk = next(chunks, None)
            if chunk is None:
                return
            try:
                work(chunk)
            except BaseException:
                stopped.set()
                raise

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, "merge") as pool:
            try:
                for future in [pool.submit(run) for _ in range(threads)]:
                    future.result()
            finally:
                stopped.set()
    finally:
        torch.set_num_threads(before)


def check_finite(out: "torch.Tensor", x: "torch.Tensor", y: "torch.Tensor", name: str, pair: Pair) -> None:
    """Raises CheckpointError if a chunk has NaN or infinity; ``x`` and ``y`` identify whose it is."""
    import torch

    # NaN and infinity survive a sum, which is twice as fast as aminmax; fp16's may overflow by itself: hence both.
    if not math.isfinite(out.sum().item()) and not all(math.isfinite(end.item()) for end in torch.aminmax(out)):
        for letter, source, values in (("A", pair.a, x), ("B", pair.b, y)):
            if not torch.isfinite(values).all():
                kind = "NaN" if torch.isnan(values).any() else "infinity"
                raise CheckpointError(f"{name}: {kind} in {letter} ({source.folder})")
        if not torch.isfinite(out).all():
            raise CheckpointError(f"{name}: the merge of finite values overflows {pair.info(name).dtype}")


def default_threads() -> int:
    """One thread a CPU this process may use, at most four: beyond that the memory bus is full."""
    return min(4, len(os.sched_getaffinity(0)))
