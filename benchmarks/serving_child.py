"""One vLLM of benchmarks/serving.py, in a process of its own: ``python -m benchmarks.serving_child JOB.json OUT.json``.

The job: ``engine`` (vLLM's arguments), ``requests`` of ``input`` random tokens and ``output`` answered ones, and
``seconds`` of decoding at most. All requests are given at once. What is written: seconds to the first tokens of all,
and seconds and tokens of every step after that.
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    job, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    started = time.monotonic()
    served = LLM(**job["engine"])
    engine = served.llm_engine
    cache = engine.vllm_config.cache_config
    told: dict[str, Any] = {
        "start_s": time.monotonic() - started, "blocks": cache.num_gpu_blocks, "block_tokens": cache.block_size,
        "concurrency": getattr(cache, "kv_cache_max_concurrency", None),
    }  # fmt: skip
    out.write_text(json.dumps(told))
    generator = random.Random(0)
    settings = SamplingParams(
        max_tokens=job["output"], ignore_eos=True, temperature=1.0, detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )  # fmt: skip
    begun = time.monotonic()
    for number in range(job["requests"]):
        ids = [generator.randrange(job["vocabulary"]) for _ in range(job["input"])]
        engine.add_request(str(number), {"prompt_token_ids": ids}, settings)
    first, prefill, steps, tokens = set[str](), 0.0, [], 0
    while engine.has_unfinished_requests():
        before = time.monotonic()
        new = 0
        for each in engine.step():
            new += sum(len(part.token_ids) for part in each.outputs)
            first.add(each.request_id)
        tokens += new
        if prefill:
            steps.append((time.monotonic() - before, new))
        elif len(first) == job["requests"]:
            prefill, decoded = time.monotonic() - begun, tokens
        if prefill and time.monotonic() - begun - prefill > job["seconds"]:
            break
    told |= {"prefill_s": prefill, "tokens": tokens, "before_all_had_one": decoded, "steps": steps,
             "wall_s": time.monotonic() - begun, "complete": not engine.has_unfinished_requests()}  # fmt: skip
    out.write_text(json.dumps(told))


if __name__ == "__main__":
    main()
