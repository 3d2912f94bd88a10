"""What a recipe asks of memory and speed reaches the model; offloaded activations come back as they were."""

import copy

import pytest
import torch

from common.errors import ConfigError
from models.config import Training
from models.documents import packed_inputs
from models.hybrid import Mamba2Path, install
from models.kernels import TORCH
from models.offload import HostOffload
from models.speed import prepare
from models.tiling import TiledNemotronHBlock
from tests.models.small import VOCAB, small_model


def test_a_recipes_switches():
    model = small_model("nemotron_h")
    install(model)
    prepare(model, Training(learning_rate=1e-3), torch.device("cpu"))
    assert not any(isinstance(module, TiledNemotronHBlock) for module in model.modules())
    prepare(
        model, Training(learning_rate=1e-3, gradient_checkpointing=True, tile=64, keep_blocks=2), torch.device("cpu")
    )
    blocks = [module for module in model.modules() if isinstance(module, TiledNemotronHBlock)]
    assert [block.keep for block in blocks] == [False, False, False, True, True]
    assert {block.tile for block in blocks} == {64}
    assert all(module.kernels is TORCH for module in model.modules() if isinstance(module, Mamba2Path))
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        prepare(model, Training(learning_rate=1e-3, kernels="triton"), torch.device("cpu"))


def test_a_model_without_mamba_needs_no_kernels():
    model = small_model("llama")
    install(model)
    prepare(model, Training(learning_rate=1e-3, kernels="triton"), torch.device("cpu"))


def test_offload_leaves_the_cpu_alone():
    model, offload = small_model("nemotron_h"), HostOffload(32, 10**9, least=1)
    with offload.forward():
        loss = model(torch.arange(3, 9)[None], use_cache=False).logits.square().mean()
    loss.backward()
    assert offload.parked_bytes == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="activations are offloaded from a GPU")
@pytest.mark.parametrize("keep", [0, 2, 5])
@pytest.mark.parametrize("host_bytes", [0, 20_000, 10**9])
def test_offloaded_activations_come_back(keep: int, host_bytes: int):
    whole = small_model("nemotron_h").cuda().train()
    install(whole)
    whole.gradient_checkpointing_enable({"use_reentrant": False})
    train = Training(learning_rate=1e-3, gradient_checkpointing=True, tile=16, keep_blocks=keep)
    prepare(whole, train, whole.device)
    offloaded = copy.deepcopy(whole)
    offload = HostOffload(32, host_bytes, least=1)
    for seed in (0, 1):  # the second pass takes the host memory of the first
        torch.manual_seed(seed)
        batch = {"input_ids": torch.randint(3, VOCAB, (1, 100), device="cuda")} | packed_inputs(
            [40, 35, 25], device="cuda"
        )
        whole(**batch).logits.square().mean().backward()
        with offload.forward():
            loss = offloaded(**batch).logits.square().mean()
        loss.backward()
        assert offload.parked_bytes <= host_bytes and (offload.parked_bytes > 0) == (host_bytes > 0)
        for a, b in zip(whole.parameters(), offloaded.parameters()):
            assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)
