"""A math-verify process: a line of JSON ``[gold, answer]`` in, ``true`` or ``false`` out. See reward/mathematics.py.

Its limit is in seconds of processor time, not of the clock, so that a busy machine gives no other scores: math-verify's
own limits, which are of the clock, are off.
"""

import json
import logging
import resource
import signal
import sys
from functools import lru_cache
from types import FrameType
from typing import Any

from math_verify import parse, verify

MEMORY_BYTES = 4 * 2**30
SECONDS = 3.0


class TooLong(BaseException):
    """No Exception, as libraries swallow those."""


def stop(number: int, frame: FrameType | None) -> None:
    raise TooLong


@lru_cache(maxsize=512)
def parsed(text: str) -> list[Any]:
    """Cached, as a group of answers shares its gold answer and often agrees."""
    return parse(f"${text}$", parsing_timeout=None)


def equal(gold: str, answer: str) -> bool:
    """False also where one cannot be parsed, or it takes too long. The timer fires again each second, should a bare
    ``except`` have swallowed the first."""
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS, 1.0)
        return bool(verify(parsed(gold), parsed(answer), timeout_seconds=None))
    except (Exception, TooLong):
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


logging.disable(logging.CRITICAL)
resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
signal.signal(signal.SIGPROF, stop)
equal("x+1", "1+x")  # what SymPy imports late is not to count as the first question's time
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(equal(*json.loads(line))), flush=True)
