"""Processes of one group, forked on this machine, for workers that have imported everything once."""

import os
import socket
from collections.abc import Callable

import torch


def on_ranks(ranks: int, work: Callable[[int], None]) -> bool:
    """Runs ``work(rank)`` in so many forks, with a launcher's environment where there are several; whether all ended
    well. A process group that the work has made is left there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            if ranks > 1:
                os.environ |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                    "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                }  # fmt: skip
            work(rank)
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            os._exit(0)
        children.append(pid)
    return not any(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)
