"""vLLM with random weights: ``python -m benchmarks.serving PART... --json OUT.json``. No checkpoint is needed.

    capped    8K in, 16K out in 22 GiB: the 9B hybrid and Qwen3-8B's shape, as many at once as fit
    uncapped  the same with all of the GPU
    long      one request of 131,072 tokens to the 9B, its peak memory
    fit       three shapes: what `nanoalign fit` predicts beside what the GPU held
    bench     vLLM's own `bench throughput`, of what `capped` measures, for comparison

All requests start together and each has as much cache as it will need, so that nothing is preempted. Where --seconds
end a run early, the rest is extrapolated: a step's time is a linear function of the tokens so far (the error of that is
in the JSON). Memory is nvidia-smi's, over what was used before. ``--tiny`` tries everything on a CPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.rl_stage import Report
from nanoalign.models.fit import GIB, Fit, Serving, fit
from nanoalign.models.known import KNOWN

HYBRID, PLAIN, LARGE = "nano9b", "qwen3-8b", "nano12b"
SHAPES: dict[str, dict[str, Any]] = {
    HYBRID: KNOWN["nvidia/NVIDIA-Nemotron-Nano-9B-v2"], PLAIN: KNOWN["Qwen/Qwen3-8B"],
    LARGE: KNOWN["nvidia/NVIDIA-Nemotron-Nano-12B-v2"],
}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "vocab_size": 2048}  # fmt: skip
TINY_HYBRID = TINY | {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1,
                      "hybrid_override_pattern": "M-M-*-M-"}  # fmt: skip
WORDS = {"mamba": "linear_attention", "mlp": "mlp", "attention": "full_attention"}
CAP = 22 * GIB
LONG_CAP_GIB = 22.06
SHARE = 0.93
"""Of the GPU's memory where nothing is capped."""
Options = argparse.Namespace


def shape_of(name: str, tiny: bool) -> dict[str, Any]:
    if not tiny:
        return SHAPES[name]
    return SHAPES[name] | (TINY | {"num_hidden_layers": 3} if name == PLAIN else TINY_HYBRID)


def folder_of(name: str, options: Options) -> Path:
    """A model folder of a config.json alone."""
    from nanoalign.models.loading import ASSETS
    from nanoalign.models.size import layer_kinds

    shape, folder = shape_of(name, options.tiny), options.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    if name == PLAIN:
        config = shape | {"architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-6,
                          "rope_theta": 1e6, "max_window_layers": shape["num_hidden_layers"],
                          "dtype": "bfloat16"}  # fmt: skip
    else:
        config = json.loads((ASSETS / "miniature-base" / "config.json").read_text()) | {"chunk_size": 128} | shape
        config["layers_block_type"] = [WORDS[kind] for kind in layer_kinds(shape)]
        del config["hybrid_override_pattern"]
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def serving_of(options: Options) -> Serving:
    kind = "float32" if options.tiny else "bfloat16"
    return Serving(kind, kind, "float32", options.step, 128 if options.tiny else 16, prefix_caching=False)


def engine_of(name: str, planned: Fit, options: Options) -> dict[str, Any]:
    """vLLM's arguments, with exactly the cache that was planned."""
    return {
        "model": str(folder_of(name, options)), "load_format": "dummy", "skip_tokenizer_init": True,
        "dtype": "float32" if options.tiny else "bfloat16", "enable_prefix_caching": False,
        "max_model_len": planned.context, "max_num_seqs": planned.batch, "max_num_batched_tokens": options.step,
        "kv_cache_memory_bytes": int(planned.cache), "seed": 0, **({"enforce_eager": True} if options.tiny else {}),
    }  # fmt: skip


def smi(what: str) -> float | None:
    """Bytes; None without a GPU."""
    try:
        said = subprocess.run(["nvidia-smi", f"--query-gpu=memory.{what}", "--format=csv,noheader,nounits", "--id=0"],
                              capture_output=True, text=True, check=True)  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return float(said.stdout.split()[0]) * 2**20


class Watch:
    """The most memory of the GPU that was used meanwhile."""

    def __init__(self) -> None:
        self.before, self.peak, self._ended = smi("used"), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(0.25):
            self.peak = max(self.peak, smi("used") or 0.0)

    def __enter__(self) -> "Watch":
        if self.before is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    @property
    def used(self) -> float | None:
        return None if self.before is None else self.peak - self.before


