"""Milliseconds of a decoding step of vLLM with what rollouts ask for, alone or beside others on the host.

    python benchmarks/lease/engine_probe.py MODEL [--own-process] [--sequences 128]

Run it once alone, then once on each GPU at the same time: a step that takes longer beside others waits for the host's
processors. In the caller's process (the default) a profile of the last run names what they do.
"""

import argparse
import cProfile
import os
import pstats
import time
from typing import Any

LENGTH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--own-process", action="store_true", help="the engine in one, as servers have it")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--profile-lines", type=int, default=25)
    options = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(options.own_process))
    import torch
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    on_cpu: dict[str, Any] = {"enable_chunked_prefill": False, "enable_prefix_caching": False, "enforce_eager": True}
    more = {"gpu_memory_utilization": 0.5} if torch.cuda.is_available() else on_cpu
    engine = LLM(options.model, max_model_len=2 * LENGTH, disable_log_stats=True, **more)
    prompts: Any = [
        {"prompt_token_ids": [(row * 7 + place) % 40 + 3 for place in range(LENGTH)]}
        for row in range(options.sequences)
    ]

    def step_ms(**asked: Any) -> float:
        started = time.perf_counter()
        asked = {"max_tokens": LENGTH, "ignore_eos": True, "detokenize": False, **asked}
        parameters = [
            SamplingParams(**asked, output_kind=RequestOutputKind.FINAL_ONLY, seed=row if asked.get("logprobs") == 0
                           else None) for row in range(len(prompts))
        ]  # fmt: skip
        engine.generate(prompts, parameters, use_tqdm=False)
        return 1000 * (time.perf_counter() - started) / LENGTH

    step_ms()
    for name, asked in {
        "tokens alone": {},
        "log-probabilities and seeds": {"logprobs": 0},
        "these as flat lists": {"logprobs": 0, "flat_logprobs": True},
    }.items():
        print(f"{name:30} {step_ms(**asked):8.2f} ms a step of {options.sequences} sequences", flush=True)
    if not options.own_process:
        profile = cProfile.Profile()
        profile.runcall(step_ms, logprobs=0, flat_logprobs=True)
        pstats.Stats(profile).sort_stats("tottime").print_stats(options.profile_lines)


if __name__ == "__main__":
    main()
