"""Teaching transforms: shares, places of cuts, what is left alone, and that all is counted and repeatable."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer

from nanoalign.budget_control.rule import BudgetRule
from nanoalign.budget_control.transforms import balance_modes, strip_reasoning, truncate_reasoning
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.config import TruncateReasoning
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.transforms import apply

TOKENIZER = tiny_tokenizer()
TRACE = "\n".join(f"Line {n} says so. And it goes on for a while" for n in range(40))


def sample(reasoning: str | None = TRACE, turns: int = 1) -> Conversation:
    turn = (Message("user", "What is it?"), Message("assistant", "It is 42.", reasoning))
    return Conversation((Message("system", "Be brief."), *turn * turns), domain="math", id="x", task={"kind": "exact"})


def tokens(text: str) -> int:
    return len(TOKENIZER.encode(text, add_special_tokens=False))


def test_strip_takes_its_share_and_leaves_the_answer() -> None:
    conversations = [sample()] * 2000 + [sample("")] * 100 + [sample(None)] * 100
    kept, changed, dropped = apply(conversations, [strip_reasoning(0.1)], seed=3)
    assert len(kept) == 2200 and not dropped
    assert changed == Counter({"reasoning stripped": sum(each.messages[2].reasoning == "" for each in kept[:2000])})
    assert 150 < changed["reasoning stripped"] < 250
    assert all(each.messages[2].content == "It is 42." and each.task == {"kind": "exact"} for each in kept)
    assert apply(conversations, [strip_reasoning(0.1)], seed=3) == (kept, changed, dropped)
    assert apply(conversations, [strip_reasoning(0.1)], seed=4)[0] != kept


def test_shares_are_of_all_samples_also_after_stripping() -> None:
    section = TruncateReasoning(share=0.3, tokens=(5, 50))
    transforms = [strip_reasoning(0.4), truncate_reasoning(section, TOKENIZER, stripped=0.4)]
    _, changed, _ = apply([sample()] * 3000, transforms, seed=0)
    assert abs(changed["reasoning stripped"] / 3000 - 0.4) < 0.03
    assert abs(changed["reasoning truncated"] / 3000 - 0.3) < 0.03


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 2**32))
def test_an_abrupt_cut_falls_in_the_range_and_is_rendered_to_its_last_character(low: int, more: int, seed: int) -> None:
    transform = truncate_reasoning(TruncateReasoning(share=1.0, tokens=(low, low + more)), TOKENIZER)
    cut, reason = transform(sample(turns=2), Random(seed))
    assert reason == "reasoning truncated" and cut is not None
    for message in (cut.messages[2], cut.messages[4]):
        assert message.reasoning_cut and TRACE.startswith(message.reasoning or "-") and message.content == "It is 42."
        # A cut inside a word may be tokenized otherwise when it stands alone, by a token or two.
        assert low - 2 <= tokens(message.reasoning or "") <= low + more + 2
    rendered = "".join(span.text for span in chat_format("nemotron-nano-v2").examples(cut)[-1])
    assert rendered.endswith(f"{cut.messages[4].reasoning}</think>\n\nIt is 42.\n<SPECIAL_12>")


@pytest.mark.parametrize(("form", "opened"), [("nemotron-nano-v2", ""), ("qwen3", "<think>")])
def test_a_cut_to_nothing_teaches_what_a_budget_of_zero_writes(form: str, opened: str) -> None:
    """In the thinking mode, opened and closed at once: the close is the rule's, all after it the model's."""
    cut, _ = truncate_reasoning(TruncateReasoning(share=1.0, tokens=(0, 0)), TOKENIZER)(sample(), Random(0))
    assert cut is not None and (cut.messages[2].reasoning, cut.messages[2].reasoning_cut) == ("", True)
    chat = chat_format(form)
    [spans] = chat.examples(cut)
    prompt = chat.prompt(cut.messages[:2], thinking=True)
    assert spans[0].text == prompt != chat.prompt(cut.messages[:2], thinking=False)
    rest = [(span.text, span.trained) for span in spans[1:]]
    assert rest == [
        *([(opened, True)] if opened else []),
        ("</think>", False),
        ("\n\nIt is 42." + rest[-1][0][11:], True),
    ]
    rule = BudgetRule(ThinkingTokens.from_tokenizer(TOKENIZER), 0)
    state, written = rule.start(TOKENIZER.encode(prompt + opened)), []
    while (due := rule.forced(state)) is not None:
        written.append(due)
        state = rule.advance(state, due)
    assert TOKENIZER.decode(written) == "</think>"


def test_a_stripped_sample_is_stripped_even_where_its_trace_was_cut_to_nothing() -> None:
    cut = Conversation((Message("user", "What?"), Message("assistant", "42.", "", reasoning_cut=True)))
    stripped, reason = strip_reasoning(1.0)(cut, Random(0))
    assert reason == "reasoning stripped" and stripped is not None and not stripped.messages[1].thinks


def test_a_cut_at_a_sentence_ends_a_sentence_or_a_line() -> None:
    section = TruncateReasoning(share=1.0, tokens=(30, 200), at="sentence")
    endings: Counter[str] = Counter()
    for seed in range(200):
        cut, _ = truncate_reasoning(section, TOKENIZER)(sample(), Random(seed))
        assert cut is not None and cut.messages[2].reasoning is not None
        endings[cut.messages[2].reasoning[-1]] += 1
        assert 4 <= tokens(cut.messages[2].reasoning) <= 200
    assert set(endings) == {".", "\n"}


def test_a_cut_at_a_fraction_reaches_the_whole_trace() -> None:
    section = TruncateReasoning(share=1.0, tokens=(1, 1), at="fraction")
    lengths = []
    for seed in range(300):
        cut, _ = truncate_reasoning(section, TOKENIZER)(sample(), Random(seed))
        assert cut is not None
        lengths.append(len(cut.messages[2].reasoning or "") / len(TRACE))
    assert min(lengths) < 0.05 and max(lengths) > 0.95 and 0.45 < sum(lengths) / 300 < 0.55


@given(st.integers(1, 60), st.integers(0, 12))
def test_a_cut_by_rule_falls_where_the_rule_closes(budget: int, grace: int) -> None:
    """Token by token along the trace: the first forced token is the close, and the cut ends before it."""
    section = TruncateReasoning(share=1.0, tokens=(budget, budget), at="rule", grace=grace)
    cut, _ = truncate_reasoning(section, TOKENIZER)(sample(), Random(0))
    assert cut is not None
    rule = BudgetRule(ThinkingTokens.from_tokenizer(TOKENIZER), budget, grace)
    state, kept = rule.start(TOKENIZER.encode("<think>", add_special_tokens=False)), []
    for token in TOKENIZER.encode(TRACE, add_special_tokens=False):
        if rule.forced(state) is not None:
            break
        kept.append(token)
        state = rule.advance(state, token)
    assert cut.messages[2].reasoning == TOKENIZER.decode(kept)


def test_a_trace_that_ends_before_the_rule_closes_is_left_whole() -> None:
    section = TruncateReasoning(share=1.0, tokens=(2, 2), at="rule", grace=100)
    conversation = sample("No line ends here, and it is over soon.")
    assert truncate_reasoning(section, TOKENIZER)(conversation, Random(0)) == (
        conversation,
        "reasoning left whole: no place to cut",
    )


@pytest.mark.parametrize(
    ("reasoning", "section", "reason"),
    [
        ("Too short.", TruncateReasoning(share=1.0, tokens=(50, 60)), "reasoning left whole: no place to cut"),
        ("no end in sight " * 50, TruncateReasoning(share=1.0, tokens=(5, 9), at="sentence"),
         "reasoning left whole: no place to cut"),
        ("", TruncateReasoning(share=1.0, tokens=(5, 9)), None),
        (TRACE, TruncateReasoning(share=0.0, tokens=(5, 9)), None),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_left_whole(reasoning: str, section: TruncateReasoning, reason: str | None) -> None:
    conversation = sample(reasoning)
    assert truncate_reasoning(section, TOKENIZER)(conversation, Random(0)) == (conversation, reason)


@pytest.mark.parametrize("name", ["nemotron-nano-v2", "qwen3"])
def test_balanced_modes_agree_with_what_a_format_reads(name: str) -> None:
    """The prompt's own mode, with the signal in it, is the mode in which the answer is given."""
    chat = chat_format(name)
    kept, changed, _ = apply([sample()] * 400 + [sample("")] * 20, [balance_modes(0.5)], seed=1)
    assert 150 < changed["/think added"] < 250 and changed.total() == 420
    places: Counter[bool] = Counter()
    for each in kept:
        places["/" in each.messages[0].content] += 1
        history = each.messages[:2]
        assert chat.prompt(history) == chat.prompt(history, thinking=bool(each.messages[2].reasoning))
    assert min(places.values()) > 100
    assert apply(kept, [balance_modes(0.5)], seed=2)[0] == kept, "signals that are there stay"


def test_wrong_shares_and_ranges_are_refused() -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        strip_reasoning(1.5)
    with pytest.raises(ConfigError, match="low <= high"):
        truncate_reasoning(TruncateReasoning(share=0.1, tokens=(9, 5)), TOKENIZER)
    with pytest.raises(ConfigError, match="exceed 1"):
        truncate_reasoning(TruncateReasoning(share=0.5, tokens=(5, 9)), TOKENIZER, stripped=0.6)
