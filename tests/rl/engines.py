"""What tests ask of every engine that is not the trainer's own model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.loading import load_model


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
