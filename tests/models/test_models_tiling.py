"""A model tile by tile is the whole model: packs, gradients, adapters; and no more products than there must be."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from nanoalign.models.adapters import attach
from nanoalign.models.config import LoRA
from nanoalign.models.hybrid import install
from nanoalign.models.isolation import check_isolation
from nanoalign.models.loss import causal_loss
from nanoalign.models.lowrank import project
from nanoalign.models.packed_attention import packed_inputs
from nanoalign.models.tiling import tile
from tests.models.small import VOCAB, small_model


def trainable(checkpointing: bool = True) -> PreTrainedModel:
    model = small_model("nemotron_h").train()
    install(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def gradients(model: PreTrainedModel, lengths: list[int]) -> dict[str, torch.Tensor]:
    """The loss and every gradient on a pack of documents of these lengths."""
    ids = torch.randint(3, VOCAB, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    loss = causal_loss(model, ids, input_ids=ids, **packed_inputs(lengths))
    loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach(), **found}


def assert_close(found: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert found.keys() == want.keys()
    for name, value in want.items():
        assert (found[name] - value).norm() < 1e-5 * value.norm() + 1e-7, name


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=6), st.integers(3, 40), st.integers(0, 5))
def test_tiles_are_the_whole_pack(lengths: list[int], tokens: int, keep: int):
    whole = trainable(checkpointing=False)
    tiled = trainable()
    assert tile(tiled, tokens, keep) == 5
    assert_close(gradients(tiled, [*lengths, 2]), gradients(whole, [*lengths, 2]))


def test_tiled_packs_isolate_their_documents():
    model = trainable()
    tile(model, 7)
    report = check_isolation(model, [list(range(3, 3 + length)) for length in (20, 1, 9, 30)], gradients=True)
    assert report.max_difference < 1e-5
    assert report.gradient_difference is not None and report.gradient_difference < 1e-4


RANK = 3
"""Of the adapters here: no other dimension is as small."""


class Products(TorchDispatchMode):
    """Counts matrix products, but for those of adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            first, second = args[-2:]
            self.count += RANK not in (*first.shape, *second.shape)
        return func(*args, **(kwargs or {}))


def backward_products(model: PreTrainedModel) -> int:
    ids = torch.randint(3, VOCAB, (1, 30))
    loss = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.square().mean()
    with Products() as products:
        loss.backward()
    return products.count


def test_kept_products_are_not_computed_again_and_last_ones_never():
    """Of the pattern M-M*-: two products in each of two mixers and two MLPs, four in the attention."""
    linear = 2 * (2 * 2 + 2 * 2 + 4)  # two for each product: of the input and of the weight
    tiled, kept = trainable(), trainable()
    tile(tiled, 64)
    tile(kept, 64, keep=99)
    assert backward_products(tiled) == linear + 4 + 3  # in_proj and up_proj again; q_proj, k_proj and v_proj
    assert backward_products(kept) == linear


def test_frozen_weights_have_one_product_in_the_backward_pass():
    model = attach(trainable(), LoRA(rank=RANK), 0).get_base_model()
    tile(model, 64, keep=99)
    assert backward_products(model) == 2 * 2 + 2 * 2 + 4


def test_adapters_in_tiles_are_pefts():
    lora = LoRA(rank=RANK)
    models = [attach(trainable(checkpointing), lora, 0) for checkpointing in (False, True)]
    for model in models:
        torch.manual_seed(1)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    whole, tiled = (model.get_base_model() for model in models)
    tile(tiled, 8, keep=3)
    assert_close(gradients(tiled, [12, 5, 14]), gradients(whole, [12, 5, 14]))


@pytest.mark.parametrize("hooked", [False, True])
def test_projection_of_a_hooked_layer_calls_it(hooked: bool):
    layer, x, plus = torch.nn.Linear(4, 3, bias=False), torch.randn(2, 5, 4), torch.randn(2, 5, 3)
    calls = []
    if hooked:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    assert torch.allclose(project(layer, x, plus), plus + x @ layer.weight.T, atol=1e-6)
    assert len(calls) == hooked


@pytest.mark.filterwarnings("ignore:.*lora_bias")
@pytest.mark.parametrize("grads", [True, False])
@pytest.mark.parametrize(
    "case", ["one", "several", "elsewhere", "bias", "dropout", "merged", "off", "autocast", "whole"]
)
def test_projection_of_adapters_is_pefts(case: str, grads: bool):
    """Outputs and gradients: one adapter or two, or another layer's, with biases and so on; the weight too."""
    torch.manual_seed(0)
    model = get_peft_model(
        torch.nn.ModuleDict({"a": torch.nn.Linear(4, 6, bias=False), "b": torch.nn.Linear(4, 6, bias=False)}),
        LoraConfig(r=2, target_modules=["a"], lora_bias=case == "bias", lora_dropout=0.5 * (case == "dropout")),
    )
    if case in ("several", "elsewhere"):
        model.add_adapter("other", LoraConfig(r=3, target_modules=["a", "b"] if case == "several" else ["b"]))
        model.base_model.set_adapter(["default", "other"])
    layer: Any = model.base_model.model["a"]
    for name, weight in layer.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight)
    if case == "merged":
        layer.merge()
    if case == "off":
        layer.enable_adapters(False)
    layer.base_layer.weight.requires_grad_(case == "whole")
    x, plus = (torch.randn(2, 3, size).requires_grad_(grads) for size in (4, 6))
    found = []
    for function in (lambda: plus + layer(x), lambda: project(layer, x, plus)):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
            y = function()
        leaves = [leaf for leaf in (x, plus, *layer.parameters()) if leaf.requires_grad]
        more = torch.autograd.grad(y.square().sum(), leaves, allow_unused=True) if y.requires_grad else ()
        found.append([y, *more])
    for want, got in zip(*found, strict=True):
        if want is None:
            assert got is None
        else:
            assert (got - want).norm() < (1e-2 if case == "autocast" else 1e-5) * want.norm()


def test_a_tiled_model_decodes_and_evaluates_as_before():
    model = trainable().eval()
    twin = copy.deepcopy(model)
    tile(twin, 4)
    ids = torch.randint(3, VOCAB, (2, 11))
    with torch.no_grad():
        assert torch.allclose(model(ids, use_cache=False).logits, twin(ids, use_cache=False).logits, atol=1e-5)
    steps = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **steps), twin.generate(ids, **steps))
