"""Losses and importance weights of episodes that were cut into several rows: those of the whole episode."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nanoalign.rl.collect import Collected
from nanoalign.rl.loss import LOSSES, Whole, behaviour, reduce, token_losses
from tests.rl.test_rl_grpo_trainer import random_collected, stage, trainer_for

OWN = [[-1.0, -0.5, -2.0], [-0.3, -0.7, -0.1]]
ENGINE = [[-1.1, -0.4, -2.0], [-0.5, -0.9, -9.0]]
TRAINED = [[1, 1, 1], [1, 1, 0]]
"""One episode of two rows and five trained tokens, of which the engine said -1.1, -0.4, -2, -0.5 and -0.9."""
SUMS = [0.1 - 0.1 + 0.0, 0.2 + 0.2]


def hand_made() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Whole]:
    own = torch.tensor(OWN, requires_grad=True)
    return own, torch.tensor(ENGINE), torch.tensor(TRAINED), Whole(torch.tensor([5, 5]), torch.tensor(SUMS[::-1]))


def test_gspos_ratio_and_gradient_are_those_of_all_sampled_tokens() -> None:
    own, engine, trained, whole = hand_made()
    found = token_losses(LOSSES["gspo"], own, engine, trained, torch.tensor([[0.5], [0.5]]), (0.2, 0.28), whole)
    ratio = math.exp(sum(SUMS) / 5)
    assert found.ratio.flatten().tolist() == pytest.approx([ratio, ratio])
    loss = reduce(LOSSES["gspo"], found.losses_BC, trained, 4, torch.tensor(5.0), 3, whole)
    loss.backward()
    assert loss.item() == pytest.approx(-0.5 * ratio / 4)
    each = -0.5 * ratio / 5 / 4
    assert own.grad is not None
    assert own.grad[0].tolist() == pytest.approx([each] * 3) and own.grad[1].tolist() == pytest.approx([each, each, 0])


def test_grpos_mean_is_over_all_tokens_of_the_episode() -> None:
    _, _, trained, whole = hand_made()
    losses = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 999.0]])
    loss = reduce(LOSSES["grpo"], losses, trained, 2, torch.tensor(5.0), 3, whole)
    assert loss.item() == pytest.approx(36 / 5 / 2)


def test_the_weight_of_a_sequence_is_that_of_the_episode() -> None:
    own, engine, trained, whole = hand_made()
    _, weight = behaviour("sequence", own, engine, trained, 2.0, whole)
    assert weight.flatten().tolist() == pytest.approx([math.exp(0.4)] * 2)
    assert behaviour("sequence", own, engine, trained, 1.2, whole)[1].flatten().tolist() == pytest.approx([1.2] * 2)


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_alone_a_row_is_its_episode_bit_for_bit(loss: str) -> None:
    own = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), requires_grad=True)
    engine = own.detach() + 0.2 * torch.randn(6, 9, generator=torch.Generator().manual_seed(2))
    trained = (torch.rand(6, 9, generator=torch.Generator().manual_seed(3)) < 0.7).long()
    log_ratio = own - engine
    if loss == "gspo":
        log_ratio = ((log_ratio * trained).sum(1) / trained.sum(1).clamp(min=1.0)).unsqueeze(1)
    ratio, advantages = torch.exp(log_ratio), torch.linspace(-1, 1, 6).unsqueeze(1)
    losses = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    expected = ((losses * trained).sum(1) / trained.sum(1).clamp(min=1.0)).sum() / 6
    whole = Whole.of(trained)
    found = token_losses(LOSSES[loss], own, engine, trained, advantages, (0.2, 0.28), whole)
    ours = reduce(LOSSES[loss], found.losses_BC, trained, 6, torch.tensor(1.0), 9, whole)
    assert torch.equal(ours, expected)
    assert torch.equal(torch.autograd.grad(ours, own)[0], torch.autograd.grad(expected, own)[0])


def cut(collected: Collected) -> Collected:
    """Every completion of five tokens or more in two rows: the second is prompted with all that came before it."""
    rows: list[tuple[Any, ...]] = []
    columns = (collected.prompt_ids, collected.completion_ids, collected.logprobs, collected.trained)
    for episode, (prompt, ids, logprobs, trained) in enumerate(zip(*columns, strict=True)):
        bounds = [0, 3, len(ids)] if len(ids) > 4 else [0, len(ids)]
        for first, end in itertools.pairwise(bounds):
            part = slice(first, end)
            rows.append((prompt + ids[:first], ids[part], logprobs[part], trained[part], episode))
    prompts, ids, logprobs, trained, episodes = (list(column) for column in zip(*rows, strict=True))
    return Collected(
        prompts, ids, logprobs, trained, collected.rewards, collected.metrics, collected.counts, episodes=episodes
    )


@pytest.mark.parametrize(
    ("loss", "importance"),
    [
        (loss, importance)
        for loss in LOSSES
        for importance in ("clip", "token", "sequence")
        if (loss, importance) != ("gspo", "token")  # a row's ratio has the mean weight of the row's own tokens
    ],
)
@pytest.mark.parametrize("how", [{}, {"train": {"micro_batch_size": 1}}, {"pack_tokens": 30}])
def test_cut_in_rows_an_episode_trains_as_one(
    loss: str, importance: str, how: Any, make_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Loss and gradient are those of completions in one piece, whatever micro-batches the rows are in."""
    results = []
    for pieces in (False, True):
        model = make_model("llama")

        def collect(*asked: int, pieces: bool = pieces) -> Collected:
            collected = random_collected(*asked)
            collected.logprobs[:] = [[-3.8 + p / 20 for p in row] for row in collected.logprobs]  # near the model's
            return cut(collected) if pieces else collected

        settings = stage(loss, importance=importance, importance_cap=50.0, **how)
        trainer = trainer_for(settings, model, tokenizer, tmp_path, collect, correct_engine=True)
        batches = trainer.whole_episodes(trainer.collect_step())
        total = sum(trainer.compute_loss(model, {"rows": rows}) for rows in batches)
        total.backward()
        results.append((total.item(), {name: weight.grad for name, weight in model.named_parameters()}))
    (first, gradients), (second, others) = results
    assert first == pytest.approx(second, rel=1e-4, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-3, atol=1e-5 + 1e-4 * float(gradient.abs().max()))


def test_without_an_episode_in_several_rows_nothing_is_computed_twice(
    make_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    settings = stage("gspo")
    trainer = trainer_for(settings, make_model("llama"), tokenizer, tmp_path, correct_engine=True)
    batches = trainer.collect_step()
    trainer.logprobs = None
    assert trainer.whole_episodes(batches) is batches
