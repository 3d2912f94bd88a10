"""The GRPO trainer: an independent reference of its losses, TRL's contract with rollouts, invariances, resume."""

import random

import pytest
import torch

from nanoalign.common.errors import ConfigError
from nanoalign.common.stage import StageLog
from nanoalign.models.config import Training
from nanoalign.rl.config import GRPOStage
from nanoalign.rl.grpo_trainer import LOSSES, Collected, make_trainer
from nanoalign.rl.prompts import row_schedule
from nanoalign.rollouts.config import Rollouts

GROUP, MAX_TOKENS = 4, 12


def stage(loss: str = "dapo", **changes) -> GRPOStage:
    train = {"learning_rate": 1e-3, "batch_size": 8, "steps": 2, "dtype": "float32", "checkpoint_every": 1}
    settings = {
        "kind": "grpo", "from": "base", "data": "prompts", "reward": {"task": 1.0, "length": 0.5},
        "group_size": GROUP, "loss": loss, "rollouts": Rollouts(max_tokens=MAX_TOKENS),
        "train": Training(**{**train, **changes.pop("train", {})}), **changes,
    }  # fmt: skip
    return GRPOStage(**settings)


def random_collected(rows, step: int, seed: int = 0) -> Collected:
    """Completions of random lengths; prompts differ from row to row, the second group has no signal."""
    generator = random.Random(f"{seed} {step}")
    prompts = {row: [generator.randrange(5, 48) for _ in range(1 + row % 5)] for row in set(rows)}
    completions = [[generator.randrange(2, 48) for _ in range(generator.randrange(1, MAX_TOKENS))] for _ in rows]
    even = [generator.random() < 0.5 for _ in rows]
    return Collected(
        prompt_ids=[prompts[row] for row in rows],
        completion_ids=completions,
        logprobs=[[-generator.random() * 4 for _ in ids] for ids in completions],
        trained=[[int(generator.random() < 0.8) for _ in ids[1:]] + [1] for ids in completions],
        rewards={
            "task": [1.0 if GROUP <= place < 2 * GROUP else float(even[place]) for place in range(len(rows))],
            "length": [0.0 if GROUP <= place < 2 * GROUP else len(ids) / 20 for place, ids in enumerate(completions)],
        },
        metrics={"mismatch": 1.0},
    )


def trainer_for(settings, model, tokenizer, folder, collect=None, **more):
    def default(rows, step, first):
        return random_collected(rows, step)

    trainer = make_trainer(
        model, tokenizer, settings, 6, collect or default, folder / "checkpoints", StageLog(folder), "cpu", 3, **more
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def reference_loss(loss, clip, kl, advantages, new, old, ref, trained, max_tokens):
    """Lists over completions of tensors over tokens; returns the loss. Written from the papers, without padding."""
    total, tokens = 0.0, sum(int(mask.sum()) for mask in trained)
    for a, n, o, r, m in zip(advantages, new, old, ref, trained):
        ratio = torch.exp(n - o)
        if loss == "gspo":
            ratio = torch.exp(((n - o) * m).sum() / m.sum()).expand_as(n)
        if loss == "cispo":
            objective = ratio.clamp(max=1 + clip[1]).detach() * a * n
        else:
            objective = torch.minimum(ratio * a, ratio.clamp(1 - clip[0], 1 + clip[1]) * a)
        objective = ((objective - kl * (torch.exp(r - n) - (r - n) - 1)) * m).sum()
        if loss in ("grpo", "gspo"):
            total = total - objective / m.sum() / len(new)
        elif loss == "dr_grpo":
            total = total - objective / (max_tokens * len(new))
        else:
            total = total - objective / tokens
    return total


def reference_advantages(loss, rewards, weights):
    total = sum(weight * torch.tensor(rewards[name]) for name, weight in weights.items()).view(-1, GROUP)
    centred = total - total.mean(1, keepdim=True)
    return (centred if loss == "dr_grpo" else centred / (total.std(1, keepdim=True) + 1e-4)).flatten()


def completion_logprobs(model, collected):
    """By one unpadded forward pass a completion."""
    result = []
    for prompt, completion in zip(collected.prompt_ids, collected.completion_ids):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        result.append(torch.log_softmax(logits, -1)[torch.arange(len(completion)), torch.tensor(completion)])
    return result


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["hybrid", "llama"])
def test_losses_and_gradients_equal_the_reference(loss, kind, make_model, tokenizer, tmp_path):
    model = make_model(kind)
    trainer = trainer_for(stage(loss), model, tokenizer, tmp_path, correct_engine=True)
    inputs = [{"prompt": str(row)} for row in (0, 1) for _ in range(GROUP)]
    batch = trainer._generate_and_score_completions(inputs)
    collected = random_collected([0] * GROUP + [1] * GROUP, 0)
    advantages = reference_advantages(loss, collected.rewards, {"task": 1.0, "length": 0.5})
    torch.testing.assert_close(batch["advantages"], advantages, rtol=1e-5, atol=1e-6)
    # Old log-probabilities near the new ones, so that some ratios are clipped and some are not.
    new = completion_logprobs(model, collected)
    generator = torch.Generator().manual_seed(1)
    old = [n.detach() + 0.3 * torch.randn(n.shape, generator=generator) for n in new]
    for place, values in enumerate(old):
        batch["old_per_token_logps"][place, : len(values)] = values
    ours = trainer._compute_loss(model, batch)
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    masks = [torch.tensor(mask) for mask in collected.trained]
    expected = reference_loss(loss, (0.2, 0.28), 0.0, advantages, new, old, old, masks, MAX_TOKENS)
    expected.backward()
    assert ours.item() == pytest.approx(expected.item(), abs=2e-5)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_an_engine_says_of_forced_tokens_does_not_matter(loss, make_model, tokenizer, tmp_path):
    """vLLM's server reports -9999 for a token that was forced against the weights: its ratio is infinite."""
    gradients = []
    for reported in (-1.0, -9999.0):

        def collect(rows, step, first, reported=reported):
            collected = random_collected(rows, step)
            for logprobs, trained in zip(collected.logprobs, collected.trained, strict=True):
                logprobs[:] = [p if kept else reported for p, kept in zip(logprobs, trained, strict=True)]
            return collected

        folder = tmp_path / str(reported)
        trainer = trainer_for(stage(loss), make_model("llama"), tokenizer, folder, collect, correct_engine=True)
        batch = trainer._generate_and_score_completions([{"prompt": str(row)} for row in (0, 1) for _ in range(GROUP)])
        trainer._compute_loss(trainer.model, batch).backward()
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[1].items():
        assert torch.isfinite(gradient).all(), name
        assert torch.equal(gradient, gradients[0][name]), name


