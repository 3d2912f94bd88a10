"""Other packages' verifiers in sandboxed processes: see reward/sandboxed/worker.py.

One protocol for all: a line of JSON with a question goes in, a line ``[score, reason]`` comes out. A worker that dies,
or does not answer in time, is replaced, and its question scores 0 with the reason.
"""

import json
import logging
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.reward.base import Score
from nanoalign.reward.sandbox import TOO_LONG
from nanoalign.reward.sandboxed.wire import pack

_LOG = logging.getLogger(__name__)
_WORKER = Path(__file__).with_name("sandboxed") / "worker.py"

_PASSED = ("PATH", "HOME", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "LD_LIBRARY_PATH")
"""Of the environment: where packages lie, and none of its secrets."""


START_S = 600.0
"""Seconds that a process may take until it is ready."""


class VerifierPool:
    """Up to ``workers`` processes (default: one per processor, at most 8) of the verifier ``kind`` (worker.VERIFIERS),
    started when first needed. Verdicts do not depend on how many. Safe to share between threads."""

    def __init__(self, kind: str, workers: int | None = None, timeout_s: float = 60.0) -> None:
        count = workers or min(8, os.cpu_count() or 1)
        self.started = False
        """Whether any question has needed a process."""
        passed = {name: os.environ[name] for name in _PASSED if name in os.environ} | {"OMP_NUM_THREADS": "1"}
        self._pool = ProcessPool(kind, [sys.executable, str(_WORKER), kind], passed, count, timeout_s)

    def ask(self, questions: Sequence[Any]) -> list[Score]:
        """The verdict on each question, in order. Raises TypeError for a question that is not plain data, and
        ConfigError where no worker starts."""
        lines = [json.dumps(pack(question)).encode() for question in questions]
        self.started = self.started or bool(lines)
        return [Score(score, reason) for score, reason in self._pool.start(lines)]


class ProcessPool:
    """``count`` processes of one command, started when first needed, that each answer a line by a line of JSON, a list.
    One that dies or is late is replaced, and its answer is ``[0.0, reason]``."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], count: int, timeout_s: float) -> None:
        self._workers: queue.LifoQueue[Worker] = queue.LifoQueue()
        for _ in range(count):
            self._workers.put(Worker(name, command, env, timeout_s))
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=f"verify-{name}")

    def start(self, lines: Sequence[bytes]) -> Iterator[list[Any]]:
        """Asks all lines at once; the answers come in their order, each awaited when it is taken."""
        return self._threads.map(self._ask, lines)

    def _ask(self, line: bytes) -> list[Any]:
        worker = self._workers.get()
        try:
            return worker.ask(line)
        finally:
            self._workers.put(worker)


class Worker:
    """One process; renewed after ``LIFE`` questions, as SymPy's caches grow."""

    LIFE = 5000

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], timeout_s: float) -> None:
        self._name, self._command, self._env, self._timeout_s = name, list(command), dict(env), timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize | None = None
        self._asked = 0

    def ask(self, line: bytes) -> list[Any]:
        process = self._process if self._process and self._asked < self.LIFE else self._renew()
        self._asked += 1
        try:
            return list(json.loads(_exchange(process, line + b"\n", self._timeout_s)))
        except TimeoutError:
            reason = TOO_LONG
        except (OSError, ValueError, TypeError):  # a broken pipe, or an end without a verdict
            with suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            reason = TOO_LONG if process.returncode == -signal.SIGXCPU else "the verifier's process ended"
        self._stop()
        return [0.0, reason]

    def _renew(self) -> subprocess.Popen[bytes]:
        """Raises ConfigError where a new process ends before it is ready: that is no answer's fault."""
        self._stop()
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                self._command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._env,
            )
            assert process.stdin and process.stdout
            os.set_blocking(process.stdin.fileno(), False)
            begun = select.select([process.stdout], [], [], START_S)[0]
            ready = process.stdout.readline() if begun else b""  # its imports take seconds that count for no question
            self._process, self._end, self._asked = process, weakref.finalize(self, _end, process), 0
            if not ready:
                self._stop()
                errors.seek(0)
                silent = "no message" if begun else f"it was not ready in {START_S:g} s"
                said = errors.read().decode(errors="replace").strip().splitlines() or [silent]
                raise ConfigError(f"reward {self._name}: the verifier's process does not start: {said[-1]}")
            if missing := json.loads(ready):
                _LOG.warning("reward %s: sandbox layers missing on this machine: %s", self._name, ", ".join(missing))
        return process

    def _stop(self) -> None:
        if self._end:
            self._end()
        self._process = self._end = None


def _exchange(process: subprocess.Popen[bytes], line: bytes, seconds: float) -> bytes:
    """Writes a line and reads one. Raises TimeoutError, BrokenPipeError, or EOFError's kin by an empty line."""
    assert process.stdin and process.stdout
    given, taken = process.stdin.fileno(), process.stdout.fileno()
    deadline, reply = time.monotonic() + seconds, b""
    while not reply.endswith(b"\n"):
        left = deadline - time.monotonic()
        readable, writable, _ = select.select([] if line else [taken], [given] if line else [], [], max(0.0, left))
        if not readable and not writable:
            raise TimeoutError
        if writable:
            line = line[os.write(given, line) :]
        elif more := os.read(taken, 65536):
            reply += more
        else:
            return b""
    return reply


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):  # what the dead process has not read is still in the pipe's buffer
            if pipe:
                pipe.close()
