"""A math-verify process: a line of JSON ``[gold, answer]`` in, ``true`` or ``false`` out. See reward/mathematics.py."""

import json
import resource
import sys

from math_verify import parse, verify

MEMORY_BYTES = 4 * 2**30

resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
print("ready", flush=True)
for line in sys.stdin:
    gold, answer = (text if text.startswith("$") else f"${text}$" for text in json.loads(line))
    try:
        equal = verify(parse(gold, parsing_timeout=3), parse(answer, parsing_timeout=3), timeout_seconds=3)
    except Exception:
        equal = False
    print(json.dumps(bool(equal)), flush=True)
