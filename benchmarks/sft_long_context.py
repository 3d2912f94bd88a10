"""Packed long-context training on one GPU: speed, memory and exactness, each measurement in a process of its own.

    python benchmarks/sft_long_context.py [--only NAME ...] [--json FILE]

Shapes are Nemotron Nano v2's with random weights, in bf16 with gradient checkpointing: an 8-block slice of the 12B
(``M-M-M*M-``, body only, full gradients) and the whole 9B with LoRA on every projection and the tiled loss. Packs hold
documents of exponential length, 6,500 tokens on average. MFU counts model FLOPs only: 6 a weight and token where the
weight is trained, 4 where it is frozen, attention over documents, the scan's products; recomputation is left out.
989 TFLOP/s is an H100's dense bf16 peak. transformers' own path does not isolate documents: it is timed all the same.
"""

import argparse
import inspect
import json
import os
import resource
import subprocess
import sys
import time
import types
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from transformers import NemotronHConfig, NemotronHForCausalLM

from nanoalign.common.files import atomic_file
from nanoalign.models.adapters import attach
from nanoalign.models.config import LoRA
from nanoalign.models.fp8_layers import use_fp8
from nanoalign.models.hybrid import install
from nanoalign.models.isolation import check_isolation
from nanoalign.models.kernels import verify_kernels
from nanoalign.models.known import KNOWN
from nanoalign.models.loss import causal_loss, linear_cross_entropy
from nanoalign.models.offload import HostOffload
from nanoalign.models.packed_attention import packed_inputs
from nanoalign.models.tiling import tile

PEAK = 989e12
MEAN = 6500
SLICE = KNOWN["nvidia/NVIDIA-Nemotron-Nano-12B-v2-Base"] | {"hybrid_override_pattern": "M-M-M*M-", "vocab_size": 1024}
NANO_9B = KNOWN["nvidia/NVIDIA-Nemotron-Nano-9B-v2"]
LENGTHS = {
    "transformers": [2048, 4096, 8192],
    "wheels": [4096, 8192, 16384, 32768],
    "triton": [8192, 16384, 32768, 65536, 131072, 262144],
    "fp8": [16384, 131072, 262144],
    "torch": [8192, 16384],
}
"""Paths through the slice, and the packs that each tries, in tokens."""
Figures = dict[str, float]


def build(shape: dict[str, Any]) -> NemotronHForCausalLM:
    """A model of this shape on the GPU, in bf16, drawn from seed 0."""
    settings = {key: value for key, value in shape.items() if key != "model_type"} | {"chunk_size": 128}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = NemotronHForCausalLM(NemotronHConfig(**settings))
    torch.set_default_dtype(torch.float32)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def lengths_of(total: int, mean: int = MEAN, seed: int = 0) -> list[int]:
    """Document lengths, exponential with this mean, that fill ``total`` tokens exactly."""
    random, cuts = Random(seed), [0]
    while cuts[-1] < total:
        cuts.append(min(total, cuts[-1] + max(16, round(random.expovariate(1 / mean)))))
    return [end - start for start, end in pairwise(cuts)]


def pack(vocabulary: int, lengths: list[int]) -> dict[str, Any]:
    ids = torch.randint(0, vocabulary, (1, sum(lengths)), device="cuda")
    return {"input_ids": ids} | packed_inputs(lengths, device="cuda")


def flops(model: torch.nn.Module, config: Any, lengths: list[int], with_head: bool) -> float:
    """Model FLOPs of one training step."""
    tokens, embeddings = sum(lengths), config.vocab_size * config.hidden_size
    body = -(1 if with_head else 2) * embeddings  # weights that multiply: not the embedding table
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    every = sum(weight.numel() for weight in model.parameters())
    frozen = every - trained
    kinds = config.layers_block_type
    inner = config.num_attention_heads * config.head_dim
    attention = kinds.count("full_attention") * sum(length * (length + 1) / 2 * 4 * inner for length in lengths)
    channels, size = config.mamba_num_heads * config.mamba_head_dim, config.ssm_state_size
    scan = kinds.count("linear_attention") * tokens * (4 * channels * size + config.chunk_size * channels)
    weights = 4 * (frozen + body) + 6 * trained if frozen else 6 * (trained + body)
    return weights * tokens + 3 * (attention + scan)


