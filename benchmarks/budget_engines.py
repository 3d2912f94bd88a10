"""One vLLM engine of benchmarks/budget_overhead.py, in its own process: it starts, reports that it is ready, and
measures a round on request. Messages are JSON lines on the original standard output; everything else goes to standard
error."""

import json
import os
import sys
import time
from typing import Any

GRACE = 64
OPEN, CLOSE = "<think>", "</think>"
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {  # Llama 3.1 8B
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
    },
    "135m": {},  # random weights in the model's own shape
    "tiny": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 32},
}  # fmt: skip


def python_loop() -> type:
    """The rule kept one request at a time, as NVIDIA's processor for Nemotron 3 and most others are written: a Python
    loop over the batch, and one write to the logits for every request that is to close. Stop tokens are left alone."""
    import torch
    from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

    from nanoalign.budget_control.rule import BudgetRule
    from nanoalign.budget_control.vllm import _thinking_tokens, request_budget

    class PythonLoop(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
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


def __getattr__(name: str) -> type:
    """vLLM looks its processors up by name, ``benchmarks.budget_engines:PythonLoop``, in whichever process it runs."""
    if name == "PythonLoop":
        return python_loop()
    raise AttributeError(name)


def settings(variant: str, shape: str, requests: int, length: int, model: str) -> dict[str, Any]:
    """What ``vllm.LLM`` is called with. All variants but plain_v2 run on vLLM's first model runner: the second, its
    default for some architectures, takes neither logits processors nor ``thinking_token_budget``."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    for name, value in SHAPES.get(shape, {}).items():
        setattr(config, name, value)
    on_gpu = torch.cuda.is_available()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * head * (2 if on_gpu else 4)
    chosen: dict[str, Any] = {
        "max_num_seqs": requests, "max_model_len": length + 128, "enable_prefix_caching": False, "seed": 0,
        "kv_cache_memory_bytes": token_bytes * requests * (length + 128), "disable_log_stats": True,
    }  # fmt: skip
    if on_gpu:
        sizes = sorted({size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size < requests} | {requests})
        chosen |= {"dtype": "bfloat16", "gpu_memory_utilization": 0.05}
        chosen["compilation_config"] = {"cudagraph_capture_sizes": sizes}
    else:
        chosen |= {"dtype": "float32", "enforce_eager": True}
    if shape != "as it is":
        chosen |= {"hf_overrides": SHAPES[shape], "load_format": "dummy"}
    if variant == "ours":
        chosen["logits_processors"] = ["nanoalign.budget_control.vllm:ThinkingBudget"]
    elif variant == "python_loop":
        chosen["logits_processors"] = ["benchmarks.budget_engines:PythonLoop"]
    elif variant == "native":
        from vllm.config import ReasoningConfig

        chosen["reasoning_config"] = ReasoningConfig(reasoning_start_str=OPEN, reasoning_end_str=CLOSE)
    return chosen


class Measured:
    """A started engine and its requests."""

    def __init__(self, variant: str, model: str, shape: str, requests: int, length: int) -> None:
        from vllm import LLM, SamplingParams

        begun = time.perf_counter()
        self.length = length
        self.engine = LLM(model, **settings(variant, shape, requests, length, model))
        tokenizer = self.engine.get_tokenizer()
        self.tokenizer = tokenizer
        self.prompts = [
            tokenizer.encode(f"Question {number}: how much is {number} + {number}?\n{OPEN}\n")
            for number in range(requests)
        ]
        self.budgets = [(number * length) // requests for number in range(requests)]
        # A stop token that is never drawn: with one, the processor guards every step of thinking, as in real use.
        stop = [max([*tokenizer.added_tokens_decoder, tokenizer.eos_token_id])]
        self.params = []
        for budget in self.budgets:
            extra: dict[str, Any] = {}
            if variant in ("ours", "python_loop"):
                extra["extra_args"] = {"thinking_budget": budget, "grace": GRACE}
            elif variant == "native":
                extra["thinking_token_budget"] = budget
            # Random weights draw tokens that the tokenizer has no text for.
            self.params.append(
                SamplingParams(
                    temperature=1.0, max_tokens=length, ignore_eos=True, stop_token_ids=stop,
                    detokenize=shape == "as it is", **extra,
                )
            )  # fmt: skip
        self.started_s = time.perf_counter() - begun

    def round(self) -> dict[str, float]:
        """Tokens per second of all requests together, from the first one's prompt to the last one's end; how many
        completions kept the rule, the most tokens thought past a budget, and how many ended unclosed."""
        from nanoalign.budget_control.rule import BudgetRule
        from nanoalign.budget_control.vocabulary import ThinkingTokens

        prompts: list[Any] = [{"prompt_token_ids": prompt} for prompt in self.prompts]
        begun = time.perf_counter()
        outputs = self.engine.generate(prompts, self.params, use_tqdm=False)
        seconds = time.perf_counter() - begun
        table = ThinkingTokens.from_tokenizer(self.tokenizer, OPEN, CLOSE)
        kept = overshoot = unclosed = 0
        for prompt, budget, output in zip(self.prompts, self.budgets, outputs):
            rule = BudgetRule(table, budget, GRACE)
            state, right = rule.start(prompt), True
            for token in output.outputs[0].token_ids:
                right &= rule.forced(state) in (None, token)
                state = rule.advance(state, token)
            kept += right
            overshoot = max(overshoot, state.used - budget)
            unclosed += rule.thinking(state) and rule.longest_thinking <= self.length
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        return {
            "tokens_per_s": tokens / seconds, "tokens": tokens, "rule_kept": kept / len(outputs),
            "overshoot_max": overshoot, "unclosed": unclosed,
        }  # fmt: skip


def main(variant: str, model: str, shape: str, requests: int, length: int) -> None:
    """Serves one engine over standard input and output until the input ends."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    engine = Measured(variant, model, shape, requests, length)
    engine.round()  # warm-up
    say({"ready": engine.started_s})
    for _ in sys.stdin:
        say(engine.round())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
