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
from collections.abc import Sequence
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


class VerifierPool:
    """Up to ``workers`` processes (default: one per processor, at most 8) of the verifier ``kind`` (worker.VERIFIERS),
    started when first needed. Verdicts do not depend on how many. Safe to share between threads."""

    def __init__(self, kind: str, workers: int | None = None, timeout_s: float = 60.0) -> None:
        count = workers or min(8, os.cpu_count() or 1)
        self.started = False
        """Whether any question has needed a process."""
        self._workers: queue.LifoQueue[Worker] = queue.LifoQueue()
        for _ in range(count):
            self._workers.put(Worker(kind, timeout_s))
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=f"verify-{kind}")

    def ask(self, questions: Sequence[Any]) -> list[Score]:
        """The verdict on each question, in order. Raises TypeError for a question that is not plain data, and
        ConfigError where no worker starts."""
        return list(self._threads.map(self._ask, [json.dumps(pack(question)).encode() for question in questions]))

    def _ask(self, line: bytes) -> Score:
        self.started = True
        worker = self._workers.get()
        try:
            return worker.ask(line)
        finally:
            self._workers.put(worker)


class Worker:
    """One process; renewed after ``LIFE`` questions, as SymPy's caches grow."""

    LIFE = 5000

    def __init__(self, kind: str, timeout_s: float) -> None:
        self._kind, self._timeout_s = kind, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize | None = None
        self._asked = 0

    def ask(self, line: bytes) -> Score:
        process = self._process if self._process and self._asked < self.LIFE else self._renew()
        self._asked += 1
        try:
            score, reason = json.loads(_exchange(process, line + b"\n", self._timeout_s))
            return Score(score, reason)
        except TimeoutError:
            reason = TOO_LONG
        except (OSError, ValueError, TypeError):  # a broken pipe, or an end without a verdict
            with suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            reason = TOO_LONG if process.returncode == -signal.SIGXCPU else "the verifier's process ended"
        self._stop()
        return Score(0.0, reason)

    def _renew(self) -> subprocess.Popen[bytes]:
        """Raises ConfigError where a new process ends before it is ready: that is no answer's fault."""
        self._stop()
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [sys.executable, str(_WORKER), self._kind],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={name: os.environ[name] for name in _PASSED if name in os.environ} | {"OMP_NUM_THREADS": "1"},
            )
            assert process.stdin and process.stdout
            os.set_blocking(process.stdin.fileno(), False)
            ready = process.stdout.readline()  # its imports take seconds that count for no question
            self._process, self._end, self._asked = process, weakref.finalize(self, _end, process), 0
            if not ready:
                self._stop()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
                raise ConfigError(f"reward {self._kind}: the verifier's process does not start: {said[-1]}")
            if missing := json.loads(ready):
                _LOG.warning("reward %s: sandbox layers missing on this machine: %s", self._kind, ", ".join(missing))
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
