"""How weights get to servers: by NCCL, or through a folder that both sides see. Neither holds a second whole model.

A delivery takes tensors, in any number and size, and two functions of the pool: ``halt()`` stops the servers that are
to get them, and ``each(ask)`` runs ``ask(server)`` on all of these at once, leaving out the ones that are lost on the
way.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file

from nanoalign.common.files import atomic_folder
from nanoalign.models.weights import BUCKET_BYTES, buckets
from nanoalign.rollouts.nccl import pack
from nanoalign.rollouts.server import Server

Each = Callable[[Callable[[Server], object]], None]
Tensors = Iterable[tuple[str, torch.Tensor]]


class Delivery(Protocol):
    def __call__(self, tensors: Tensors, halt: Callable[[], None], each: Each) -> None: ...


class ByFolder:
    """Written once, a file a bucket, while the servers still generate; then all load it."""

    def __init__(self, folder: Path, dtype: torch.dtype, bucket_bytes: int = BUCKET_BYTES) -> None:
        """``dtype`` is that of the servers' matrices."""
        self.folder, self.dtype, self.bucket_bytes = folder, dtype, bucket_bytes

    def __call__(self, tensors: Tensors, halt: Callable[[], None], each: Each) -> None:
        with atomic_folder(self.folder) as temporary:
            for number, bucket in enumerate(buckets(_as_served(_unshared(tensors), self.dtype), self.bucket_bytes)):
                contiguous = {name: tensor.contiguous() for name, tensor in bucket}
                save_file(contiguous, temporary / f"model-{number:05d}.safetensors")
        halt()
        each(lambda server: server.load_folder(self.folder))


class ByNCCL:
    """A bucket at a time to all servers, each of which has a group of its own."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """``device`` is the trainer's GPU."""
        self.device, self.dtype = device, dtype

    def __call__(self, tensors: Tensors, halt: Callable[[], None], each: Each) -> None:
        halt()
        each(lambda server: server.by_nccl.begin())
        for bucket in buckets(_as_served(tensors, self.dtype)):
            packed = pack(bucket, self.device)
            del bucket
            each(lambda server, packed=packed: server.by_nccl.send(packed))  # type: ignore[misc]
        each(lambda server: server.by_nccl.finish())


def _as_served(tensors: Tensors, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Matrices in the servers' dtype; vectors, which they may keep in fp32 (Mamba's A, D and dt), as they are."""
    for name, tensor in tensors:
        matrix = tensor.dim() > 1 and tensor.is_floating_point()
        yield name, tensor.detach().to(dtype) if matrix else tensor.detach()


def _unshared(tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """Each storage once, under its first name: safetensors takes no tensor twice, and vLLM ties tied weights itself.
    Memory that was given back and used again is another storage."""
    first: dict[int, weakref.ref[torch.Tensor]] = {}
    for name, tensor in tensors:
        known = first.get(tensor.data_ptr())
        if tensor.numel() and known is not None and known() is not None:
            continue
        first[tensor.data_ptr()] = weakref.ref(tensor)
        yield name, tensor
