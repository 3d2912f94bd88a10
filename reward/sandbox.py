"""Untrusted programs in locked-down processes: see reward/sandboxed for the restrictions, and for how tests reach a
program."""

import os
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nanoalign.reward.base import RewardError

TOO_LONG = "over the time limit"
_SCRIPT = Path(__file__).with_name("sandboxed") / "program.py"
_MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What one program may use (its judge as much again)."""

    seconds: float = 10.0
    """Of processor time, rounded up. The clock allows three times that plus two, for programs that only wait: so the
    same programs pass on a busy machine."""
    memory_mib: int = 1024
    output_kib: int = 256


@dataclass(frozen=True)
class ProgramResult:
    """``passed``: the tests did, or without tests: the program ended with status 0. ``output`` is what was printed,
    ``error`` the end of stderr. ``reason`` says why there is no verdict ("over the time limit"), "" where there is one.
    ``hidden``: files outside the interpreter's folders were invisible to it (see ``walls.hide_files``)."""

    passed: bool
    output: str
    error: str
    reason: str = ""
    hidden: bool = True


def run_program(code: str, tests: str = "", stdin: str = "", limits: Limits | None = None) -> ProgramResult:
    """Runs ``code``; with ``tests``, those in a separate process, which can use the program's functions and classes by
    name (reward/sandboxed/remote.py says what passes between the two). Raises RewardError where the sandbox cannot be
    set up: no program ever runs without it.
    """
    limits = limits or Limits()
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as given, \
            tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as wrong, \
            tempfile.TemporaryFile() as judged:  # fmt: skip
        for file, text in ((source, code), (judged, tests), (given, stdin)):
            file.write(text.encode("utf-8", "replace"))
            file.seek(0)
        files = [source.fileno(), judged.fileno() if tests else -1, told.fileno()]
        sizes = [-int(-limits.seconds // 1), limits.memory_mib * _MIB, limits.output_kib * 1024]
        packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        process = subprocess.Popen(
            [sys.executable, "-E", "-S", str(_SCRIPT), *map(str, files + sizes), *packages],
            stdin=given,
            stdout=printed,
            stderr=wrong,
            pass_fds=[file for file in files if file >= 0],
            env={"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
            cwd="/",
            start_new_session=True,
        )
        in_time = _wait(process, 3 * limits.seconds + 2)
        walls, verdict, *_ = [*_read(told, limits.output_kib * 1024).split("\n"), ""]
        output, error = (_read(file, limits.output_kib * 1024) for file in (printed, wrong))
    if not walls.startswith("walls up"):
        raise RewardError(f"the sandbox cannot be set up here: {error[-500:].strip() or 'no output from it'}")
    status = process.returncode
    if not in_time or (not verdict and status in (-signal.SIGXCPU, -signal.SIGKILL)):
        reason = TOO_LONG
    else:
        reason = verdict if verdict not in ("", "passed", "failed") else ""
    passed = verdict == "passed" if tests else in_time and status == 0
    return ProgramResult(passed, output, error[-2000:], reason, walls.endswith("True"))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process ended in time. All of its session is gone afterwards: it cannot leave it."""
    handle = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(handle)
        os.killpg(process.pid, signal.SIGKILL)  # before it is waited for: until then its number is no one else's
        process.wait()


def _read(file: BinaryIO, most: int) -> str:
    file.seek(0)
    return file.read(most).decode("utf-8", "replace")
