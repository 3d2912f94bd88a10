"""Activations in pinned host memory, copied while the GPU computes.

What checkpoints save outside of their recomputation goes to the host: the inputs of blocks, and of blocks that keep
their wide products (:mod:`models.tiling`) those too. The first ones saved are needed last, so they go, as many as the
host holds, and come back a few gigabytes ahead of the backward pass; the rest stays. Memory is moved as it is laid
out: a contiguous tensor alone, views of one storage with all of it, once for everything that saved it.

Copies run on a stream of their own; memory is taken and given back on the stream that computes, which waits where it
would overtake a copy. So what the GPU holds does not depend on how far the CPU runs ahead.
"""

import ctypes
import mmap
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedModel

SLAB = 2**30
"""Bytes pinned at once."""
LAG = 4 * 2**30
"""Bytes of tensors on their way out that still take memory on the GPU; past it, computing waits for copying."""
AHEAD = 3 * 2**30
"""Bytes fetched before they are needed."""


@dataclass
class _Parked:
    """A segment of a storage: on its way to the host, there, or back."""

    place: int
    host: Tensor
    near: Tensor | None
    """Its bytes on the GPU, as long as they are there."""
    copied: Any
    """The event at the end of the last copy."""
    source: StorageWeakRef
    """Keeps the storage's identity, not its memory, from being given to another."""
    uses: int = 0


@dataclass(frozen=True)
class _View:
    """A saved tensor: where it is in a parked segment."""

    parked: _Parked
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def take(self) -> Tensor:
        """The tensor on the GPU, after the copy. The segment is dropped after its last use."""
        parked = self.parked
        assert parked.near is not None
        parked.copied.wait()
        near = parked.near.view(self.dtype)
        parked.uses -= 1
        if not parked.uses:
            parked.near = None
        return near.as_strided(self.shape, self.stride, near.storage_offset() + self.offset)


