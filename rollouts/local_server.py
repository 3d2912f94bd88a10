"""A vLLM server that a stage starts on its own machine, and that stops with the stage, however it ends."""

import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from nanoalign.budget_control.serve import serve_command, serve_environment
from nanoalign.common.errors import ConfigError
from nanoalign.rollouts.base import EngineLostError

OF_THE_LAUNCHER = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_",
    "ACCELERATE_", "VLLM_ENABLE_V1_MULTIPROCESSING",
)  # fmt: skip
"""Variables of a rank of the trainer, by how they begin: a server that finds them waits for that launcher's store in
place of opening its own."""
LOUD = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_LEVEL": "INFO"}
"""Its log is a file, which says what a slow start waits for."""
CPU_CACHE = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""Unless the user says otherwise, as colocated (rollouts/vllm.py): vLLM's own choice on a CPU is 92% of the machine's
memory, and where that is not free the server does not start."""
START_S = 900.0
"""Seconds in which a server must answer: loading weights and capturing graphs takes minutes for large models."""
STOP_S = 10.0


class LocalServer:
    """``nanoalign serve`` on a free port of this machine; it answers after :meth:`wait`.

    It ends when the *thread* that made it ends (Linux knows parents by thread), however that happens.
    """

    def __init__(
        self,
        model: Path,
        tags: tuple[str, str],
        log: Path,
        vllm_arguments: Sequence[str],
        gpus: Sequence[int] | None = None,
        budgets: bool = True,
    ) -> None:
        """``log`` gets the server's output; ``gpus`` are its GPUs among those that this process sees, None: all.

        Raises:
            ConfigError: there are not that many GPUs.
        """
        self.model, self.log = model, log
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        arguments = ["--disable-uvicorn-access-log", *vllm_arguments]
        command = serve_command(str(model), port=self.port, tags=tags, vllm_arguments=arguments, budgets=budgets)
        environment = CPU_CACHE | serve_environment("127.0.0.1", None, budgets) | LOUD
        for name in [name for name in environment if name.startswith(OF_THE_LAUNCHER)]:
            del environment[name]
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = visible_devices(gpus, environment.get("CUDA_VISIBLE_DEVICES"))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip

    def wait(self, given_up: Callable[[], bool]) -> None:
        """Until the server answers, or until ``given_up()``.

        Raises:
            EngineLostError: given up.
            ConfigError: vLLM is not installed, or the server ended, or did not answer in time; with its last lines.
        """
        end = time.monotonic() + START_S
        while not self.answers():
            if given_up():
                raise EngineLostError("the start of vLLM's server was given up")
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                last = self.log.read_text(errors="replace")[-1500:]
                raise ConfigError(
                    f"rollouts.engine: vLLM's server did not start for {self.model}; {self.log} ends with\n{last}"
                )
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5.0) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def stop(self) -> None:
        """Ends the server and its workers, gently for some seconds."""
        for deadly in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, deadly)
                self.process.wait(STOP_S)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def visible_devices(gpus: Sequence[int], visible: str | None) -> str:
    """CUDA_VISIBLE_DEVICES for the ``gpus``-th of those that are visible.

    Raises:
        ConfigError: there are not that many.
    """
    if visible is None:
        return ",".join(map(str, gpus))
    devices = visible.split(",")
    if max(gpus) >= len(devices):
        raise ConfigError(
            f"rollouts.engine.gpus: {max(gpus)} is not among the {len(devices)} in CUDA_VISIBLE_DEVICES={visible}"
        )
    return ",".join(devices[gpu] for gpu in gpus)


_LIBC = ctypes.CDLL(None)
"""Opened here: a fork of a process with threads should take no locks."""


def _end_with_parent() -> None:
    """Linux sends the server a SIGTERM when the thread that made it ends, so that no trainer's death leaves one."""
    PR_SET_PDEATHSIG = 1
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


_given: set[int] = set()


def _free_port() -> int:
    """Another one each time: servers that start together have not bound theirs yet."""
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return port
