"""A math-verify process: a line of JSON ``[gold, answer]`` in, ``true`` or ``false`` out. See reward/mathematics.py."""

import json
import resource
import sys
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

MEMORY_BYTES = 4 * 2**30
SECONDS = 5

resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


@lru_cache(maxsize=512)
def parsed(text: str) -> list[Any]:
    """Cached, as a group of answers shares its gold answer and often agrees."""
    return parse(f"${text}$", parsing_timeout=SECONDS)


def equal(gold: str, answer: str) -> bool:
    """False also where one cannot be parsed, or takes longer than its seconds."""
    try:
        return bool(verify(parsed(gold), parsed(answer), timeout_seconds=SECONDS))
    except Exception:
        return False


equal("x+1", "1+x")  # what SymPy imports late is not to count as the first question's time
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(equal(*json.loads(line))), flush=True)
