"""Packed long-context training steps of an 8-block slice of Nemotron-Nano-12B-v2: transformers, ours, ours with Triton.

    python benchmarks/sft_long_context.py [--lengths 2048 4096 ...] [--paths transformers torch triton] [--json FILE]

On one CUDA GPU, bf16, gradient checkpointing, random weights, body only unless --vocabulary adds embeddings and the
tiled loss. Every path runs every length until it is out of memory. MFU counts model FLOPs (recomputation left out,
attention over documents) against 989 TFLOP/s, an H100's dense bf16 peak. The first step's time shows autotuning.
transformers' path does not isolate documents: it is timed all the same.
"""

import argparse
import gc
import json
import time
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from transformers import NemotronHConfig, NemotronHForCausalLM

from models.documents import packed_inputs
from models.hybrid import install
from models.isolation import check_isolation
from models.known import KNOWN
from models.loss import causal_loss
from models.tiling import tile_mlps

PEAK = 989e12
PATHS = ["transformers", "torch", "triton"]
NANO = KNOWN["nvidia/NVIDIA-Nemotron-Nano-12B-v2-Base"]


def slice_model(vocabulary: int) -> NemotronHForCausalLM:
    """Eight blocks of the 12B, on the GPU in bf16."""
    settings = NANO | {"hybrid_override_pattern": "M-M-M*M-", "vocab_size": vocabulary, "chunk_size": 128}
    del settings["model_type"]
    config = NemotronHConfig(**settings)
    with torch.device("cuda"):
        model = NemotronHForCausalLM(config).to(torch.bfloat16)
    model.gradient_checkpointing_enable()
    return model.train()


def lengths_of(total: int, mean: int, seed: int) -> list[int]:
    """Document lengths, exponential with this mean, that fill ``total`` tokens exactly."""
    random, cuts = Random(seed), [0]
    while cuts[-1] < total:
        cuts.append(min(total, cuts[-1] + max(16, round(random.expovariate(1 / mean)))))
    return [end - start for start, end in pairwise(cuts)]


def flops(model: NemotronHForCausalLM, lengths: list[int], with_head: bool) -> float:
    """Model FLOPs of one training step: 6 a weight and token, attention's and the scan's products beside."""
    config, tokens = model.config, sum(lengths)
    embeddings = config.vocab_size * config.hidden_size
    weights = sum(weight.numel() for weight in model.parameters()) - (1 if with_head else 2) * embeddings
    kinds = config.layers_block_type
    inner = config.num_attention_heads * config.head_dim
    attention = kinds.count("full_attention") * sum(length * (length + 1) / 2 * 4 * inner for length in lengths)
    channels, size = config.mamba_num_heads * config.mamba_head_dim, config.ssm_state_size
    scan = kinds.count("linear_attention") * tokens * (4 * channels * size + config.chunk_size * channels)
    return 6 * weights * tokens + 3 * (attention + scan)


def step(model: NemotronHForCausalLM, batch: dict[str, Any], with_head: bool) -> None:
    if with_head:
        causal_loss(model, batch["input_ids"], **batch).backward()
    else:
        model.model(**batch).last_hidden_state.float().square().mean().backward()
    model.zero_grad(set_to_none=True)


def measure(path: str, total: int, arguments: argparse.Namespace) -> dict[str, float]:
    """First step's and later steps' seconds, tokens per second, MFU and peak memory; raises when out of memory."""
    torch.manual_seed(0)
    model = slice_model(arguments.vocabulary or 1024)
    if path != "transformers":
        install(model, kernels="triton" if path == "triton" else "torch")
        tile_mlps(model)
    lengths = lengths_of(total, arguments.mean, seed=0)
    batch = {"input_ids": torch.randint(0, model.config.vocab_size, (1, total), device="cuda")}
    batch |= packed_inputs(lengths, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(1 + arguments.steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step(model, batch, bool(arguments.vocabulary))
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    best = min(seconds[1:])
    return {
        "tokens": total,
        "first_step_s": seconds[0],
        "tokens_per_s": total / best,
        "mfu": flops(model, lengths, bool(arguments.vocabulary)) / best / PEAK,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768, 65536, 131072])
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS)
    parser.add_argument("--mean", type=int, default=6500, help="mean document length, tokens")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=0, help="add the loss over this vocabulary (131072)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    figures: dict[str, float] = {}
    for path in arguments.paths:
        for total in arguments.lengths:
            try:
                row = measure(path, total, arguments)
            except torch.OutOfMemoryError:
                print(f"{path:13} {total:7d} tokens: out of memory", flush=True)
                break
            finally:
                gc.collect()
                torch.cuda.empty_cache()
            figures |= {f"{path}.{total}.{key}": value for key, value in row.items()}
            print(
                f"{path:13} {total:7d} tokens  first step {row['first_step_s']:6.1f} s  "
                f"{row['tokens_per_s']:8.0f} tok/s  MFU {row['mfu']:6.1%}  peak {row['peak_gb']:5.1f} GB",
                flush=True,
            )
    model = slice_model(1024).eval()
    install(model, kernels="triton" if "triton" in arguments.paths else "torch")
    random = Random(1)
    documents = [[random.randrange(1024) for _ in range(length)] for length in (700, 33, 1500, 1, 260)]
    report = check_isolation(model, documents)
    print(report)
    figures |= {"isolation.max_abs_logprob_diff_bf16": report.max_difference}
    figures |= {"isolation.mean_abs_logprob_diff_bf16": report.mean_difference}
    if arguments.json:
        setting = {"torch": torch.__version__, "transformers": transformers.__version__}
        setting |= {"device": torch.cuda.get_device_name(), "arguments": vars(arguments)}
        arguments.json.write_text(json.dumps({"setting": setting, "figures": figures}, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
