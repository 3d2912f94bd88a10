"""What is measured of completions, on completions written by hand."""

import math
from typing import Any

import pytest
from tiny_models import tiny_tokenizer

from nanoalign.budget_control.measure import Reading, analyse, compensation, leaked_share, ratio, summary
from nanoalign.budget_control.rule import BudgetRule
from nanoalign.budget_control.vocabulary import ThinkingTokens

TOKENIZER = tiny_tokenizer()
TOKENS = ThinkingTokens.from_tokenizer(TOKENIZER)
LONG = "First three and four are seven.\nThen seven and five are twelve.\nSo the sum is twelve."


def ids(text: str) -> list[int]:
    result: list[int] = TOKENIZER.encode(text, add_special_tokens=False)
    return result


def reading(text: str, *, prompt: str = "Sum?<think>\n", thinking: bool = True, budget: int | None = None,
            grace: int = 3, **changes: Any) -> Reading:  # fmt: skip
    """``text`` under the rule: what the rule would write is written."""
    rule = BudgetRule(TOKENS, budget, grace)
    state, written, forced = rule.start(ids(prompt)), [], []
    drawn = [*ids(text), TOKENIZER.eos_token_id]
    while drawn:
        must = rule.forced(state)
        forced.append(must is not None)
        written.append(drawn.pop(0) if must is None else must)
        state = rule.advance(state, written[-1])
    return analyse(TOKENS, TOKENIZER, ids(prompt), written, forced, thinking=thinking, budget=budget, finished=True)


def test_a_completion_is_split_and_counted() -> None:
    each = reading(f"{LONG}\n</think>\n\nThe answer is 12.")
    assert (each.reasoning, each.answer) == (LONG, "The answer is 12.")
    assert each.thinking_tokens == len(ids(f"{LONG}\n</think>"))
    assert each.answer_tokens == len(ids("\n\nThe answer is 12."))
    assert each.well_formed and each.closed and each.finished and not each.cut and each.overshoot == 0


@pytest.mark.parametrize(
    ("text", "well_formed", "closed"),
    [
        ("hm\n</think>\n\n42", True, True),
        ("hm\n</think>\n\n", False, True),
        ("hm 42", False, False),
        ("hm</think> 42 </think> 42", False, True),
        ("hm</think> 42 <think> hm", False, False),
        ("hm</think><think>hm</think> 42", False, True),
    ],
)
def test_well_formed_is_one_close_and_an_answer(text: str, well_formed: bool, closed: bool) -> None:
    each = reading(text)
    assert (each.well_formed, each.closed) == (well_formed, closed)


def test_formats_whose_model_opens_thinking_itself() -> None:
    assert reading("<think>hm</think>42", prompt="Sum?").well_formed
    assert reading("<think>hm</think>42", prompt="Sum?").reasoning == "hm"
    assert not reading("42", prompt="Sum?").well_formed
    assert reading("42", prompt="Sum?", thinking=False).well_formed


def test_obedience_to_no_think() -> None:
    prompt = "Sum?<think></think>"
    assert reading("42", prompt=prompt, thinking=False).obeys_no_think
    assert not reading("<think>hm</think>42", prompt=prompt, thinking=False).obeys_no_think
    assert not reading("hm, well</think>42", prompt=prompt, thinking=False).obeys_no_think
    both = [reading("42", prompt=prompt, thinking=False), reading("a</think>b", prompt=prompt, thinking=False)]
    assert summary(both)["obedience"].value == 0.5


def test_overshoot_is_at_most_grace_and_the_close() -> None:
    each = reading("so it goes and goes and goes and goes on", budget=4, grace=3)
    assert each.cut and each.overshoot == 3 + len(TOKENS.close_ids)
    at_line = reading("so it\ngoes on and on", budget=2, grace=30)
    assert at_line.cut and at_line.overshoot < 10
    figures = summary([each, at_line])
    assert figures["overshoot_max"].value == each.overshoot and figures["cut"].value == 1.0


def test_compensation_compares_cut_answers_with_free_ones_on_the_same_prompts() -> None:
    free = [reading(f"{LONG}\n</think>\n\nIt is 12."), reading("hm\n</think>\n\nYes."), reading("never ends")]
    tight = [
        reading(f"{LONG}\nThen seven and five are twelve.\n\nIt is 12.", budget=6),
        reading("hm\n</think>\n\nYes.", budget=6),  # closed in time: no pair
        reading("never ends, but is cut here, it seems", budget=3),  # the free run gave no answer: no pair
    ]
    figures = compensation(tight, free)
    assert figures["compensation"].n == figures["leakage"].n == 1
    assert figures["compensation"].value == tight[0].answer_tokens / free[0].answer_tokens > 3
    assert figures["leakage"].value > 0.5
    none = compensation([reading("hm\n</think>\n\nYes.")], [reading("hm\n</think>\n\nYes.")])
    assert none["compensation"].n == 0 and math.isnan(none["compensation"].value)


def test_leakage_is_reasoning_in_the_answer_and_nothing_else() -> None:
    free = reading(f"{LONG}\n</think>\n\nSo the sum is twelve.")
    same = reading("hm\n</think>\n\nSo the sum is twelve.")
    other = reading("hm\n</think>\n\nApples and pears are fruit that grow on trees.")
    thinks_on = reading(f"hm\n</think>\n\n{LONG}")
    assert leaked_share(same, free) == leaked_share(other, free) == 0.0
    assert 0.5 < leaked_share(thinks_on, free) < 1.0
    assert leaked_share(reading("hm\n</think>\n\n42"), free) == 0.0


def test_a_ratio_of_sums_and_its_interval() -> None:
    assert ratio([2, 4, 6], [1, 2, 3]).as_dict() == {"value": 2.0, "low": 2.0, "high": 2.0, "n": 3}
    wide = ratio([1, 9, 2, 8], [5, 5, 5, 5])
    assert wide.value == 1.0 and wide.low < 0.5 and wide.high > 1.5
    assert ratio([1], [0]).n == 0