class HostOffload:
    """Moves saved activations to the host, the first of each forward pass, as many as ``host_bytes`` hold.

    Use: ``with offload.forward(): loss = ...``, then ``loss.backward()``, then the next forward pass, which takes the
    same host memory again.
    """

    def __init__(self, host_bytes: int, least: int = 2**21, kind: str = "cuda") -> None:
        """Storages under ``least`` bytes stay where they are, and those on other devices than ``kind``."""
        self.host_bytes, self.least, self.kind = host_bytes, least, kind
        self.device = torch.get_device_module(kind)
        self.stream: Any = None
        self.slabs: list[Tensor] = []
        self.parked: list[_Parked] = []
        self.parked_bytes = 0
        if kind == "cuda":
            weakref.finalize(self, _unpin, self.slabs).atexit = False

    @contextmanager
    def forward(self) -> Iterator[None]:
        """What is saved for the backward pass inside is offloaded."""
        if self.stream is None and self.device.is_available():
            self.stream = self.device.Stream()
        if self.stream is not None:  # a backward pass that was broken off left copies behind
            self.device.current_stream().wait_stream(self.stream)
        self.parked, self.parked_bytes = [], 0
        self.known: dict[tuple[int, ...], _Parked] = {}
        self.leaving: deque[_Parked] = deque()
        self.leaving_bytes = 0
        self.used = [0] * len(self.slabs)
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield

    def _pack(self, tensor: Tensor) -> Any:
        if tensor.device.type != self.kind or not _activation(tensor):
            return tensor
        storage, size = tensor.untyped_storage(), tensor.element_size()
        if storage.nbytes() < self.least:
            return tensor
        self._let_go()
        start, end = 0, storage.nbytes()
        if tensor.is_contiguous():
            start = tensor.storage_offset() * size
            end = start + tensor.nbytes
        key = (storage._cdata, tensor._version, start, end)
        parked = self.known.get(key) or self._park(storage, start, end)
        if parked is None:
            return tensor
        self.known[key] = parked
        parked.uses += 1
        return _View(parked, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset() - start // size)

    def _park(self, storage: torch.UntypedStorage, start: int, end: int) -> _Parked | None:
        """Starts the copy out; None where the host is full."""
        host = self._room(end - start)
        if host is None:
            return None
        near = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, start, (end - start,))
        parked = _Parked(len(self.parked), host, near, self._copy(host, near), StorageWeakRef(storage))
        self.parked.append(parked)
        self.leaving.append(parked)
        self.parked_bytes += end - start
        self.leaving_bytes += end - start
        return parked

    def _let_go(self) -> None:
        """Gives up what has been copied out, and what has to be by now."""
        while self.leaving and (self.leaving_bytes > LAG or self.leaving[0].copied.query()):
            parked = self.leaving.popleft()
            parked.copied.wait()
            parked.near = None
            self.leaving_bytes -= parked.host.nbytes

    def _room(self, size: int) -> Tensor | None:
        """Pinned memory in the first slab that has room, or in a new one; None where the host is full."""
        aligned = -(-size // 512) * 512
        for place, slab in enumerate(self.slabs):
            if self.used[place] + aligned <= slab.nbytes:
                break
        else:
            left = self.host_bytes - sum(slab.nbytes for slab in self.slabs)
            if left < aligned:
                return None
            slab, place = _slab(max(aligned, min(SLAB, left)), pinned=self.kind == "cuda"), len(self.slabs)
            self.slabs.append(slab)
            self.used.append(0)
        start = self.used[place]
        self.used[place] += aligned
        return slab[start : start + size]

    def _copy(self, target: Tensor, source: Tensor) -> Any:
        """Copies behind what the computing stream has been given so far; returns the event at the copy's end."""
        copied = self.device.Event()
        self.stream.wait_stream(self.device.current_stream())
        with self.device.stream(self.stream):
            target.copy_(source, non_blocking=True)
            copied.record(self.stream)
        return copied

    def _unpack(self, packed: Any) -> Tensor:
        if not isinstance(packed, _View):
            return packed
        place, ahead = packed.parked.place, 0
        if place >= len(self.parked) or self.parked[place] is not packed.parked or not packed.parked.uses:
            raise RuntimeError("offloaded activations serve one backward pass, and none of an earlier forward pass")
        while place >= 0 and ahead <= AHEAD:
            parked = self.parked[place]
            if parked.uses:
                ahead += parked.host.nbytes
                if parked.near is None:
                    parked.near = torch.empty_like(parked.host, device=self.kind)
                    parked.copied = self._copy(parked.near, parked.host)
            place -= 1
        return packed.take()


def _activation(tensor: Tensor) -> bool:
    """Whether a saved tensor belongs to the pass alone: no weight, no view or cast of one, no index."""
    base = tensor if tensor._base is None else tensor._base
    held = isinstance(base, nn.Parameter) or (base.is_leaf and base.requires_grad)  # by others, for its gradient
    return tensor.is_floating_point() and max(tensor.dim(), base.dim()) >= 3 and not held  # weights are matrices


def _slab(size: int, pinned: bool) -> Tensor:
    """Host memory. Pages are touched by several threads, huge ones where the system has them, before they are pinned:
    cudaHostAlloc does all that alone, page by page."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    slab = torch.frombuffer(memory, dtype=torch.uint8)
    if pinned:
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        address, step = slab.data_ptr(), 2**26
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda at: ctypes.memset(address + at, 0, min(step, size - at)), range(0, size, step)))
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(address, size, 0))
    return slab


def _unpin(slabs: list[Tensor]) -> None:
    if slabs:
        torch.cuda.synchronize()  # copies may be under way
    for slab in slabs:
        torch.cuda.cudart().cudaHostUnregister(slab.data_ptr())


def offload_activations(model: PreTrainedModel, host_gb: float) -> HostOffload:
    """Offloads what checkpoints keep in ``model``, up to ``host_gb`` gigabytes (10^9 bytes) of pinned host memory, in
    every forward pass with gradients. The backward pass must come before the next of these."""
    offload, entered = HostOffload(int(host_gb * 1e9)), ExitStack()

    def enter(decoder: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            entered.enter_context(offload.forward())

    def leave(decoder: nn.Module, args: Any, output: Any) -> None:
        entered.close()

    model.base_model.register_forward_pre_hook(enter)
    model.base_model.register_forward_hook(leave, always_call=True)
    return offload
