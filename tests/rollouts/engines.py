"""What tests ask of every engine that is not the trainer's own model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nanoalign.budget_control.rule import BudgetRule
from nanoalign.models.loading import load_model


def check_logprobs(completions, asked, hf) -> None:
    scores = hf.score([[*r.prompt_ids, *c.token_ids] for r, c in zip(asked, completions, strict=True)])
    for request, completion, score in zip(asked, completions, scores, strict=True):
        assert list(completion.logprobs) == pytest.approx(score[len(request.prompt_ids) - 1 :], abs=1e-3)


def changed_model(folder: Path) -> Any:
    """The model of a folder, its weights moved."""
    model, generator = load_model(folder), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def eager_to_stop(folder: Path, stop_ids) -> Any:
    """The model of a folder, which in many places finds a stop token the likeliest."""
    model = load_model(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[sorted(stop_ids)] *= 50
    return model


def check_stops_in_thinking(engine, hf, model, requests) -> None:
    """Greedy completions of ``requests``, which have budgets, under ``model``'s weights: those of transformers, with
    the closes that stand for stop tokens marked as forced."""
    engine.load_weights(model.state_dict().items())
    expected = type(hf)(model, hf.thinking, batch_size=8).generate(requests)
    found = engine.generate(requests)
    assert [(c.token_ids, c.forced) for c in found] == [(c.token_ids, c.forced) for c in expected]
    rule = BudgetRule(hf.thinking, requests[0].sampling.thinking_budget, requests[0].sampling.grace)
    undue = [
        sum(completion.forced) - sum(rule.forced_mask(request.prompt_ids, completion.token_ids))
        for request, completion in zip(requests, found, strict=True)
    ]
    assert max(undue) > 0
