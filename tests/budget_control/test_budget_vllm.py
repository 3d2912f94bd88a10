"""The budget rule in a real vLLM on the CPU, on a tiny random Llama."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip
vllm = pytest.importorskip("vllm", reason="vLLM is not installed")

import torch  # noqa: E402
from tiny_models import save_tiny_llama  # noqa: E402

from nanoalign.budget_control.rule import BudgetRule  # noqa: E402
from nanoalign.budget_control.vocabulary import ThinkingTokens  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Any]:
    """Its cache holds a third of what eight rows may come to need: rows are preempted and come back."""
    llm = vllm.LLM(
        str(folder), logits_processors=["nanoalign.budget_control.vllm:ThinkingBudget"], enforce_eager=True,
        dtype="float32", max_model_len=256, max_num_seqs=8, max_num_batched_tokens=64, enable_prefix_caching=True,
        block_size=32, num_gpu_blocks_override=14, disable_log_stats=False,
    )  # fmt: skip
    yield llm
    del llm


def generate(engine: Any, prompt: list[int], **settings: Any) -> list[list[int]]:
    outputs = engine.generate([{"prompt_token_ids": prompt}], vllm.SamplingParams(**settings), use_tqdm=False)
    return [list(each.token_ids) for each in outputs[0].outputs]


def test_every_budget_is_kept_in_one_mixed_batch(engine: Any) -> None:
    """20 requests of two samples each over 8 rows: some wait, some are prefilled in chunks of 64 tokens (a request with
    a seed of its own cannot be, in vLLM 0.31 on the CPU)."""
    tokenizer = engine.get_tokenizer()
    tokens = ThinkingTokens.from_tokenizer(tokenizer)
    short, long = tokenizer.encode("<think>\n"), tokenizer.encode("so it goes. " * 30 + "<think>\n")
    budgets = [None, 0, 1, 5, 12] * 4
    params = [
        vllm.SamplingParams(
            n=2, max_tokens=60, ignore_eos=number % 3 == 0,
            extra_args={"grace": 6} if budget is None else {"thinking_budget": budget, "grace": 6},
        )
        for number, budget in enumerate(budgets)
    ]  # fmt: skip
    prompts = [short if number % 2 else long for number in range(len(budgets))]
    outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    forced_tokens = 0
    for prompt, budget, output in zip(prompts, budgets, outputs):
        rule = BudgetRule(tokens, budget, grace=6)
        for sample in output.outputs:
            state = rule.start(prompt)
            for token in sample.token_ids:
                if (due := rule.forced(state)) is not None:
                    assert token == due
                    forced_tokens += 1
                state = rule.advance(state, token)
            assert budget is None or not rule.thinking(state)
            assert state.used <= rule.longest_thinking
    assert forced_tokens > 50
    counts = {metric.name: getattr(metric, "value", None) for metric in engine.get_metrics()}
    assert counts["vllm:num_preemptions"] > 0 and counts["vllm:prefix_cache_hits"] > 0


def test_no_budget_changes_nothing_and_a_budget_only_what_it_must(engine: Any) -> None:
    tokenizer = engine.get_tokenizer()
    prompt = tokenizer.encode("hm <think>\n")
    [free] = generate(engine, prompt, temperature=0.0, max_tokens=30, ignore_eos=True)
    [wide] = generate(
        engine, prompt, temperature=0.0, max_tokens=30, ignore_eos=True, extra_args={"thinking_budget": 99}
    )
    [tight] = generate(
        engine, prompt, temperature=0.0, max_tokens=30, ignore_eos=True, extra_args={"thinking_budget": 9, "grace": 0}
    )
    close = list(ThinkingTokens.from_tokenizer(tokenizer).close_ids)
    assert wide == free
    assert tight[:9] == free[:9] and tight[9 : 9 + len(close)] == close


@pytest.mark.parametrize(
    "bad", [{"thinking_budget": -1}, {"thinking_budget": "8"}, {"thinking_budget": 3, "grace": 0.5}, {"generated": -1}]
)
def test_a_wrong_budget_fails_its_request_and_no_other(engine: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="expected a number of tokens >= 0"):
        generate(engine, [5, 6, 7], max_tokens=3, extra_args=bad)
    assert len(generate(engine, [5, 6, 7], max_tokens=3, ignore_eos=True)[0]) == 3


def test_speculative_decoding_is_refused(folder: Path) -> None:
    import copy

    from nanoalign.budget_control.vllm import ThinkingBudget
    from nanoalign.common.errors import ConfigError

    config = copy.copy(vllm.EngineArgs(str(folder), max_model_len=64).create_engine_config())
    config.speculative_config = object()
    with pytest.raises(ConfigError, match="speculative decoding"):
        ThinkingBudget(config, torch.device("cpu"), False)
