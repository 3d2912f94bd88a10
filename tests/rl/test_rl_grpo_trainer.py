"""The GRPO trainer against an independent reference of its losses and against TRL's; invariances; resume."""

import random
from collections import Counter

import pytest
import torch

from nanoalign.common.errors import ConfigError, IsolationError
from nanoalign.common.stage import StageLog
from nanoalign.models.adapters import attach
from nanoalign.models.config import LoRA, Training
from nanoalign.models.loading import load_model
from nanoalign.models.packed_attention import isolate, unisolate
from nanoalign.rl.collect import Collected, row_schedule
from nanoalign.rl.config import GRPOStage
from nanoalign.rl.grpo_trainer import grpo_arguments, make_trainer
from nanoalign.rl.loss import LOSSES
from nanoalign.rollouts.config import Rollouts
from tests.rl.trl_oracle import oracle

GROUP, MAX_TOKENS = 4, 12


def stage(loss: str = "dapo", **changes) -> GRPOStage:
    train = {"learning_rate": 1e-3, "batch_size": 8, "steps": 2, "dtype": "float32", "checkpoint_every": 1}
    settings = {
        "kind": "grpo", "from": "base", "data": "prompts", "reward": {"task": 1.0, "length": 0.5},
        "group_size": GROUP, "loss": loss, "rollouts": Rollouts(max_tokens=MAX_TOKENS),
        "train": Training(**{**train, **changes.pop("train", {})}), **changes,
    }  # fmt: skip
    return GRPOStage(**settings)


