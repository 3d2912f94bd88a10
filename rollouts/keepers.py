"""How the servers of a pool come to be: started on this machine, or found at a URL; again each time one is lost."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nanoalign.models.loading import resolve
from nanoalign.rollouts.base import EngineLostError, Opening
from nanoalign.rollouts.delivery import ByFolder, ByNCCL
from nanoalign.rollouts.engines import ServerSettings
from nanoalign.rollouts.local_server import LocalServer
from nanoalign.rollouts.pool import ServerPool
from nanoalign.rollouts.server import CONTROL_S, Server
from nanoalign.rollouts.vllm import vllm_options

FIND_S = 300.0
"""Seconds in which a server of others that was lost must answer again; at first it must answer at once."""


def open_server(settings: ServerSettings, opening: Opening) -> ServerPool:
    """The engine on the servers at ``settings.server``, or on servers of our own, started all at once.

    Raises:
        ConfigError: one of our own does not start. EngineLostError: another one does not answer.
    """
    exchange = opening.exchange or Path(tempfile.mkdtemp(prefix="nanoalign-exchange-"))
    opening = replace(opening, model=resolve(opening.model), exchange=exchange)
    device = torch.cuda.current_device() if settings.weights == "nccl" else None
    dtype = getattr(torch, settings.dtype or opening.dtype)
    keepers: list[OwnServer | FoundServer] = [FoundServer(url, settings, opening, device) for url in settings.urls]
    if not keepers:
        shares = settings.shares
        logs = [exchange / ("server.log" if len(shares) == 1 else f"server-{n}.log") for n in range(len(shares))]
        keepers = [OwnServer(settings, opening, gpus, log, device) for gpus, log in zip(shares, logs, strict=True)]
    return ServerPool(
        keepers, opening.thinking,
        ByFolder(exchange / "weights", dtype) if device is None else ByNCCL(torch.device("cuda", device), dtype),
        parallel=opening.batch_size, restarts=settings.restarts, control_s=min(CONTROL_S, settings.deadline_s),
        keep=settings.partial == "continue", budgets=opening.budgets or bool(settings.urls),
    )  # fmt: skip


class OwnServer:
    """A server on this machine, on GPUs of its own; a :class:`rollouts.slots.Keeper`."""

    def __init__(
        self, settings: ServerSettings, opening: Opening, gpus: list[int] | None, log: Path, device: int | None
    ) -> None:
        self.settings, self.opening, self.gpus, self.log, self.device = settings, opening, gpus, log, device
        self.process: LocalServer | None = None

    def start(self, given_up: Callable[[], bool]) -> Server:
        arguments = command_line(vllm_options(self.settings, self.opening))
        if self.device is not None:
            arguments += ["--weight-transfer-config", json.dumps({"backend": "nccl"})]
        on_cpu = not torch.cuda.is_available()
        if on_cpu:
            arguments += ["--worker-extension-cls", "nanoalign.rollouts.vllm.PackedHead"]
        if self.gpus is not None:
            arguments += ["--tensor-parallel-size", str(len(self.gpus))]
        self.process = LocalServer(
            self.opening.model, self.opening.tags, self.log, arguments, self.gpus, self.opening.budgets
        )
        self.process.wait(given_up)
        return Server(self.process.url, self.settings.deadline_s, on_cpu=on_cpu, nccl_device=self.device)

    def stop(self, server: Server | None) -> None:
        if server is not None:
            server.close()
        if self.process is not None:
            self.process.stop()
            self.process = None


class FoundServer:
    """A server that others have started; a :class:`rollouts.slots.Keeper`."""

    def __init__(self, url: str, settings: ServerSettings, opening: Opening, device: int | None) -> None:
        self.url, self.settings, self.opening, self.device = url, settings, opening, device
        self.found = False

    def start(self, given_up: Callable[[], bool]) -> Server:
        end = time.monotonic() + (min(FIND_S, self.settings.deadline_s) if self.found else 0.0)
        while True:
            try:
                server = Server(self.url, self.settings.deadline_s, nccl_device=self.device)
                break
            except EngineLostError:
                if given_up() or time.monotonic() > end:
                    raise
                time.sleep(0.5)
        self.found = True
        server.load_folder(self.opening.model)
        return server

    def stop(self, server: Server | None) -> None:
        if server is not None:
            server.close()


def command_line(options: Mapping[str, Any]) -> list[str]:
    """vLLM's arguments as its command takes them; None is left out."""
    arguments = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            arguments += [f"--{flag}", str(value)]
    return arguments
