"""A math-verify process: a line of JSON ``[gold, answer]`` in, ``true`` or ``false`` out. See reward/mathematics.py."""

import json
import resource
import sys

from math_verify import parse, verify

MEMORY_BYTES = 4 * 2**30
SECONDS = 5

resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def equal(gold: str, answer: str) -> bool:
    """False also where one cannot be parsed, or takes longer than its seconds."""
    try:
        left, right = (parse(f"${text}$", parsing_timeout=SECONDS) for text in (gold, answer))
        return bool(verify(left, right, timeout_seconds=SECONDS))
    except Exception:
        return False


equal("x+1", "1+x")  # what SymPy imports late is not to count as the first question's time
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(equal(*json.loads(line))), flush=True)
