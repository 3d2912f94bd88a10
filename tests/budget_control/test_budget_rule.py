"""The rule against a naive reference, and case by case."""

import functools
import random

import naive_budget
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.budget_control.batch import BatchBudget
from nanoalign.budget_control.rule import BudgetRule
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import ConfigError

# A close of one token, of three, of eight; tokens that end, begin or straddle tags and lines; a byte of a character.
PIECES = ["<eos>", "<think>", "</think>", "<", "</", "think", ">", "/", ">\n", "a", "b.", "\n", ".\n\n", "\n  ",
          " \n x", "�", "t", "h", "i", "n", "k", "", "x<", "<think>\n", "</think>\n\n", "k>", " "]  # fmt: skip
CLOSES = [(2,), (4, 5, 6), (3, 7, 16, 17, 18, 19, 20, 6), (3, 7, 5, 6)]
TABLES = [ThinkingTokens.from_pieces(PIECES, close, stop_ids=[0]) for close in CLOSES]
# Tags are rare in uniform streams: draw their parts more often.
streams = st.lists(st.one_of(st.integers(0, len(PIECES) - 1), st.sampled_from([4, 5, 6, 11, 2, 1, 3, 7])), max_size=60)
prompts = st.lists(st.sampled_from([1, 2, 23, 3, 5, 6, 9, 11, 26]), max_size=6)
budgets = st.one_of(st.none(), st.integers(0, 25), st.just(10**20))  # more than int64 holds


def drive(rule: BudgetRule, prompt: list[int], drawn: list[int]) -> tuple[list[int], list[bool]]:
    state, written, forced = rule.start(prompt), [], []
    for token in drawn:
        written.append(rule.written(state, token))
        forced.append(rule.forced(state) is not None or written[-1] != token)
        state = rule.advance(state, written[-1])
        if written[-1] in rule.tokens.stop_ids:
            break
    return written, forced


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(TABLES), prompts, streams, budgets, st.integers(0, 8))
def test_rule_equals_the_naive_reference(
    tokens: ThinkingTokens, prompt: list[int], drawn: list[int], budget: int | None, grace: int
) -> None:
    expected = naive_budget.enforce(PIECES, tokens.close_ids, [0], prompt, iter(drawn), budget, grace)
    rule = BudgetRule(tokens, budget, grace)
    written, forced = drive(rule, prompt, drawn)
    assert (written, forced) == expected
    assert rule.forced_mask(prompt, written, [token in tokens.stop_ids for token in drawn[: len(written)]]) == forced


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(TABLES),
    st.lists(st.tuples(prompts, budgets), min_size=1, max_size=6),
    st.integers(0, 6),
    st.integers(0, 2**32),
)
def test_a_batch_equals_its_rows(
    tokens: ThinkingTokens, rows: list[tuple[list[int], int | None]], grace: int, seed: int
) -> None:
    rng = random.Random(seed)
    rules = [BudgetRule(tokens, budget, grace) for _, budget in rows]
    states = [rule.start(prompt) for rule, (prompt, _) in zip(rules, rows)]
    batch = BatchBudget.start(tokens, [prompt for prompt, _ in rows], [budget for _, budget in rows], grace)
    for _ in range(40):
        sampled = np.array([rng.randrange(len(PIECES)) for _ in rows])
        assert batch.thinking().tolist() == [rule.thinking(state) for rule, state in zip(rules, states)]
        expected = [rule.written(state, token) for rule, state, token in zip(rules, states, sampled.tolist())]
        must = [rule.forced(state) is not None for rule, state in zip(rules, states)]
        written, forced = batch.force(sampled)
        assert written.tolist() == expected
        assert forced.tolist() == [m or w != s for m, w, s in zip(must, expected, sampled.tolist())]
        states = [rule.advance(state, token) for rule, state, token in zip(rules, states, expected)]
        assert batch.used.tolist() == [state.used for state in states]
        order = rng.sample(range(len(rows)), len(rows))
        batch.take(order)
        rules, states = [rules[i] for i in order], [states[i] for i in order]


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(TABLES), prompts, streams, budgets, st.integers(0, 8), st.integers(0, 60))
def test_a_completion_that_is_cut_and_continued_is_one_never_cut(
    tokens: ThinkingTokens, prompt: list[int], drawn: list[int], budget: int | None, grace: int, cut: int
) -> None:
    rule = BudgetRule(tokens, budget, grace)
    whole, _ = drive(rule, prompt, drawn)
    state, rest = rule.resume(prompt, whole[:cut]), whole[:cut]
    assert state == functools.reduce(rule.advance, whole[:cut], rule.start(prompt))
    for token in drawn[cut : len(whole)]:
        rest.append(rule.written(state, token))
        state = rule.advance(state, rest[-1])
    assert rest == whole
    assert state == rule.resume(prompt, whole)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(TABLES), prompts, st.integers(0, 20), st.integers(0, 8), st.integers(0, 2**32))