def random_collected(step: int, first: int = 0, count: int = 2 * GROUP) -> Collected:
    """Completions of random lengths; prompts differ from group to group, the second group has no signal."""
    generator = random.Random(step)
    prompts = [[generator.randrange(5, 48) for _ in range(1 + 4 * group)] for group in range(count // GROUP)]
    completions = [
        [generator.randrange(2, 48) for _ in range(generator.randrange(1, MAX_TOKENS))] for _ in range(count)
    ]
    even = [generator.random() < 0.5 for _ in range(count)]
    return Collected(
        prompt_ids=[prompts[place // GROUP] for place in range(count)],
        completion_ids=completions,
        logprobs=[[-generator.random() * 4 for _ in ids] for ids in completions],
        trained=[[int(generator.random() < 0.8) for _ in ids[1:]] + [1] for ids in completions],
        rewards={
            "task": [1.0 if GROUP <= place < 2 * GROUP else float(even[place]) for place in range(count)],
            "length": [0.0 if GROUP <= place < 2 * GROUP else len(ids) / 20 for place, ids in enumerate(completions)],
        },
        metrics={"mismatch": 1.0},
        counts=Counter({"reason/cut": step}),
    )


def trainer_for(settings, model, tokenizer, folder, collect=random_collected, **more):
    trainer = make_trainer(
        model, tokenizer, settings, grpo_arguments(settings, folder / "checkpoints", "cpu", 3, settings.train.steps),
        collect, StageLog(folder), **more,
    )  # fmt: skip
    trainer.model.train()
    return trainer


def step_loss(trainer):
    """The loss of the first step, all its micro-batches, with gradients."""
    return sum(trainer.compute_loss(trainer.model, {"rows": rows}) for rows in trainer.collect_step())


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
        objective = ((objective - kl * (torch.exp(r - n) - (r - n) - 1) * ratio) * m).sum()
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
    # Old log-probabilities near the new ones, so that some ratios are clipped and some are not.
    collected = random_collected(0)
    new = completion_logprobs(model, collected)
    generator = torch.Generator().manual_seed(1)
    old = [n.detach() + 0.3 * torch.randn(n.shape, generator=generator) for n in new]
    collected.logprobs[:] = [values.tolist() for values in old]
    trainer = trainer_for(stage(loss), model, tokenizer, tmp_path, lambda *asked: collected, correct_engine=True)
    ours = step_loss(trainer)
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    masks = [torch.tensor(mask) for mask in collected.trained]
    advantages = reference_advantages(loss, collected.rewards, {"task": 1.0, "length": 0.5})
    expected = reference_loss(loss, (0.2, 0.28), 0.0, advantages, new, old, old, masks, MAX_TOKENS)
    expected.backward()
    assert ours.item() == pytest.approx(expected.item(), abs=2e-5)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("kl", "correct_engine", "micro"), [(0.0, True, 8), (0.0, False, 4), (0.1, True, 4)])
def test_a_run_equals_trls(loss, kl, correct_engine, micro, make_model, tokenizer, tmp_path):
    """Loss, gradient norm and reward of the first step, where weights are equal, and the weights that it leads to."""
    make_model("hybrid").save_pretrained(tmp_path / "start")
    settings = stage(loss, kl=kl, train={"micro_batch_size": micro, "steps": 2})
    models = [load_model(tmp_path / "start") for _ in range(3)]
    ours = trainer_for(
        settings, models[0], tokenizer, tmp_path / "ours", correct_engine=correct_engine,
        reference=models[2] if kl else None,
    )  # fmt: skip
    theirs = oracle(models[1], tokenizer, settings, random_collected, tmp_path / "theirs", correct_engine)
    for trainer in (ours, theirs):
        trainer.train_or_resume()
    for name in ("loss", "grad_norm", "reward", "reward_std", "frac_reward_zero_std", "rewards/length/mean"):
        first, other = ours.state.log_history[0][name], theirs.state.log_history[0][name]
        assert first == pytest.approx(other, rel=1e-3, abs=2e-5), name
    start = make_model("hybrid").state_dict()
    for (name, tensor), other in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        # Adam's first step is the gradient's sign: compare where the gradient is not noise.
        moved = (tensor - start[name]).abs() > 5e-4
        torch.testing.assert_close(tensor[moved], other[moved], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_an_engine_says_of_forced_tokens_does_not_matter(loss, make_model, tokenizer, tmp_path):
    """vLLM's server reports -9999 for a token that was forced against the weights: its ratio is infinite."""
    gradients = []
    for reported in (-1.0, -9999.0):

        def collect(*asked, reported=reported):
            collected = random_collected(*asked)
            for logprobs, trained in zip(collected.logprobs, collected.trained, strict=True):
                logprobs[:] = [p if kept else reported for p, kept in zip(logprobs, trained, strict=True)]
            return collected

        folder = tmp_path / str(reported)
        trainer = trainer_for(stage(loss), make_model("llama"), tokenizer, folder, collect, correct_engine=True)
        step_loss(trainer).backward()
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[1].items():
        assert torch.isfinite(gradient).all(), name
        assert torch.equal(gradient, gradients[0][name]), name


def test_no_attention_under_a_mask_runs_on_cudnn_nor_masks_a_query_whole(make_model, tokenizer, tmp_path, monkeypatch):
    """Left padding under cuDNN's kernel gave gradients that were no numbers (docs/results/smollm2_135m.md)."""
    from nanoalign.models import packed_attention

    seen = []
    forward = packed_attention.sdpa_attention_forward

    def watched(module, query, key, value, attention_mask, **kwargs):
        if attention_mask is not None:
            seen.append((torch.backends.cuda.cudnn_sdp_enabled(), bool(attention_mask.any(-1).all())))
        return forward(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setattr(packed_attention, "sdpa_attention_forward", watched)
    model = make_model("llama")
    isolate(model)
    trainer = trainer_for(stage(), model, tokenizer, tmp_path)
    trainer.with_signal = lambda rows: rows  # both groups, whose prompts differ in length
    step_loss(trainer).backward()
    assert seen
    assert set(seen) == {(False, True)}


@pytest.mark.parametrize("kind", ["hybrid", "llama"])
def test_trainer_and_scorer_compute_the_same_in_half_precision(kind, make_model, thinking, tokenizer, tmp_path):
    """The probe of fresh weights compares engines with the scorer: it must see what the loss sees, logits unrounded."""
    from nanoalign.rollouts.hf import HFEngine

    model = make_model(kind)
    trainer = trainer_for(stage(train={"dtype": "bfloat16"}), model, tokenizer, tmp_path)
    trainer.with_signal = lambda rows: rows
    rows, collected = trainer.collect_step()[0], random_collected(0)
    places = [collected.completion_ids.index(ids.tolist()) for ids in rows.completion_ids]
    logps = trainer.logprobs(model, rows)[0][torch.tensor(places).argsort()]
    scorer = HFEngine(model, thinking, autocast=torch.bfloat16)
    exact = HFEngine(model, thinking)
    pairs = list(zip(collected.prompt_ids, collected.completion_ids, strict=True))
    rounding, difference = [], []
    for place, (prompt, completion) in enumerate(pairs):
        scored, true = (torch.tensor(e.score([prompt + completion])[0][len(prompt) - 1 :]) for e in (scorer, exact))
        difference.append((scored - logps[place, : len(completion)].detach()).abs().mean())
        rounding.append((scored - true).abs().mean())
    assert torch.stack(difference).mean() < 0.5 * torch.stack(rounding).mean()
    assert model.lm_head.forward.__name__ == "forward"  # put back


@pytest.mark.parametrize("adapters", [False, True])
def test_kl_to_the_starting_model(adapters, make_model, tokenizer, tmp_path):
    start = make_model("hybrid")
    model = attach(make_model("hybrid"), LoRA(rank=2), 0) if adapters else make_model("hybrid")
    collected = random_collected(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or (not adapters and name == "lm_head.weight"):
                weight.add_(0.02 * torch.ones_like(weight))
    model.train()
    new, ref = completion_logprobs(model, collected), completion_logprobs(start, collected)
    collected.logprobs[:] = [values.tolist() for values in new]
    settings = stage("dapo", kl=0.1)
    trainer = trainer_for(
        settings, model, tokenizer, tmp_path, lambda *asked: collected, correct_engine=True,
        reference=None if adapters else start,
    )  # fmt: skip
    masks = [torch.tensor(mask) for mask in collected.trained]
    advantages = reference_advantages("dapo", collected.rewards, {"task": 1.0, "length": 0.5})
    old = [values.detach() for values in new]
    expected = reference_loss("dapo", (0.2, 0.28), 0.1, advantages, new, old, ref, masks, MAX_TOKENS)
    loss = step_loss(trainer)
    assert loss.item() == pytest.approx(expected.item(), abs=2e-5)
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for name, ours, theirs in zip(
        names, torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("split", [{"train": {"micro_batch_size": 2}}, {"pack_tokens": 24}, {"pack_tokens": 1}])
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_micro_batches_add_up_to_the_whole(loss, split, kl, make_model, tokenizer, tmp_path):
    """The gradient of a step does not depend on how it is split, padded or packed."""
    reference = make_model("hybrid", 1) if kl else None
    gradients = []
    for how in ({}, split):
        model = make_model("hybrid")
        trainer = trainer_for(stage(loss, kl=kl, **how), model, tokenizer, tmp_path, reference=reference)
        step_loss(trainer).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["hybrid", "llama"])
def test_packed_logprobs_equal_padded_ones(kind, make_model, tokenizer, tmp_path):
    model = make_model(kind)
    isolate(model)
    trainers = [
        trainer_for(stage(pack_tokens=tokens, kl=0.1), model, tokenizer, tmp_path, reference=model)
        for tokens in (None, 1000)
    ]
    rows = trainers[1].collect_step()[0]
    assert len(rows.completion_ids) == 2 * GROUP
    for padded, packed in zip(*(trainer.logprobs(model, rows) for trainer in trainers), strict=True):
        for place, ids in enumerate(rows.completion_ids):
            torch.testing.assert_close(packed[place, : len(ids)], padded[place, : len(ids)], rtol=1e-4, atol=1e-4)


def test_a_model_that_leaks_does_not_train_on_packs(make_model, tokenizer, tmp_path):
    model = make_model("llama")
    unisolate(model)
    trainer = trainer_for(stage(pack_tokens=1000), model, tokenizer, tmp_path)
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {"input_ids": kwargs["input_ids"]}), with_kwargs=True
    )
    with pytest.raises(IsolationError, match="influence each other"):
        trainer.train_or_resume()


def test_a_step_asks_once_and_columns_stay_with_their_rows(make_model, tokenizer, tmp_path):
    calls = []

    def collect(*asked):
        calls.append(asked)
        return random_collected(*asked)

    trainer = trainer_for(stage(train={"micro_batch_size": 2}), make_model("llama"), tokenizer, tmp_path, collect)
    trainer.train_or_resume()
    assert calls == [(0, 0, 2 * GROUP), (1, 0, 2 * GROUP)]
    trainer.with_signal = lambda rows: rows
    micro_batches = trainer.collect_step()
    collected = random_collected(2)
    advantages = reference_advantages("dapo", collected.rewards, {"task": 1.0, "length": 0.5})
    given = {
        tuple(c): (p, m, pytest.approx(o), pytest.approx(a, rel=1e-4, abs=1e-5))
        for p, c, m, o, a in zip(collected.prompt_ids, collected.completion_ids, collected.trained, collected.logprobs,
                                 advantages.tolist(), strict=True)
    }  # fmt: skip
    assert [len(rows.completion_ids) for rows in micro_batches] == [2] * GROUP
    for rows in micro_batches:
        columns = (rows.prompt_ids, rows.completion_ids, rows.trained, rows.logprobs, rows.advantages_B)
        for prompt, completion, trained, logprobs, advantage in zip(*columns, strict=True):
            found = (prompt.tolist(), trained.tolist(), logprobs.tolist(), advantage.item())
            assert found == given.pop(tuple(completion.tolist()))
    assert not given
    first, second = trainer.state.log_history[:2]
    assert (first["mismatch"], first["frac_reward_zero_std"], second["reason/cut"]) == (1.0, 0.5, 1.0)


def test_resume_ends_with_the_same_weights(make_model, tokenizer, tmp_path):
    settings = stage(train={"steps": 4, "micro_batch_size": 4})
    whole = trainer_for(settings, make_model("hybrid"), tokenizer, tmp_path / "whole")
    whole.train_or_resume()

    class Killed(Exception):
        pass

    def collect(step, *part):
        if step == 2:
            raise Killed
        return random_collected(step, *part)

    with pytest.raises(Killed):
        trainer_for(settings, make_model("hybrid"), tokenizer, tmp_path / "cut", collect).train_or_resume()
    resumed = trainer_for(settings, make_model("hybrid", 7), tokenizer, tmp_path / "cut")
    resumed.train_or_resume()
    assert len(resumed.state.log_history) >= 4
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_rewards_that_are_not_finite_are_refused(make_model, tokenizer, tmp_path):
    def collect(*asked):
        collected = random_collected(*asked)
        collected.rewards["length"][3] = float("nan")
        return collected

    trainer = trainer_for(stage(), make_model("llama"), tokenizer, tmp_path, collect)
    with pytest.raises(ConfigError, match="'length' returned a value that is not finite"):
        trainer.train_or_resume()


def test_settings_that_cannot_work_are_refused(make_model, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="not a multiple of group_size"):
        trainer_for(stage(train={"batch_size": 6}), make_model("llama"), tokenizer, tmp_path)
    with pytest.raises(ConfigError, match="temperature"):
        trainer_for(stage(rollouts=Rollouts(max_tokens=4, temperature=0)), make_model("llama"), tokenizer, tmp_path)


def test_row_schedule_asks_every_prompt_once_an_epoch():
    schedule = row_schedule(5, 12, 0)
    assert sorted(schedule[:5]) == sorted(schedule[5:10]) == list(range(5))
    assert schedule[:5] != schedule[5:10]
    assert schedule == row_schedule(5, 20, 0)[:12]


def test_only_a_longer_row_exceeds_pack_tokens(make_model, tokenizer, tmp_path):
    trainer = trainer_for(stage(pack_tokens=12, kl=0.1), make_model("hybrid", 0), tokenizer, tmp_path)
    tokens = [[len(a) + len(b) for a, b in zip(rows.prompt_ids, rows.completion_ids)]
              for rows in trainer.collect_step()]  # fmt: skip
    assert sum(map(len, tokens)) == 2 * GROUP and max(map(sum, tokens)) > 12
    assert all(sum(lengths) <= 12 or len(lengths) == 1 for lengths in tokens)


def test_a_pack_of_one_completion_proves_no_isolation(make_model, tokenizer, tmp_path):
    trainer = trainer_for(stage(pack_tokens=1), make_model("hybrid", 0), tokenizer, tmp_path)
    trainer.train_or_resume()
    assert not trainer.isolated
