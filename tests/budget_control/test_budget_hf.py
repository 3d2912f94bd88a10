"""The HF processor in transformers' own generate, on a tiny random Llama."""

import pytest
import torch
from tiny_models import tiny_llama, tiny_tokenizer
from transformers import LogitsProcessorList

from nanoalign.budget_control.hf import ThinkingBudgetProcessor
from nanoalign.budget_control.rule import BudgetRule
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import ConfigError

TOKENIZER = tiny_tokenizer()
TOKENIZER.padding_side = "left"
TOKENS = ThinkingTokens.from_tokenizer(TOKENIZER)
MODEL = tiny_llama(len(TOKENIZER))
PROMPTS = ["<think>\n", "so it goes. " * 5 + "<think>\n", "<think></think>", "hm <think>"]
CLOSE = list(TOKENS.close_ids)


def generate(processor: ThinkingBudgetProcessor | None, **settings: object) -> tuple[list[list[int]], list[list[int]]]:
    batch = TOKENIZER(PROMPTS, return_tensors="pt", padding=True)
    out = MODEL.generate(
        **{k: v for k, v in batch.items() if k != "token_type_ids"}, max_new_tokens=40,
        logits_processor=LogitsProcessorList([processor] if processor else []), **settings,
    )  # fmt: skip
    start = batch["input_ids"].shape[1]
    return out[:, :start].tolist(), out[:, start:].tolist()


@pytest.mark.parametrize("samples", [1, 3])
def test_each_rows_budget_is_kept_under_sampling(samples: int) -> None:
    torch.manual_seed(1)
    budgets: list[int | None] = [3, 0, 5, None]
    prompts, rows = generate(
        ThinkingBudgetProcessor(TOKENS, budgets, grace=4), do_sample=True, num_return_sequences=samples
    )
    assert len(rows) == 4 * samples
    for number, (prompt, row) in enumerate(zip(prompts, rows)):
        rule = BudgetRule(TOKENS, budgets[number // samples], grace=4)
        state = rule.start(prompt)
        for token in row:
            assert rule.forced(state) in (None, token)
            state = rule.advance(state, token)
        assert rule.budget is None or not rule.thinking(state)
    assert all(row[: len(CLOSE)] == CLOSE for row in rows[samples : 2 * samples]), "budget 0 closes at once"


def test_greedy_rows_change_only_where_the_rule_says() -> None:
    settings = {"do_sample": False, "eos_token_id": None}
    _, free = generate(None, **settings)
    _, unlimited = generate(ThinkingBudgetProcessor(TOKENS, None), **settings)
    _, tight = generate(
        ThinkingBudgetProcessor(ThinkingTokens.from_pieces(TOKENS.texts, CLOSE), 6, grace=0), **settings
    )
    assert unlimited == free
    for row, (wanted, got) in enumerate(zip(free, tight)):
        if row == 2:
            assert got == wanted, "it does not think"
        else:
            assert got[:6] == wanted[:6] and got[6 : 6 + len(CLOSE)] == CLOSE


def test_beams_second_calls_and_misfits_are_refused() -> None:
    with pytest.raises(ConfigError, match="without beam search"):
        generate(ThinkingBudgetProcessor(TOKENS, 6), num_beams=3, do_sample=False)
    processor = ThinkingBudgetProcessor(TOKENS, 6)
    generate(processor)
    with pytest.raises(ConfigError, match="one generate call"):
        generate(processor)
    with pytest.raises(ConfigError, match="3 thinking budgets do not fit a batch of 4 rows"):
        generate(ThinkingBudgetProcessor(TOKENS, [1, 2, 3]))