def test_thinking_is_always_closed_in_time(
    tokens: ThinkingTokens, prompt: list[int], budget: int, grace: int, seed: int
) -> None:
    """Whatever a model does short of opening again, it thinks at most budget + grace + the close, and ends closed."""
    rng, rule = random.Random(seed), BudgetRule(tokens, budget, grace)
    state = rule.start([*prompt, 1])
    for _ in range(int(rule.longest_thinking)):
        if not rule.thinking(state):
            break
        state = rule.advance(state, rule.written(state, rng.randrange(len(PIECES))))
    assert not rule.thinking(state)
    assert state.used <= rule.longest_thinking


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(TABLES), streams)
def test_scanning_a_prompt_equals_reading_it_token_by_token(tokens: ThinkingTokens, ids: list[int]) -> None:
    place = 0
    for token in ids:
        place = tokens.step(place, token)
    assert tokens.scan(ids) == place


def written_text(budget: int | None, drawn: str, grace: int = 500, close: int = 0, prompt: str = "<think>\n") -> str:
    """Spaces separate the drawn tokens."""
    tokens = TABLES[close]
    ids = [PIECES.index(piece) for piece in drawn.replace("↵", "\n").split(" ")]
    written, _ = drive(BudgetRule(tokens, budget, grace), [PIECES.index(prompt)] if prompt else [], ids)
    return "|".join(PIECES[token] for token in written)


def test_closes_at_the_first_line_end_from_the_budget_on() -> None:
    assert written_text(2, "a a a ↵ a a") == "a|a|a|\n|</think>|a"
    assert written_text(2, "a ↵ a a") == "a|\n|</think>|a", "a line that ends right at the budget counts"
    assert written_text(2, "a a .↵↵ a") == "a|a|.\n\n|</think>"
    assert written_text(1, "a a a") == "a|a|a", "no line end, no close"


def test_grace_and_budget_zero() -> None:
    assert written_text(1, "a a a a a", grace=2) == "a|a|a|</think>|a"
    assert written_text(1, "a a a", grace=0) == "a|</think>|a"
    assert written_text(0, "a a", grace=500) == "</think>|a"
    assert written_text(None, "a ↵ ↵ <eos>") == "a|\n|\n|<eos>"


def test_a_close_of_several_tokens_is_forced_token_by_token() -> None:
    assert written_text(1, "↵ a b. a a", close=1) == "\n|</|think|>|a"


def test_a_close_begun_by_the_model_is_completed_and_recognised() -> None:
    assert written_text(2, "a </ a a", grace=0, close=1) == "a|</|think|>"
    assert written_text(2, "a < a a a", grace=0, close=1) == "a|<|</|think|>", "begun otherwise: written whole"
    assert written_text(4, "a </ think >↵ a a a", grace=0, close=1) == "a|</|think|>\n|a|a|a"
    assert written_text(9, "a </think> a ↵ a", grace=0) == "a|</think>|a|\n|a", "closed by itself, then free"


def test_thinking_opened_by_the_model_and_opened_again() -> None:
    assert written_text(1, "a ↵ <think> a ↵ a", prompt="") == "a|\n|<think>|a|\n|</think>"
    assert written_text(2, "a ↵ a <think> a ↵ a", grace=3) == "a|\n|</think>|<think>|a|\n|</think>", "counts on"


def test_a_stop_token_inside_budgeted_thinking_becomes_the_close() -> None:
    assert written_text(9, "a <eos> a <eos>") == "a|</think>|a|<eos>"
    assert written_text(9, "a <eos> <eos> <eos> a", close=1) == "a|</|think|>|a"
    assert written_text(None, "a <eos> a") == "a|<eos>"


def test_ids_beyond_the_tokenizer_write_nothing() -> None:
    rule = BudgetRule(TABLES[1], 9)
    state = rule.start([1])
    for token in (4, 999, 5, 10_000, 6):
        state = rule.advance(state, token)
    assert not rule.thinking(state)


def test_forced_mask_and_count() -> None:
    rule = BudgetRule(TABLES[1], 1)
    assert rule.forced_mask([1], [11, 4, 5, 6, 9]) == [False, True, True, True, False]
    assert rule.thinking_tokens([1], [11, 4, 5, 6, 9]) == 4


@pytest.mark.parametrize(("budget", "grace"), [(-1, 5), (True, 5), (1.5, 5), ("8", 5), (3, -1), (3, None)])
def test_a_budget_is_a_number_of_tokens(budget: object, grace: object) -> None:
    with pytest.raises(ConfigError, match="expected a number of tokens >= 0"):
        BudgetRule(TABLES[0], budget, grace)  # type: ignore[arg-type]


def test_a_close_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot write '</think>'"):
        ThinkingTokens.from_pieces(PIECES, (4, 9, 6))
    with pytest.raises(ConfigError, match="empty"):
        ThinkingTokens.from_pieces(PIECES, (2,), open_text="")
