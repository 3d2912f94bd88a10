"""Says where a function is that does not return, of a call that nothing ends."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SLOW_S = 60.0
"""Seconds after which a call in this process is told, once."""


@contextmanager
def told_when_slow(name: str, file: Path, samples: int) -> Iterator[None]:
    """Writes to standard error (a stage's log) on which line of ``file`` this thread's call of reward ``name`` is after
    ``SLOW_S``. A function that takes longer is none the worse for it: it goes on."""
    caller = threading.get_ident()

    def tell() -> None:
        frame, line = sys._current_frames().get(caller), None
        while frame is not None and line is None:
            line = frame.f_lineno if Path(frame.f_code.co_filename) == file else None
            frame = frame.f_back
        place = f"{file}:{line}" if line else f"code that {file} called"
        print(
            f"reward {name!r} has worked on {samples} samples for {SLOW_S:g} s and is at {place}; nothing ends a "
            "function in the stage's own process: give it `deadline_s`",
            file=sys.stderr,
            flush=True,
        )

    timer = threading.Timer(SLOW_S, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
