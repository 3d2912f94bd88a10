"""Mathematical equality: an exact fast path, and math-verify in worker processes for the rest.

math-verify arms SIGALRM (main thread only) and SymPy may hang or swallow memory, so it runs in small Python processes
that are killed when they do not answer in time.
"""

import json
import os
import queue
import re
import select
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

from common.errors import ConfigError
from reward.answers import final_number, stated_answer

LONGEST = 400
"""Characters: a longer answer is no answer."""
_WORKER = Path(__file__).with_name("math_worker.py")
_NOISE = re.compile(
    r"\\(?:left|right|displaystyle|mathrm|mathbf|[,!;: ])|[$\s]|\^\{?\\circ\}?|\\?%|\\text\{\s*\w*\s*\}"
)
_VARIABLE = re.compile(r"[a-zA-Z](?:_\{?\w+\}?)?(?:\([a-zA-Z]\))?=")
_RELATION = re.compile(r"[<>=≈≠≤≥≡~∼≃]|\\(?:approx|neq?|leq?|geq?|lt|gt|sim|simeq|equiv|cong)(?![a-z])")
_NUMBER = re.compile(r"(-?)(?:\\frac\{(-?\d+)\}\{(-?\d+)\}|(\d+(?:\.\d*)?|\.\d+)(?:/(\d+))?)")


class MathVerifier:
    """Compares answers; holds up to ``workers`` processes, started when first needed. Results do not depend on it."""

    def __init__(self, workers: int | None = None, timeout_s: float = 60.0) -> None:
        count = workers or min(8, os.cpu_count() or 1)
        self.started = False
        """Whether any question has needed a process."""
        self._workers: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for _ in range(count):
            self._workers.put(_Worker(timeout_s))
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="math-verify")

    def score(self, gold: str, text: str) -> float:
        """1.0 where the final answer in ``text`` (see reward/answers.py) equals ``gold``, else 0.0."""
        return self.scores([(gold, text)])[0]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """:meth:`score` of each (gold, text), the slow ones in parallel."""
        answers = [stated_answer(text) or final_number(text) for _, text in pairs]
        known = [_equal_fast(gold, answer) for (gold, _), answer in zip(pairs, answers)]
        slow = [place for place, result in enumerate(known) if result is None]
        slow_results = self._threads.map(lambda place: self._ask(pairs[place][0], answers[place] or ""), slow)
        for place, result in zip(slow, slow_results):
            known[place] = result
        return [float(bool(result)) for result in known]

    def _ask(self, gold: str, answer: str) -> bool:
        self.started = True
        worker = self._workers.get()
        try:
            return worker.ask(gold, answer)
        finally:
            self._workers.put(worker)


def _plain(text: str) -> str:
    text = _NOISE.sub("", text).replace("dfrac", "frac").replace("tfrac", "frac")
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).rstrip(".")


def _number(text: str) -> Fraction | None:
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    sign, over, under, decimal, divisor = found.groups()
    if int(under or divisor or 1) == 0:
        return None
    value = Fraction(int(over), int(under)) if over else Fraction(decimal) / int(divisor or 1)
    return -value if sign else value


def _equal_fast(gold: str, answer: str | None) -> bool | None:
    """Whether two answers are equal, or None where it takes algebra. ``x = 5`` answers ``5``, but no other relation
    does: a chain such as ``41 = 42`` would else pass by its last link, ``42 \\approx 43`` by its first."""
    if not answer or len(answer) > LONGEST:
        return False
    right, left = _plain(gold), _plain(answer)
    if not _RELATION.search(right):
        left = _VARIABLE.sub("", left, count=1) if _VARIABLE.match(left) else left
        if _RELATION.search(left):
            return False
    if left == right:
        return True
    numbers = _number(left), _number(right)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return None if left else False


class _Worker:
    """One math-verify process; killed when it hangs, renewed after ``LIFE`` questions, as SymPy's caches grow."""

    LIFE = 5000

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize | None = None
        self._asked = 0

    def ask(self, gold: str, answer: str) -> bool:
        """False also where the process dies or does not answer in time."""
        process = self._process if self._process and self._asked < self.LIFE else self._renew()
        self._asked += 1
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self._stop()
            return False
        ready, _, _ = select.select([process.stdout], [], [], self._timeout_s)
        reply = process.stdout.readline() if ready else b""
        if not reply:
            self._stop()
        return reply.strip() == b"true"

    def _renew(self) -> subprocess.Popen[bytes]:
        """Raises ConfigError where a new process ends before it is ready: no answer is wrong for that."""
        self._stop()
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER)],  # beside it lies a code.py, which is not Python's
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            assert process.stdout
            ready = process.stdout.readline()  # its imports take seconds that are nobody's question
            self._process, self._end, self._asked = process, weakref.finalize(self, _end, process), 0
            if not ready:
                self._stop()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
                raise ConfigError(f"reward math: the process of math-verify does not start: {said[-1]}")
        return process

    def _stop(self) -> None:
        if self._end:
            self._end()
        self._process = self._end = None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):  # what the dead process has not read is still in the pipe's buffer
            if pipe:
                pipe.close()