def test_no_attention_under_a_mask_runs_on_cudnn_nor_masks_a_query_whole(make_model, tokenizer, tmp_path, monkeypatch):
    """Left padding under cuDNN's kernel gave gradients that were no numbers (docs/results/smollm2_135m.md)."""
    from nanoalign.models import documents
    from nanoalign.models.documents import isolate

    seen = []
    forward = documents.sdpa_attention_forward

    def watched(module, query, key, value, attention_mask, **kwargs):
        if attention_mask is not None:
            seen.append((torch.backends.cuda.cudnn_sdp_enabled(), bool(attention_mask.any(-1).all())))
        return forward(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setattr(documents, "sdpa_attention_forward", watched)
    model = make_model("llama")
    isolate(model)
    trainer = trainer_for(stage(), model, tokenizer, tmp_path)
    batch = trainer._generate_and_score_completions([{"prompt": str(row)} for row in (0, 4) for _ in range(GROUP)])
    batch["advantages"].fill_(1.0)
    trainer._compute_loss(model, batch).backward()
    assert bool((batch["prompt_mask"] == 0).any())
    assert seen
    assert set(seen) == {(False, True)}


@pytest.mark.parametrize("kind", ["hybrid", "llama"])
def test_trainer_and_scorer_compute_the_same_in_half_precision(kind, make_model, thinking, tokenizer, tmp_path):
    """The probe of fresh weights compares engines with the scorer: it must see what the loss sees, logits unrounded."""
    from nanoalign.rollouts.hf import HFEngine

    model = make_model(kind)
    settings = stage(train={"dtype": "bfloat16"})
    trainer = trainer_for(settings, model, tokenizer, tmp_path)
    batch = trainer._generate_and_score_completions([{"prompt": str(row)} for row in (0, 1) for _ in range(GROUP)])
    collected = random_collected([0] * GROUP + [1] * GROUP, 0)
    ids, mask = (torch.cat([batch[f"prompt_{of}"], batch[f"completion_{of}"]], dim=1) for of in ("ids", "mask"))
    logps, _, _ = trainer._get_per_token_logps_and_entropies(model, ids, mask, batch["completion_ids"].shape[1])
    scorer = HFEngine(model, thinking, autocast=torch.bfloat16)
    exact = HFEngine(model, thinking)
    pairs = list(zip(collected.prompt_ids, collected.completion_ids, strict=True))
    rounding, difference = [], []
    for place, (prompt, completion) in enumerate(pairs):
        scored, true = (torch.tensor(e.score([prompt + completion])[0][len(prompt) - 1 :]) for e in (scorer, exact))
        difference.append((scored - logps[place, : len(completion)].detach()).abs().mean())
        rounding.append((scored - true).abs().mean())
    assert torch.stack(difference).mean() < 0.3 * torch.stack(rounding).mean()
    assert model.lm_head.forward.__name__ == "forward"  # put back


def test_kl_to_the_starting_model(make_model, tokenizer, tmp_path):
    make_model("hybrid", 0).save_pretrained(tmp_path / "start")
    from nanoalign.models.loading import load_model

    model = load_model(tmp_path / "start")
    trainer = trainer_for(stage("dapo", kl=0.1), model, tokenizer, tmp_path, correct_engine=True)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)
    batch = trainer._generate_and_score_completions([{"prompt": str(row)} for row in (0, 1) for _ in range(GROUP)])
    collected = random_collected([0] * GROUP + [1] * GROUP, 0)
    new = completion_logprobs(model, collected)
    for place, values in enumerate(new):
        batch["old_per_token_logps"][place, : len(values)] = values.detach()
    ref = completion_logprobs(load_model(tmp_path / "start"), collected)
    old = [values.detach() for values in new]
    masks = [torch.tensor(mask) for mask in collected.trained]
    expected = reference_loss("dapo", (0.2, 0.28), 0.1, batch["advantages"], new, old, ref, masks, MAX_TOKENS)
    assert trainer._compute_loss(model, batch).item() == pytest.approx(expected.item(), abs=2e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_add_up_to_the_whole(loss, make_model, tokenizer, tmp_path):
    """The gradient of a step does not depend on how it is split, nor on the padding that the split brings."""
    weights = []
    for micro in (8, 2):
        settings = stage(loss, train={"micro_batch_size": micro, "steps": 1})
        trainer = trainer_for(settings, make_model("hybrid"), tokenizer, tmp_path / str(micro))
        trainer.train_or_resume()
        weights.append(trainer.model.state_dict())
    start = make_model("hybrid").state_dict()
    for name, tensor in weights[0].items():
        # Adam's first step is the gradient's sign: compare where the gradient is not noise.
        moved = (tensor - start[name]).abs() > 5e-4
        torch.testing.assert_close(tensor[moved], weights[1][name][moved], rtol=1e-3, atol=1e-4, msg=name)


def test_rollouts_get_every_duplicate_in_order(make_model, tokenizer, tmp_path):
    """TRL's contract: each prompt comes group_size times in a row, once a step, and columns stay with their rows."""
    calls = []

    def collect(rows, step, first):
        calls.append((list(rows), step, first))
        return random_collected(rows, step)

    settings = stage(train={"micro_batch_size": 2})
    trainer = trainer_for(settings, make_model("llama"), tokenizer, tmp_path, collect)
    trainer.train_or_resume()
    asked = row_schedule(6, 4, 3)
    assert calls == [
        ([row for row in asked[:2] for _ in range(GROUP)], 0, 0),
        ([row for row in asked[2:] for _ in range(GROUP)], 1, 0),
    ]
    batch = trainer._generate_and_score_completions([{"prompt": str(row)} for row in (4, 2) for _ in range(GROUP)])
    collected = random_collected([4] * GROUP + [2] * GROUP, trainer.state.global_step)
    for place, (prompt, completion, mask) in enumerate(
        zip(collected.prompt_ids, collected.completion_ids, collected.trained, strict=True)
    ):
        assert batch["prompt_ids"][place][batch["prompt_mask"][place] == 1].tolist() == prompt
        assert batch["completion_ids"][place][batch["completion_mask"][place] == 1].tolist() == completion
        assert batch["tool_mask"][place, : len(mask)].tolist() == mask
        assert batch["sampling_per_token_logps"][place, : len(mask)].tolist() == pytest.approx(
            collected.logprobs[place]
        )
    assert trainer.state.log_history[0]["mismatch"] == 1.0
    assert trainer.state.log_history[0]["frac_reward_zero_std"] == 0.5


def test_resume_ends_with_the_same_weights(make_model, tokenizer, tmp_path):
    settings = stage(train={"steps": 4, "micro_batch_size": 4})
    whole = trainer_for(settings, make_model("hybrid"), tokenizer, tmp_path / "whole")
    whole.train_or_resume()

    class Killed(Exception):
        pass

    def collect(rows, step, first):
        if step == 2:
            raise Killed
        return random_collected(rows, step)

    with pytest.raises(Killed):
        trainer_for(settings, make_model("hybrid"), tokenizer, tmp_path / "cut", collect).train_or_resume()
    resumed = trainer_for(settings, make_model("hybrid", 7), tokenizer, tmp_path / "cut")
    resumed.train_or_resume()
    assert len(resumed.state.log_history) >= 4
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_rewards_that_are_no_numbers_are_refused(make_model, tokenizer, tmp_path):
    def collect(rows, step, first):
        collected = random_collected(rows, step)
        collected.rewards["length"][3] = float("nan")
        return collected

    trainer = trainer_for(stage(), make_model("llama"), tokenizer, tmp_path, collect)
    with pytest.raises(ConfigError, match="'length' returned nan"):
        trainer.train_or_resume()


def test_settings_that_cannot_work_are_refused(make_model, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="no multiple of group_size"):
        trainer_for(stage(train={"batch_size": 6}), make_model("llama"), tokenizer, tmp_path)
    with pytest.raises(ConfigError, match="temperature"):
        trainer_for(stage(rollouts=Rollouts(max_tokens=4, temperature=0)), make_model("llama"), tokenizer, tmp_path)


def test_row_schedule_asks_every_prompt_once_an_epoch():
    schedule = row_schedule(5, 12, 0)
    assert sorted(schedule[:5]) == sorted(schedule[5:10]) == list(range(5))
    assert schedule[:5] != schedule[5:10]
    assert schedule == row_schedule(5, 20, 0)[:12]
