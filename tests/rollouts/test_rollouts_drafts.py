"""Completions in pieces: cut anywhere and continued, they are what they are in one piece."""

from hypothesis import given
from hypothesis import strategies as st

from nanoalign.budget_control.rule import BudgetRule
from nanoalign.rollouts.base import Request, Sampling
from nanoalign.rollouts.drafts import Draft, Scored
from tests.toy import CLOSE, END, NEWLINE, OPEN, toy_thinking

THINKING = toy_thinking()
tokens = st.sampled_from([OPEN, CLOSE, NEWLINE, 7, 8, 9])


def answer(ids, logprobs, likeliest, finish):
    return {
        "finish_reason": finish, "token_ids": list(ids), "logprobs": list(logprobs), "likeliest": list(likeliest),
    }  # fmt: skip


@given(
    st.lists(st.tuples(tokens, st.booleans()), min_size=1, max_size=40),
    st.lists(st.integers(0, 40), max_size=5),
    st.one_of(st.none(), st.integers(0, 12)),
    st.integers(0, 4),
)
def test_pieces_make_the_whole(drawn, cuts, budget, grace):
    """``drawn``: tokens, and whether a stop token was the likeliest in their place."""
    request = Request((OPEN, 5), Sampling(len(drawn), thinking_budget=budget, grace=grace, seed=3))
    rule = BudgetRule(THINKING, budget, grace)
    state, ids = rule.start(request.prompt_ids), []
    for token, stop in drawn:
        ids.append(rule.written(state, END if stop and budget is not None else token))
        state = rule.advance(state, ids[-1])
        if ids[-1] == END:
            break
    likeliest = [END if stop else token for token, stop in drawn]
    logprobs = [-0.01 * place for place in range(len(ids))]
    whole = Draft(request, THINKING)
    assert whole.take(answer(ids, logprobs, likeliest[: len(ids)], "length"), 0)
    draft, seeds, begun = Draft(request, THINKING), [], 0
    ends = sorted(min(cut, len(ids) - 1) for cut in cuts)
    for version, end in enumerate([*ends, len(ids)]):
        body, piece = draft.body(), slice(begun, end)
        seeds.append((body["seed"], begun))
        assert body["prompt"] == [*request.prompt_ids, *ids[:begun]]
        assert body["max_tokens"] == len(drawn) - begun
        arguments = body.get("vllm_xargs")
        assert (arguments is None) == (budget is None)
        assert arguments is None or arguments.get("generated", 0) == begun
        finish = "length" if end == len(ids) else "abort"
        done = draft.take(answer(ids[piece], logprobs[piece], likeliest[piece], finish), version)
        assert done == (end == len(ids))
        assert list(draft.versions[begun:end]) == [version] * (end - begun)
        begun = end
    result, expected = draft.result(), whole.result()
    assert (result.token_ids, result.logprobs, result.forced) == (
        expected.token_ids,
        expected.logprobs,
        expected.forced,
    )
    assert len(result.versions) == len(ids)
    assert len(set(seeds)) == len({place for _, place in seeds})  # a seed a place


def test_without_keeping_it_begins_anew():
    request = Request((5,), Sampling(9, seed=3))
    draft = Draft(request, THINKING, keep=False)
    first = draft.body()
    assert not draft.take(answer([7, 8], [-1.0, -2.0], [7, 8], "abort"), 1)
    assert draft.body() == first
    assert draft.take(answer([9, END], [-3.0, -4.0], [9, END], "stop"), 2)
    assert draft.result().versions == (2, 2)
    assert draft.result().finish == "stop"


def test_cut_before_the_first_token_and_after_the_last():
    draft = Draft(Request((5,), Sampling(2, seed=3)), THINKING)
    nothing = {"finish_reason": "abort", "token_ids": [], "logprobs": []}
    assert not draft.take(nothing, 1)
    assert draft.body()["seed"] == 3
    assert draft.take(answer([7, 8], [-1.0, -2.0], [7, 8], "abort"), 1)
    assert draft.result().finish == "length"


def test_a_score_that_is_cut_off_is_asked_for_again():
    scored = Scored([5, 6])
    assert not scored.take({"finish_reason": "abort", "token_ids": []}, None)
    assert scored.take({"finish_reason": "length", "prompt_logprobs": [-2.0]}, None)
    assert scored.result() == [-2.0]
