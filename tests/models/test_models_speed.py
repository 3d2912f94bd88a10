"""What a recipe asks of memory and speed reaches the model; offloaded activations come back as they were."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from nanoalign.common.errors import ConfigError
from nanoalign.models.adapters import attach
from nanoalign.models.config import LoRA, Training
from nanoalign.models.hybrid import Mamba2Path, install
from nanoalign.models.kernels import TORCH
from nanoalign.models.loss import causal_loss
from nanoalign.models.offload import HostOffload
from nanoalign.models.packed_attention import packed_inputs
from nanoalign.models.speed import configure_model
from nanoalign.models.tiling import TiledNemotronHBlock
from tests.models.small import VOCAB, small_model


def test_a_recipes_switches():
    model = small_model("nemotron_h")
    install(model)
    configure_model(model, Training(learning_rate=1e-3), torch.device("cpu"))
    assert not any(isinstance(module, TiledNemotronHBlock) for module in model.modules())
    configure_model(
        model, Training(learning_rate=1e-3, gradient_checkpointing=True, tile=64, keep_blocks=2), torch.device("cpu")
    )
    blocks = [module for module in model.modules() if isinstance(module, TiledNemotronHBlock)]
    assert [block.keep for block in blocks] == [False, False, True, False, True]
    assert {block.tile for block in blocks} == {64}
    assert all(module.kernels is TORCH for module in model.modules() if isinstance(module, Mamba2Path))
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        configure_model(model, Training(learning_rate=1e-3, kernels="triton"), torch.device("cpu"))


def test_a_model_without_mamba_needs_no_kernels():
    model = small_model("llama")
    install(model)
    configure_model(model, Training(learning_rate=1e-3, kernels="triton"), torch.device("cpu"))


def test_offload_leaves_other_devices_alone():
    model, offload = small_model("nemotron_h"), HostOffload(10**9, least=1)
    with offload.forward():
        loss = model(torch.arange(3, 9)[None], use_cache=False).logits.square().mean()
    loss.backward()
    assert offload.parked_bytes == 0


def kept(keep: int, kind: str = "cpu", lora: bool = False) -> PreTrainedModel:
    """A hybrid ``M-M*-`` in tiles of 16 tokens, whose last blocks keep their products."""
    model = small_model("nemotron_h").to(kind).train()
    install(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora:
        attach(model, LoRA(), seed=0)
    settings = {"gradient_checkpointing": True, "tile": 16, "keep_blocks": keep, "kernels": "torch"}
    configure_model(model, Training(learning_rate=1e-3, **settings), model.device)
    return model


def pack(lengths: list[int], kind: str = "cpu", seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    ids = torch.randint(3, VOCAB, (1, sum(lengths)), device=kind)
    return {"input_ids": ids} | packed_inputs(lengths, device=kind)


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=on_gpu)])
@pytest.mark.parametrize("keep", [0, 2, 5])
@pytest.mark.parametrize("host_bytes", [0, 40_000, 10**8])
@pytest.mark.parametrize("lora", [False, True])
def test_offloaded_activations_come_back(kind: str, keep: int, host_bytes: int, lora: bool):
    whole = kept(keep, kind, lora)
    offloaded, offload = copy.deepcopy(whole), HostOffload(host_bytes, least=1, kind=kind)
    for seed in (0, 1):  # the second pass takes the host memory of the first
        batch = pack([40, 35, 25], kind, seed)
        causal_loss(whole, batch["input_ids"], **batch).backward()
        with offload.forward():
            loss = causal_loss(offloaded, batch["input_ids"], **batch)
        loss.backward()
        assert offload.parked_bytes <= sum(slab.nbytes for slab in offload.slabs) <= host_bytes
        assert (offload.parked_bytes > 0) == (host_bytes > 0)
        assert all(parked.near is None and not parked.uses for parked in offload.parked)
        for a, b in zip(whole.parameters(), offloaded.parameters()):
            if a.requires_grad:
                assert torch.equal(a.grad, b.grad) if kind == "cpu" else torch.allclose(a.grad, b.grad, 1e-4, 1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_kept_products_go_to_the_host_once(lora: bool):
    model, offload = kept(5, lora=lora), HostOffload(10**8, least=1, kind="cpu")
    with offload.forward():
        loss = causal_loss(model, pack([96])["input_ids"], **pack([96]))
    found = Counter((parked.host.nbytes, parked.uses) for parked in offload.parked)
    tile, mamba = 16 * 4, 64 + (64 + 2 * 2 * 8) + 4
    inputs = 18 if lora else 24  # of 3 or 4 blocks in 6 tiles: peft makes the embeddings a leaf, which autograd holds
    assert found[tile * 32, 2] >= inputs  # saved by the first and the last piece of a tile
    assert found[tile * mamba, 3] == 12  # in_proj's output of two blocks as gate, channels and steps
    assert found[tile * 64, 1] == 12  # the scan's
    assert found[tile * 48, 1] == 12  # up_proj's of two blocks
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    assert not weights & {parked.source.cdata for parked in offload.parked}
    gone = [parked for parked in offload.parked if parked.near is None]
    assert len(gone) >= len(offload.parked) - 2  # the last may be on their way
    assert all(parked.source.expired() for parked in gone)  # nothing holds the memory
    loss.backward()


def test_an_earlier_pass_cannot_go_backward():
    model, offload = kept(2), HostOffload(10**8, least=1, kind="cpu")
    with offload.forward():
        first = model(**pack([40, 35])).logits.square().mean()
    with offload.forward():
        model(**pack([40, 35])).logits.square().mean().backward()
    with pytest.raises(RuntimeError, match="earlier forward pass"):
        first.backward()


def test_a_second_backward_pass_is_refused():
    offload, x = HostOffload(10**8, least=1, kind="cpu"), torch.randn(2, 3, 4, requires_grad=True)
    with offload.forward():
        loss = x.mul(2).exp().sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="serve one backward pass"):
        loss.backward()