def run(command: list[str], output: Any, limit: float) -> int:
    """Its exit status; 124 where it took too long, and was ended with all of its processes."""
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return 124


def serve(name: str, planned: Fit, options: Options, prompt: int, answer: int, seconds: float) -> dict[str, Any]:
    """Runs one vLLM; what it told, and what the GPU held."""
    job, out, log = (options.folder / f"{name}.{kind}" for kind in ("job.json", "out.json", "log.txt"))
    out.unlink(missing_ok=True)
    engine = engine_of(name, planned, options)
    job.write_text(json.dumps({
        "engine": engine, "requests": planned.batch, "input": prompt, "output": answer, "seconds": seconds,
        "vocabulary": shape_of(name, options.tiny)["vocab_size"],
    }))  # fmt: skip
    with Watch() as watch, log.open("w") as output:
        code = run([sys.executable, "-m", "benchmarks.serving_child", str(job), str(out)], output, options.limit)
    told: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    told |= {"exit": code, "batch": planned.batch, "planned": planned.as_dict(), "used": watch.used}
    if code:
        told["log"] = log.read_text()[-3000:]
    if "steps" in told:
        told |= whole(told.pop("steps"), told, prompt, answer, planned.batch)
    return told


def whole(steps: list[list[float]], told: dict[str, Any], prompt: int, answer: int, batch: int) -> dict[str, Any]:
    """Answered tokens a second over a whole run, the steps that are missing extrapolated."""
    measured = told["wall_s"]
    missing = batch * answer - told["tokens"]
    figures: dict[str, Any] = {"decode_steps": len(steps), "measured_s": measured, "extrapolated_tokens": missing}
    if missing > 0:
        import numpy as np

        seconds, tokens = np.array(steps).T
        places = (told["before_all_had_one"] + np.cumsum(tokens)) / batch
        parts = np.array_split(np.arange(len(seconds)), min(40, len(seconds)))[1:]  # the first is warm-up
        x = np.array([places[part].mean() for part in parts])
        y = np.array([seconds[part].sum() * batch / max(1.0, tokens[part].sum()) for part in parts])  # of a token each
        slope, constant = np.polyfit(x, y, 1)
        last = float(places[-1])
        rest = float(constant * (answer - last) + slope * (answer**2 - last**2) / 2)
        error = float(np.abs(y - slope * x - constant).mean() / y.mean())
        figures |= {"extrapolated_s": rest, "token_s": [float(constant), float(slope)], "fit_error": error}
        measured += rest
    figures["answered_per_s"] = batch * answer / measured
    figures["all_per_s"] = batch * (answer + prompt) / measured
    return figures


def throughput(options: Options, report: Report, part: str) -> None:
    """``capped`` and ``uncapped``: both models, and their ratio."""
    prompt, answer = (96, 32) if options.tiny else (8192, 16384)
    total = smi("total")
    memory = CAP if part == "capped" or total is None else SHARE * total
    for name in (HYBRID, PLAIN):
        if name not in options.models:
            continue
        config = shape_of(name, options.tiny)
        planned = fit(config, prompt + answer, memory, 1, serving_of(options))
        batch = min(options.batch or planned.largest_batch, 4 if options.tiny else 256)
        planned = fit(config, prompt + answer, memory, max(1, batch), serving_of(options))
        report.note(f"{part}/{name}", serve(name, planned, options, prompt, answer, options.seconds))
    runs = [report.runs.get(f"{part}/{name}", {}).get("answered_per_s") for name in (HYBRID, PLAIN)]
    if all(runs):
        name = "serving.hybrid_vs_qwen3_8b" + ("" if part == "capped" else "_uncapped")
        report.figures[name] = runs[0] / runs[1]


def long(options: Options, report: Report) -> None:
    """One request that fills the model's context; a small step keeps activations low."""
    context = 512 if options.tiny else 131_072
    options.step = min(options.step, 2048)
    planned = fit(shape_of(HYBRID, options.tiny), context, LONG_CAP_GIB * GIB, 1, serving_of(options))
    answer = 32 if options.tiny else 128
    told = serve(HYBRID, planned, options, context - answer, answer, options.seconds)
    report.note("long/nano9b", told)
    if told["used"] and told.get("complete"):
        report.figures["serving.nano9b_128k_gib"] = told["used"] / GIB


