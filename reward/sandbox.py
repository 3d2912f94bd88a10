"""Untrusted programs in a locked-down process: see reward/sandbox_child.py for the walls. Linux 5.13 or later."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from reward.base import RewardError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    seconds: float = 10.0
    """Of processor time, rounded up. The clock allows three times that and two more, for programs that only wait: on a
    busy machine the same programs pass."""
    memory_mib: int = 1024
    output_kib: int = 256


@dataclass(frozen=True)
class Outcome:
    """``passed``: program and tests ran to their end. ``output`` is what was printed, ``error`` the end of stderr."""

    passed: bool
    output: str
    error: str


def run_program(code: str, tests: str = "", stdin: str = "", limits: Limits | None = None) -> Outcome:
    """Runs ``code`` and then ``tests`` in one namespace. Raises RewardError where the walls cannot be put up: no
    program ever runs without them.

    What it cannot tell: a program that tampers with its own tests' machinery (say, an ``__eq__`` that is always true)
    passes them, as with any test run in the program's process. Tests by input and output are judged outside.
    """
    limits = limits or Limits()
    token = secrets.token_hex(16)
    job = {
        "code": code,
        "tests": tests,
        "token": token,
        "seconds": int(-(-limits.seconds // 1)),
        "memory_bytes": limits.memory_mib * _MIB,
        "output_bytes": limits.output_kib * 1024,
    }
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as given, \
            tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as wrong:  # fmt: skip
        for file, text in ((source, json.dumps(job)), (given, stdin)):
            file.write(text.encode("utf-8", "replace"))
            file.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", str(_CHILD), str(source.fileno()), str(told.fileno())],
            stdin=given,
            stdout=printed,
            stderr=wrong,
            pass_fds=(source.fileno(), told.fileno()),
            env={"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
            cwd="/",
            start_new_session=True,
        )
        try:
            process.wait(3 * limits.seconds + 2)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill(process)
        words = [_read(file, limits.output_kib * 1024) for file in (told, printed, wrong)]
    if not words[0].startswith("walls up"):
        raise RewardError(
            f"the sandbox cannot be built on this machine: {words[2][-500:].strip() or 'no word from it'}"
        )
    return Outcome(words[0] == f"walls up\n{token}" and process.returncode == 0, words[1], words[2][-2000:])


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(file: BinaryIO, most: int) -> str:
    file.seek(0)
    return file.read(most).decode("utf-8", "replace")
