"""The HF engine against transformers' own generation, full forward passes and the budget rule."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from nanoalign.budget_control.rule import BudgetRule
from nanoalign.common.errors import CheckpointError, ConfigError
from nanoalign.rollouts.base import Request, Sampling
from nanoalign.rollouts.hf import HFEngine

END, OPEN = 3, 1


def random_requests(count: int, seed: int = 0, **sampling) -> list[Request]:
    generator = random.Random(seed)
    return [
        Request(
            tuple(generator.randrange(5, 48) for _ in range(generator.randrange(1, 14))),
            Sampling(**{"max_tokens": generator.randrange(1, 24), "seed": index, **sampling}),
        )
        for index in range(count)
    ]


def test_greedy_equals_generate(model, thinking):
    requests = random_requests(13, temperature=0.0)
    ours = HFEngine(model, thinking, batch_size=5).generate(requests)
    for request, completion in zip(requests, ours, strict=True):
        theirs = model.generate(
            torch.tensor([request.prompt_ids]),
            max_new_tokens=request.sampling.max_tokens,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=0,
        )
        assert list(completion.token_ids) == theirs[0, len(request.prompt_ids) :].tolist()


def test_logprobs_are_those_of_a_full_forward_pass(model, thinking):
    requests = random_requests(20, temperature=0.7, top_p=0.9)
    engine = HFEngine(model, thinking, batch_size=6)
    completions = engine.generate(requests)
    scores = engine.score([[*r.prompt_ids, *c.token_ids] for r, c in zip(requests, completions, strict=True)])
    for request, completion, score in zip(requests, completions, scores, strict=True):
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
        expected = logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        assert score == pytest.approx(expected.tolist(), abs=1e-4)
        assert list(completion.logprobs) == pytest.approx(expected[len(request.prompt_ids) - 1 :].tolist(), abs=1e-4)


def test_a_completion_does_not_depend_on_its_batch(model, thinking):
    requests = random_requests(17)
    together = HFEngine(model, thinking, batch_size=7).generate(requests)
    alone = [HFEngine(model, thinking, batch_size=1).generate([request])[0] for request in requests]
    backwards = HFEngine(model, thinking, batch_size=4).generate(requests[::-1])[::-1]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone] == [c.token_ids for c in backwards]


def test_duplicate_prompts_get_a_completion_each(model, thinking):
    prompt = (7, 8, 9, 10)
    requests = [Request(prompt, Sampling(12, seed=index)) for index in range(9)]
    completions = HFEngine(model, thinking, batch_size=4).generate(requests)
    assert len({completion.token_ids for completion in completions}) > 5
    assert completions == HFEngine(model, thinking, batch_size=4).generate(requests)


def test_completions_end_at_a_stop_token_or_at_the_length(model, thinking):
    completions = HFEngine(model, thinking, batch_size=8).generate(random_requests(40, max_tokens=60))
    assert {completion.finish for completion in completions} == {"stop", "length"}
    for completion in completions:
        assert END not in completion.token_ids[:-1]
        assert (completion.finish == "stop") == (completion.token_ids[-1] == END)
        assert len(completion.token_ids) == len(completion.logprobs) == len(completion.forced) <= 60


def test_budgets_are_enforced_row_by_row(model, thinking):
    budgets = [0, 3, 9, None] * 6
    requests = [
        Request((*range(5, 8 + index % 5), OPEN), Sampling(40, thinking_budget=budget, grace=4, seed=index))
        for index, budget in enumerate(budgets)
    ]
    for request, completion in zip(requests, HFEngine(model, thinking, batch_size=8).generate(requests), strict=True):
        rule = BudgetRule(thinking, request.sampling.thinking_budget, 4)
        state = rule.start(request.prompt_ids)
        for token, forced in zip(completion.token_ids, completion.forced, strict=True):
            assert token == rule.written(state, token)
            assert forced or rule.forced(state) is None
            state = rule.advance(state, token)
        if request.sampling.thinking_budget == 0:
            assert completion.forced[0]
            assert completion.token_ids[0] == 2
        if request.sampling.thinking_budget is None:
            assert not any(completion.forced)


def test_new_weights_change_the_completions(make_model, thinking):
    first, second = make_model("hybrid", 0), make_model("hybrid", 1)
    requests = random_requests(6, temperature=0.0, max_tokens=10)
    engine = HFEngine(first, thinking)
    engine.load_weights(second.state_dict().items())
    assert engine.generate(requests) == HFEngine(second, thinking).generate(requests)
    with pytest.raises(CheckpointError, match="lm_head"):
        engine.load_weights([("lm_head.weight", torch.zeros(3, 3))])


def test_bad_requests_are_refused(model, thinking):
    engine = HFEngine(model, thinking)
    with pytest.raises(ConfigError, match="without tokens"):
        engine.generate([Request((), Sampling(4))])
    with pytest.raises(ConfigError, match="out of range"):
        engine.generate([Request((5,), Sampling(0))])
    with pytest.raises(ConfigError, match="thinking budget"):
        engine.generate([Request((5,), Sampling(4, thinking_budget=-1))])
    assert engine.generate([]) == []


def test_sliding_windows_are_refused(thinking):
    from transformers import MistralConfig

    config = MistralConfig(
        vocab_size=48, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, sliding_window=4,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="vllm"):
        HFEngine(AutoModelForCausalLM.from_config(config), thinking)
