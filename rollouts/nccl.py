"""Weights from the trainer's GPU to a server's, by NCCL: the trainer's end of vLLM's weight-transfer engine (0.24 to
0.31).

Each server has a group of its own, the trainer as rank 0 and the server's workers after it: a server that dies takes no
other along, and one that comes back makes a fresh group. NCCL knows no deadline, so it runs on a daemon thread, and the
group is aborted where either end fails or is late.
"""

import math
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import torch

from nanoalign.common.errors import NanoalignError
from nanoalign.common.processes import in_background
from nanoalign.rollouts.base import EngineLostError

PACKED = {"packed": True, "packed_buffer_size_bytes": 2**40}
"""vLLM's workers expect a broadcast whenever tensors exceed this size: never within a bucket. They allocate what comes.
"""

Tensors = Sequence[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Packed:
    """A bucket as vLLM's workers take it."""

    info: dict[str, Any]
    """Names, dtypes and shapes of its tensors."""
    flat: torch.Tensor
    """Their bytes one after the other [sum of sizes], uint8."""


def pack(bucket: Tensors, device: torch.device | str) -> Packed:
    """``bucket``: in the dtypes in which the server is to take them. Wide dtypes come first: vLLM's workers view bytes
    as tensors where they lie, which fails at an address that their dtype does not divide."""
    bucket = sorted(bucket, key=lambda each: -each[1].element_size())
    flat = torch.cat([tensor.detach().to(device).contiguous().reshape(-1).view(torch.uint8) for _, tensor in bucket])
    if flat.is_cuda:
        torch.cuda.current_stream(flat.device).synchronize()  # it is read on streams of other threads
    info = {
        "names": [name for name, _ in bucket],
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
        "shapes": [list(tensor.shape) for _, tensor in bucket],
    }
    return Packed(info, flat)


class Group:
    """The trainer's place, rank 0, in an NCCL group of ``size``; made when all have come."""

    def __init__(self, host: str, port: int, size: int, device: int) -> None:
        from nanoalign.rollouts.vllm import nccl_group

        self.device = device
        self.nccl = nccl_group(host, port, size, device)
        self.stream = torch.cuda.Stream(device)

    def broadcast(self, flat: torch.Tensor) -> None:
        """Waits until it has gone out."""
        with torch.cuda.device(self.device):
            self.nccl.broadcast(flat, src=0, stream=self.stream)
            self.stream.synchronize()

    def abort(self) -> None:
        """NCCL's kernels wait for ever for a peer that is gone, and with them whatever the trainer's GPU does next."""
        with torch.cuda.device(self.device):
            self.nccl.nccl.lib.ncclCommAbort(self.nccl.comm)


class NCCLTransfer:
    """A group with the workers of one server. A failure raises EngineLostError and leaves the group unusable.

    A sync is :meth:`begin`, :meth:`send` of each bucket and :meth:`finish`.
    """

    def __init__(self, ask: Callable[..., Any], url: str, deadline_s: float, device: int) -> None:
        """``ask(route, body)`` is the server's HTTP, ``device`` the trainer's GPU."""
        self.ask, self.deadline_s = ask, deadline_s
        self.group: Group | None = None
        size = ask("/get_world_size")["world_size"] + 1
        # Up to vLLM 0.27 every update says that tensors come packed, later the group does.
        self.packed_groups = _version(ask("/version")["version"]) >= (0, 28)
        host, port = _own_address(url)
        init = {"master_address": host, "master_port": port, "rank_offset": 1, "world_size": size}
        body = {"init_info": init | (PACKED if self.packed_groups else {})}

        def meet() -> None:
            self.group = Group(host, port, size, device)

        self._both(lambda: ask("/init_weight_transfer_engine", body), meet)

    def begin(self) -> None:
        self.ask("/start_weight_update", {})

    def send(self, bucket: Packed) -> None:
        group = self.group
        if group is None:
            raise EngineLostError("weights by NCCL: the group was left")
        update = bucket.info | ({} if self.packed_groups else PACKED)
        self._both(
            lambda: self.ask("/update_weights", {"update_info": update}), lambda: group.broadcast(bucket.flat)
        )  # fmt: skip

    def finish(self) -> None:
        self.ask("/finish_weight_update", {})

    def close(self) -> None:
        """Leaves the group; what still waits in it is given up, on the GPU too."""
        group, self.group = self.group, None
        if group is not None:
            threading.Thread(target=group.abort, daemon=True).start()

    def _both(self, ask: Callable[[], Any], move: Callable[[], None]) -> None:
        """``ask`` over HTTP and ``move`` over NCCL, which wait for each other, on threads that may hang."""
        moves = [in_background(ask), in_background(move)]
        done, late = wait(moves, self.deadline_s, FIRST_EXCEPTION)
        try:
            for each in done:
                each.result()
            if late:
                raise EngineLostError(f"weights by NCCL: not through within {self.deadline_s:g} s")
        except NanoalignError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise EngineLostError(f"weights by NCCL: {type(error).__name__}: {error}") from error


def _own_address(url: str) -> tuple[str, int]:
    """This machine's address on the way to a server, and a free port."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way, socket.socket() as free:
        way.connect((parts.hostname or "127.0.0.1", parts.port or 80))
        host = way.getsockname()[0]
        free.bind((host, 0))
        return host, free.getsockname()[1]


def _version(text: str) -> tuple[float, ...]:
    """(0, 28) of "0.28.1+cu130"; what is no number, such as a build from source, counts as the newest."""
    try:
        return tuple(int(part) for part in text.split(".")[:2])
    except ValueError:
        return (math.inf,)
