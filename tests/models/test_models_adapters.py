import copy

import pytest
import torch
from transformers import NemotronHForCausalLM

from nanoalign.common.errors import ConfigError
from nanoalign.models.adapters import attach, matching_targets, merge_adapter, require_trained
from nanoalign.models.config import LoRA
from tests.tiny import tiny_hybrid


@pytest.fixture
def hybrid() -> NemotronHForCausalLM:
    return tiny_hybrid()


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


def test_default_targets_reach_every_projection_of_a_hybrid(hybrid: NemotronHForCausalLM) -> None:
    model = attach(hybrid, LoRA(), seed=0)
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_modules() if ".lora_A" in name}
    assert adapted >= {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "in_proj", "out_proj"}
    require_trained(model, batch())
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trainable and all(".lora_" in name for name in trainable)


def test_merging_fresh_adapters_changes_nothing_and_trained_ones_what_they_learned(
    hybrid: NemotronHForCausalLM,
) -> None:
    before = copy.deepcopy(hybrid)
    inputs = {"input_ids": batch()["input_ids"]}
    model = attach(hybrid, LoRA(rank=4), seed=0)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before(**inputs).logits)
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=0.1)
        expected = model(**inputs).logits
        merged = merge_adapter(model)
        assert not any("lora" in name for name, _ in merged.named_parameters())
        assert set(merged.state_dict()) == set(before.state_dict())
        assert torch.allclose(merged(**inputs).logits, expected, atol=1e-4)
        assert not torch.allclose(expected, before(**inputs).logits, atol=1e-2)


def test_a_misspelt_target_is_an_error_and_an_absent_kind_of_block_is_not(hybrid: NemotronHForCausalLM) -> None:
    assert "gate_proj" not in matching_targets(hybrid, LoRA())
    with pytest.raises(ConfigError, match="named `q_porj`; did you mean `q_proj`"):
        attach(hybrid, LoRA(targets=["q_porj", "v_proj"]), seed=0)
    with pytest.raises(ConfigError, match="none matches"):
        attach(hybrid, LoRA(targets=["gate_proj"]), seed=0)


def test_adapters_that_a_kernel_bypasses_are_found(hybrid: NemotronHForCausalLM) -> None:
    model = attach(hybrid, LoRA(targets=["q_proj", "up_proj"]), seed=0)
    mlp = next(module for name, module in model.named_modules() if name.endswith("layers.1.mixer"))
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(torch.nn.functional.linear(x, mlp.up_proj.weight)))
    with pytest.raises(ConfigError, match=r"1 adapters got no gradient, first model.layers.1.mixer.up_proj"):
        require_trained(model, batch())
