"""Throughput as vLLM measures it, in a process of its own: ``vllm bench throughput``."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from nanoalign.common.errors import ConfigError
from nanoalign.compress.config import Budget, Throughput

QUANTIZED = ("fp8",)
"""Weights that vLLM quantizes while it loads; int8 and int4 need checkpoints of their own and are timed in bfloat16."""


def can_measure(device: str) -> bool:
    """Whether vLLM is installed and a GPU is there."""
    return device.startswith("cuda") and importlib.util.find_spec("vllm") is not None


def measured(folder: Path, throughput: Throughput, budget: Budget) -> float:
    """Tokens per second that the model in ``folder`` generates for ``throughput.batch`` sequences together, prompts
    included: random prompts, answers of full length.

    Raises:
        ConfigError: vLLM cannot serve it; its last lines are told.
    """
    with tempfile.TemporaryDirectory() as place:
        result = Path(place) / "result.json"
        done = subprocess.run(
            [*command(folder, throughput, budget), "--output-json", str(result)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if done.returncode or not result.is_file():
            last = " | ".join(done.stdout.strip().splitlines()[-3:])
            raise ConfigError(f"throughput.measure: vLLM could not serve {folder} (status {done.returncode}): {last}")
        seconds = json.loads(result.read_text(encoding="utf-8"))["elapsed_time"]
    return throughput.batch * throughput.answer / seconds


def command(folder: Path, throughput: Throughput, budget: Budget) -> list[str]:
    """The command that measures."""
    length = throughput.prompt + throughput.answer
    arguments = {
        "--model": folder, "--dataset-name": "random", "--input-len": max(1, throughput.prompt),
        "--output-len": throughput.answer, "--num-prompts": throughput.batch, "--max-num-seqs": throughput.batch,
        "--max-model-len": length + 8,
    }  # fmt: skip
    wide = budget.weights in ("float32", "bfloat16", "float16")
    arguments["--dtype"] = budget.weights if wide else "bfloat16"
    if budget.weights in QUANTIZED:
        arguments["--quantization"] = budget.weights
    if budget.cache == "fp8":
        arguments["--kv-cache-dtype"] = "fp8"
    words = [str(word) for pair in arguments.items() for word in pair]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "throughput", *words]
