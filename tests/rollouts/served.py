"""A server in a process of its own, for as long as a test needs it."""

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def served(command: Sequence[str], *more: str, path: str, answers_at: str) -> Iterator[str]:
    """Its URL, once ``answers_at`` answers. ``command`` gets a free port and then ``more``; ``path`` is PYTHONPATH."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([*command, str(port), *more], env={**os.environ, "PYTHONPATH": path})
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(url + answers_at, timeout=1)
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)