def predicted(options: Options, report: Report) -> None:
    """What fit says beside what the GPU held, for each shape; a few short requests make every buffer."""
    worst = 0.0
    for name, context, batch in ((HYBRID, 131_072, 4), (PLAIN, 32_768, 4), (LARGE, 65_536, 8)):
        if name not in options.models:
            continue
        context = 512 if options.tiny else context
        planned = fit(shape_of(name, options.tiny), context, 10 * CAP, batch, serving_of(options))
        told = serve(name, planned, options, min(context // 2, 4096), 16, 60.0)
        # vLLM makes whole blocks of the memory that it is given
        told["blocks_planned"] = planned.cache // planned.pages.block
        if told["used"]:
            told["predicted_over_measured"] = planned.total / told["used"]
            worst = max(worst, abs(planned.total / told["used"] - 1))
        report.note(f"fit/{name}", told)
    if worst:
        report.figures["fit.predicted_vs_measured"] = worst


def bench(options: Options, report: Report) -> None:
    """vLLM's own tool on what `capped` measures, in full."""
    prompt, answer = (96, 32) if options.tiny else (8192, 16384)
    for name in (HYBRID, PLAIN):
        if name not in options.models:
            continue
        planned = fit(shape_of(name, options.tiny), prompt + answer, CAP, 1, serving_of(options))
        batch = min(planned.largest_batch, 4 if options.tiny else 256)
        planned = fit(shape_of(name, options.tiny), prompt + answer, CAP, batch, serving_of(options))
        engine, out = engine_of(name, planned, options), options.folder / f"{name}.bench.json"
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in engine.items() if not isinstance(value, bool)]
        script = (
            "from vllm.benchmarks.throughput import add_cli_args, main\n"
            "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
            "parser = FlexibleArgumentParser()\nadd_cli_args(parser)\nmain(parser.parse_args())"
        )
        command = [
            sys.executable, "-c", script, *flags, "--no-enable-prefix-caching",
            "--dataset-name=random", f"--random-input-len={prompt}", f"--random-output-len={answer}",
            f"--num-prompts={batch}", f"--output-json={out}", f"--tokenizer={options.tokenizer}",
        ]  # fmt: skip
        log = options.folder / f"{name}.bench.txt"
        with Watch() as watch, log.open("w") as output:
            code = run(command, output, options.limit)
        told: dict[str, Any] = {"exit": code, "batch": batch, "used": watch.used}
        if code:
            told["log"] = log.read_text()[-3000:]
        else:
            told["bench"] = json.loads(out.read_text())
            told["answered_per_s"] = batch * answer / told["bench"]["elapsed_time"]
        report.note(f"bench/{name}", told)


PARTS = {
    "capped": lambda options, report: throughput(options, report, "capped"),
    "uncapped": lambda options, report: throughput(options, report, "uncapped"),
    "long": long, "fit": predicted, "bench": bench,
}  # fmt: skip


def table(report: Report) -> None:
    keys = ("batch", "answered_per_s", "prefill_s", "measured_s", "extrapolated_s", "fit_error", "start_s", "blocks",
            "blocks_planned", "predicted_over_measured")  # fmt: skip
    for name, run in report.runs.items():
        told = {key: round(run[key], 3) for key in keys if isinstance(run.get(key), int | float)}
        gib = {key: round(size / GIB, 2) for key, size in (("used", run.get("used")),
               ("planned", run.get("planned", {}).get("total"))) if size}  # fmt: skip
        print(f"{name:20}", told, "GiB:", gib)
    for name, value in report.figures.items():
        print(f"{name:40} {value:.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/serving"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=150.0, help="of decoding, each run")
    parser.add_argument("--limit", type=float, default=500.0, help="seconds of a run in all")
    parser.add_argument("--step", type=int, default=8192, help="tokens of a step (vLLM's max_num_batched_tokens)")
    parser.add_argument("--batch", type=int, help="requests at once, in place of as many as fit")
    parser.add_argument("--tokenizer", default="recipes/assets/miniature-base", help="for vLLM's own tool alone")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.step = min(options.step, 512)
    report = Report(options.json)
    for part in options.parts:
        begun = time.monotonic()
        PARTS[part](options, report)
        print(f"== {part}: {time.monotonic() - begun:.0f} s", flush=True)
    report.write()
    table(report)
    sys.exit(0 if all(run.get("exit") == 0 for run in report.runs.values()) else 1)


if __name__ == "__main__":
    main()
