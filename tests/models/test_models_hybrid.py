"""The installed path against transformers' own forward: training, left padding, cached decoding, generation."""

import copy
import io

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from nanoalign.models.hybrid import Mamba2Path, install, uninstall
from tests.models.small import VOCAB, small_model

HYBRIDS = ["nemotron_h", "bamba", "granitemoehybrid", "falcon_h1"]


def reference(name: str) -> PreTrainedModel:
    """transformers' model; NemotronH without the lower limit on the time step that 5.17 has in prefill only."""
    model = small_model(name)
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    return model


def pair(name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    theirs = reference(name)
    ours = copy.deepcopy(theirs)
    assert install(ours) == 2
    return theirs, ours


def batch(lengths: tuple[int, ...] = (30, 17, 3)) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and their mask."""
    torch.manual_seed(1)
    ids, mask = torch.randint(3, VOCAB, (len(lengths), max(lengths))), torch.ones(len(lengths), max(lengths)).long()
    for row, length in enumerate(lengths):
        ids[row, : max(lengths) - length], mask[row, : max(lengths) - length] = 0, 0
    return ids, mask


@pytest.mark.parametrize("name", HYBRIDS)
def test_forward_and_gradients_are_transformers(name: str):
    theirs, ours = pair(name)
    ids, mask = batch()
    seen = torch.nn.functional.pad(mask, (1, 0))[:, :-1].bool() & mask.bool()  # both the token and its predecessor
    labels = ids.masked_fill(~seen, -100)
    outputs = [model(ids, attention_mask=mask, labels=labels, use_cache=False) for model in (theirs, ours)]
    assert (outputs[0].logits - outputs[1].logits)[mask.bool()].abs().max() < 1e-5
    for output in outputs:
        output.loss.backward()
    for (parameter, a), (_, b) in zip(theirs.named_parameters(), ours.named_parameters()):
        assert (a.grad - b.grad).norm() < 1e-4 * a.grad.norm() + 1e-7, parameter


@pytest.mark.parametrize("name", HYBRIDS)
def test_generation_is_transformers(name: str):
    theirs, ours = pair(name)
    ids, mask = batch()
    settings = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    a, b = theirs.generate(ids, **settings), ours.generate(ids, **settings)
    assert torch.equal(a.sequences, b.sequences)
    assert max((x - y).abs().max() for x, y in zip(a.logits, b.logits)) < 1e-5


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_cache_continues_with_one_token_or_many(name: str):
    model = small_model(name)
    install(model)
    ids, mask = batch((30, 27, 23))  # transformers takes a single cached token for unpadded: padding ends before
    places = torch.arange(30)[None]  # Bamba does not count a cache's tokens by itself
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, use_cache=False).logits
        cache, done = DynamicCache(config=model.config), 0
        for piece in (9, 1, 1, 13, 6):
            rows, seen = slice(done, done + piece), {"attention_mask": mask[:, : done + piece]}
            out = model(ids[:, rows], position_ids=places[:, rows], past_key_values=cache, use_cache=True, **seen)
            at = mask[:, rows].bool()
            assert (out.logits - whole[:, rows])[at].abs().max() < 1e-5
            done += piece


def test_trained_and_decoded_agree_on_small_time_steps():
    """transformers raises dt to time_step_min in prefill and not in decoding; here both follow time_step_limit."""
    model = small_model("nemotron_h")
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "dt_bias"):
                module.dt_bias.fill_(-9.0)  # steps of 1e-4 and less
                module.A_log.fill_(5.0)

    def gap() -> float:
        ids = batch((30,))[0]
        with torch.no_grad():
            whole = model(ids, use_cache=False).logits[:, -1]
            cache = model(ids[:, :-1], use_cache=True).past_key_values
            return float((model(ids[:, -1:], past_key_values=cache).logits[:, -1] - whole).abs().max())

    plain = gap()
    install(model)
    assert gap() < 1e-5 < plain


def test_install_is_idempotent_and_leaves_other_models_alone():
    ours, other = small_model("nemotron_h"), small_model("nemotron_h")
    names = list(ours.state_dict())
    assert install(ours) == install(ours) == 2
    assert len(ours.base_model._forward_pre_hooks) == 1
    assert list(ours.state_dict()) == names
    assert not any(isinstance(module, Mamba2Path) for module in other.modules())
    assert other.config._attn_implementation == "sdpa" and not other.base_model._forward_pre_hooks
    uninstall(ours)
    assert [type(module) for module in ours.modules()] == [type(module) for module in other.modules()]
    assert not ours.base_model._forward_pre_hooks and not ours.base_model._forward_pre_hooks_with_kwargs


def test_installed_models_are_copied_and_pickled():
    model = small_model("nemotron_h")
    install(model)
    ids = batch()[0]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(twin(ids).logits, model(ids).logits)


def test_training_with_checkpointing_and_autocast():
    model = small_model("nemotron_h").train()
    install(model)
    ids = batch()[0]
    model(ids, labels=ids, use_cache=False).loss.backward()
    full = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(ids, labels=ids, use_cache=False).loss.backward()
    for weight, grad in zip(model.parameters(), full):
        assert torch.allclose(weight.grad, grad, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(ids, labels=ids, use_cache=False)
    assert abs(half.loss - model(ids, labels=ids, use_cache=False).loss) < 0.05
    half.loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_adapters_reach_the_mixers_projection():
    from peft import LoraConfig, get_peft_model

    model = small_model("nemotron_h")
    install(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["in_proj"]))
    ids = batch()[0]
    adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert all(weight.grad is not None for weight in adapted.parameters() if weight.requires_grad)