def timed(run: Callable[[], None], steps: int) -> list[float]:
    """Seconds of each of ``steps`` runs."""
    seconds = []
    for _ in range(steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def speed(run: Callable[[], None], work: float, tokens: int, steps: int) -> Figures:
    """First step's seconds, and speed and memory of the fastest later step."""
    torch.cuda.reset_peak_memory_stats()
    seconds = timed(run, 1 + steps)
    best = min(seconds[1:])
    return {
        "tokens": tokens,
        "first_step_s": seconds[0],
        "step_s": best,
        "tokens_per_s": tokens / best,
        "mfu": work / best / PEAK,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def use_wheels() -> None:
    """transformers' mixer with mamba-ssm's Triton scan in place of its fallback. It finds none by itself: the wheel's
    top level imports compiled CUDA, and so does the fused path that it prefers."""
    from transformers.models.nemotron_h import modeling_nemotron_h as theirs

    sys.modules["selective_scan_cuda"] = types.ModuleType("selective_scan_cuda")  # its Mamba-1 extension
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined as scan

    known = inspect.signature(scan).parameters

    def chunk_scan(*args: Any, **kwargs: Any) -> Any:
        return scan(*args, **{key: value for key, value in kwargs.items() if key in known and key != "cu_seqlens"})

    theirs.mamba2_chunk_scan = chunk_scan


def slice_step(path: str, total: int, keep: int = 0, tokens: int = 16384, steps: int = 3) -> Figures:
    """The slice: ``transformers``, it with ``wheels`` (:func:`use_wheels`), or ours on ``torch``, ``triton``, or that
    in ``fp8``: all its blocks, since it stands for the inside of the 12B, whose first and last of 62 stay in bf16."""
    model = build(SLICE)
    if path == "wheels":
        use_wheels()
    start = time.perf_counter()
    if path in ("torch", "triton", "fp8"):
        install(model, kernels="triton" if path == "fp8" else path)  # type: ignore[arg-type]
        if path == "fp8":
            use_fp8(model, ends=0)
        tile(model, tokens, keep)
    prepare_s = time.perf_counter() - start
    lengths = lengths_of(total)
    batch = pack(SLICE["vocab_size"], lengths)
    slope = torch.randn(1, total, SLICE["hidden_size"], device="cuda", dtype=torch.bfloat16) / total

    def step() -> None:
        model.model(**batch).last_hidden_state.backward(slope)
        for weight in model.parameters():
            weight.grad = None

    found = speed(step, flops(model, model.config, lengths, False), total, steps)
    if os.environ.get("PROFILE"):
        profile(step)
    return found | {"prepare_s": prepare_s}


def profile(step: Callable[[], None]) -> None:
    """Prints where one step's GPU time goes."""
    kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profiler:
        (seconds,) = timed(step, 1)
    rows = [row for row in profiler.key_averages() if row.self_device_time_total > 0 and not row.cpu_time_total]
    rows = sorted(rows, key=lambda row: -row.self_device_time_total)
    print(f"profile: {sum(row.self_device_time_total for row in rows) / 1e3:.0f} ms of kernels in {seconds:.2f} s")
    for row in rows[:28]:
        print(f"profile: {row.self_device_time_total / 1e3:8.1f} ms {row.count:6d} x {row.key[:110]}")


def nano9b(
    total: int, host_gb: float, keep: int = 0, tokens: int = 16384, steps: int = 2, precision: str = ""
) -> Figures:
    """The 9B with LoRA on every projection and the tiled loss over its vocabulary; AdamW steps on the adapters."""
    base = build(NANO_9B)
    install(base, kernels="triton")
    model = attach(base, LoRA(), seed=0)
    if precision == "fp8":
        use_fp8(model)
    tile(base, tokens, keep)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    lengths = lengths_of(total)
    batch = pack(NANO_9B["vocab_size"], lengths)
    offload = HostOffload(int(host_gb * 1e9))
    losses = []

    def step() -> None:
        with offload.forward():
            loss = causal_loss(base, batch["input_ids"], **batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    found = speed(step, flops(model, base.config, lengths, True), total, steps)
    if os.environ.get("PROFILE"):
        profile(step)
    return found | {"offloaded_gb": offload.parked_bytes / 1e9, "loss": float(losses[-1])}


def loss_memory(total: int = 131072, hidden: int = 4480, vocabulary: int = 131072) -> Figures:
    """What the tiled loss adds to the memory of its input, forward and backward, the head frozen and trained."""
    figures: Figures = {}
    for name, trained in (("", False), ("_trained_head", True)):
        x = torch.randn(total, hidden, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        head = torch.randn(vocabulary, hidden, device="cuda", dtype=torch.bfloat16, requires_grad=trained)
        figures |= {f"{key}{name}": value for key, value in _loss_memory(x, head).items()}
    return figures


def _loss_memory(x: torch.Tensor, head: torch.Tensor) -> Figures:
    labels = torch.randint(0, len(head), (len(x),), device="cuda")

    def step() -> None:
        x.grad = head.grad = None
        linear_cross_entropy(x, head, labels).backward()

    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = timed(step, 2)
    return {
        "extra_gb": (torch.cuda.max_memory_allocated() - before) / 1e9,
        "gradient_gb": (x.nbytes + head.nbytes * head.requires_grad) / 1e9,
        "first_s": seconds[0],
        "s": seconds[1],
    }


def isolation(dtype: str, kernels: str = "triton", precision: str = "") -> Figures:
    """Packed documents against each alone, through the slice as it is trained."""
    model = build(SLICE).to(getattr(torch, dtype))
    install(model, kernels=kernels)  # type: ignore[arg-type]
    if precision == "fp8":
        use_fp8(model, ends=0)
    tile(model, 512)
    random = Random(1)
    documents = [[random.randrange(1024) for _ in range(length)] for length in (700, 33, 1500, 1, 260, 4000)]
    torch.backends.cuda.matmul.allow_tf32 = False
    report = check_isolation(model, documents, gradients=True)
    print(report)
    return {
        "max": report.max_difference,
        "mean": report.mean_difference,
        "start": report.start_difference,
        "gradient": report.gradient_difference or 0.0,
    }


def kernels() -> Figures:
    """How far each Triton kernel is from torch's functions, and how long the check takes."""
    start = time.perf_counter()
    found = verify_kernels(torch.device("cuda:0"))
    return found | {"s": time.perf_counter() - start}


def measurements() -> dict[str, tuple[Callable[..., Figures], dict[str, Any]]]:
    """Every measurement by name, cheap and telling ones first."""
    found: dict[str, tuple[Callable[..., Figures], dict[str, Any]]] = {
        "kernels": (kernels, {}),
        "slice.triton.131072": (slice_step, {"path": "triton", "total": 131072, "keep": 8}),
        "nano9b_lora.131072": (nano9b, {"total": 131072, "host_gb": 110, "keep": 14}),
        "fp8.nano9b_lora.131072": (nano9b, {"total": 131072, "host_gb": 110, "keep": 14, "precision": "fp8"}),
        "isolation.bfloat16": (isolation, {"dtype": "bfloat16"}),
        "fp8.isolation": (isolation, {"dtype": "bfloat16", "precision": "fp8"}),
        "isolation.float32": (isolation, {"dtype": "float32", "kernels": "torch"}),
        "loss": (loss_memory, {}),
    }
    for path, totals in LENGTHS.items():
        for total in totals:
            keep = 8 if path in ("triton", "fp8") and total <= 131072 else 0
            found.setdefault(f"slice.{path}.{total}", (slice_step, {"path": path, "total": total, "keep": keep}))
    return found


def summary(results: Figures) -> Figures:
    """The figures that the results page is checked against, of those measured."""
    found: Figures = {}
    for short, name, keys in (
        ("slice_131k", "slice.triton.131072", ("mfu", "tokens_per_s", "peak_gb")),
        ("nano9b_lora_131k", "nano9b_lora.131072", ("mfu", "tokens_per_s", "peak_gb", "offloaded_gb")),
        ("loss_131k", "loss", ("extra_gb",)),
    ):
        found |= {f"{short}.{key}": results[f"{name}.{key}"] for key in keys if f"{name}.{key}" in results}
    for short, dtype in (("bf16", "bfloat16"), ("fp32", "float32")):
        for kind in ("max", "mean"):
            if f"isolation.{dtype}.{kind}" in results:
                found[f"isolation.{kind}_abs_logprob_diff_{short}"] = results[f"isolation.{dtype}.{kind}"]
    for path in ("transformers", "wheels"):  # each at the longest pack that it held
        longest = [results[key] for total in LENGTHS[path] if (key := f"slice.{path}.{total}.tokens_per_s") in results]
        if longest and "slice_131k.tokens_per_s" in found:
            found[f"slice.ratio_vs_{path}"] = found["slice_131k.tokens_per_s"] / longest[-1]
    for short, name in (("slice_131k", "slice.{}.131072"), ("nano9b_lora_131k", "{}nano9b_lora.131072")):
        ours, bf16 = (results.get(f"{name.format(path)}.tokens_per_s") for path in
                      (("fp8", "triton") if "slice" in short else ("fp8.", "")))  # fmt: skip
        if ours and bf16:
            found[f"fp8.{short}.ratio_vs_bf16"] = ours / bf16
    if "slice.triton.131072.first_step_s" in results:
        found["first_step_s"] = sum(results[f"slice.triton.131072.{part}_s"] for part in ("prepare", "first_step"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="names of measurements")
    parser.add_argument("--set", type=json.loads, default={}, help="other arguments for --only's, as JSON")
    parser.add_argument("--inside", action="store_true", help="measure in this process")
    parser.add_argument("--timeout", type=int, default=150, help="seconds for each")
    parser.add_argument("--json", type=Path, help="figures, added to those that the file has")
    arguments = parser.parse_args()
    known = measurements()
    if arguments.inside:
        transformers.logging.set_verbosity_error()
        function, settings = known[arguments.only[0]]
        figures = function(**settings | arguments.set)
        print("FIGURES " + json.dumps(figures))
        return
    results: dict[str, Any] = {}
    if arguments.json and arguments.json.is_file():
        results = json.loads(arguments.json.read_text())["measured"]
    for name in arguments.only or known:
        command = [sys.executable, __file__, "--inside", "--only", name, "--set", json.dumps(arguments.set)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.timeout)
            output = done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            output = f"took more than {arguments.timeout} s"
        lines = [line for line in output.splitlines() if line.startswith("FIGURES ")]
        figures = json.loads(lines[-1].removeprefix("FIGURES ")) if lines else {}
        results |= {f"{name}.{key}": value for key, value in figures.items()}
        shown = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        why = "out of memory" if "OutOfMemoryError" in output else output.strip()[-300:]
        print(f"{name:24} {shown or why}", flush=True)
        if arguments.json:
            setting = {"torch": torch.__version__, "transformers": transformers.__version__}
            setting |= {"device": torch.cuda.get_device_name(), "command": " ".join(sys.argv)}
            content = {"setting": setting, "figures": summary(results), "measured": results}
            with atomic_file(arguments.json) as temporary:  # read back by the next call
                temporary.write_text(json.dumps(content, indent=2) + "\n")
    for key, value in summary(results).items():
        print(f"{key:40} {value:.6g}")


if __name__ == "__main__":
    main()
