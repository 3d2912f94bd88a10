"""Checkpointed activations in pinned host memory, copied while the GPU computes.

What a checkpointed block keeps is its input: (B, T, hidden) for each block. The first ones are needed last, so they go
to the host, and come back one or two tiles ahead of the backward pass; the rest stays. Copies run on a stream of their
own.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SLAB = 2**30
"""Bytes pinned at once. torch's own pinned allocator rounds every tensor up to a power of two."""
AHEAD = 3
"""Tensors fetched before they are asked for."""
LAG = 12
"""Copies that may be under way: without a limit the CPU, far ahead of the GPU, would fill its memory with them."""


class HostOffload:
    """Saved tensors whose last dimension is ``hidden`` go to the host, the first ``host_bytes`` of each forward pass.

    Use: ``with offload.forward(): loss = ...``, then ``loss.backward()``, then the next forward pass, which takes the
    same host memory again.
    """

    def __init__(self, hidden: int, host_bytes: int, least: int = 2**20) -> None:
        """``least`` is the size in elements under which tensors stay where they are."""
        self.hidden, self.host_bytes, self.least = hidden, host_bytes, least
        self.slabs: list[Tensor] = []
        self.parked: list[_Parked] = []
        self.parked_bytes = 0
        self.last: Tensor | None = None
        """The last tensor parked, held so that no other takes its address."""
        self.stream: torch.cuda.Stream | None = None

    @contextmanager
    def forward(self) -> Iterator[None]:
        """What is saved for the backward pass inside is offloaded."""
        self.parked, self.parked_bytes, self.slab, self.used = [], 0, 0, 0
        if self.stream is None and torch.cuda.is_available():
            self.stream = torch.cuda.Stream()
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self.last = None

    def _pack(self, tensor: Tensor) -> Any:
        wanted = tensor.is_cuda and tensor.dim() == 3 and tensor.shape[-1] == self.hidden  # (B, T, hidden), no weight
        if not wanted or (tensor.is_leaf and tensor.requires_grad) or tensor.numel() < self.least:
            return tensor
        last = self.last
        if last is not None and tensor.data_ptr() == last.data_ptr() and tensor.shape == last.shape:
            self.parked[-1].uses += 1  # saved by two pieces of one tile
            return self.parked[-1]
        if self.parked_bytes + tensor.nbytes > self.host_bytes:
            self.last = None
            return tensor
        if len(self.parked) > LAG:
            self.parked[-LAG].out.synchronize()
        self.parked.append(_Parked(tensor, self._room(tensor), len(self.parked), self.stream))
        self.parked_bytes, self.last = self.parked_bytes + tensor.nbytes, tensor
        return self.parked[-1]

    def _room(self, tensor: Tensor) -> Tensor:
        """Pinned memory for a tensor, in the next slab that has room."""
        while self.slab < len(self.slabs) and self.used + tensor.nbytes > self.slabs[self.slab].nbytes:
            self.slab, self.used = self.slab + 1, 0
        if self.slab == len(self.slabs):
            self.slabs.append(torch.empty(max(SLAB, tensor.nbytes), dtype=torch.uint8, pin_memory=True))
        piece = self.slabs[self.slab][self.used : self.used + tensor.nbytes]
        self.used += -(-tensor.nbytes // 256) * 256
        return piece.view(tensor.dtype).view(tensor.shape)

    def _unpack(self, packed: Any) -> Tensor:
        if not isinstance(packed, _Parked):
            return packed
        if packed.place >= len(self.parked) or self.parked[packed.place] is not packed:
            raise RuntimeError("activations of an earlier forward pass were offloaded, and the last one overwrote them")
        later = self.parked[packed.place + LAG].read if packed.place + LAG < len(self.parked) else None
        if later is not None:
            later.synchronize()
        for place in range(packed.place, max(-1, packed.place - AHEAD - 1), -1):
            self.parked[place].fetch()
        return packed.take()


class _Parked:
    """One tensor on the host."""

    def __init__(self, tensor: Tensor, host: Tensor, place: int, stream: Any) -> None:
        self.host, self.place, self.stream = host, place, stream
        self.uses = 1
        self.back: Tensor | None = None
        self.read: torch.cuda.Event | None = None
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            host.copy_(tensor, non_blocking=True)
            self.out = stream.record_event()
        tensor.record_stream(stream)

    def fetch(self) -> None:
        """Starts the copy back, unless it is there or done with. It follows the copy out: both are on one stream."""
        if self.back is None and self.uses:
            with torch.cuda.stream(self.stream):
                self.back = self.host.to("cuda", non_blocking=True)
                self.here = self.stream.record_event()

    def take(self) -> Tensor:
        """The tensor on the GPU; the current stream waits for it. Dropped after its last use."""
        back = self.back
        assert back is not None
        stream = torch.cuda.current_stream()
        stream.wait_event(self.here)
        back.record_stream(stream)
        self.read = stream.record_event()
        self.uses -= 1
        if not self.uses:
            self.back = None
        return back


def offload_activations(model: PreTrainedModel, host_gb: float) -> HostOffload:
    """Offloads what the checkpointed blocks of ``model`` keep, up to ``host_gb`` gigabytes (10^9 bytes) of pinned host
    memory, in every forward pass with gradients. The backward pass must come before the next of these."""
    offload, entered = HostOffload(model.config.hidden_size, int(host_gb * 1e9)), ExitStack()

    def enter(decoder: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            entered.enter_context(offload.forward())

    def leave(decoder: nn.Module, args: Any, output: Any) -> None:
        entered.close()

    model.base_model.register_forward_pre_hook(enter)
    model.base_model.register_forward_hook(leave, always_call=True)
    return offload
