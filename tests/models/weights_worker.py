"""Whole weights of models that ZeRO-3 has split over two gloo processes, asserted on both: python weights_worker.py"""

import sys
from typing import Any

import deepspeed.ops
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

from nanoalign.models.adapters import attach
from nanoalign.models.config import LoRA
from nanoalign.models.weights import whole_weights
from tests.ranks import on_ranks
from tests.tiny import tied_llama
from tests.toy import toy_model

KINDS = ("hybrid", "llama", "tied")


def plain(kind: str) -> Any:
    return tied_llama(48, pad_token_id=0) if kind == "tied" else toy_model(kind)


def adapted(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """With adapters that are not zero, on Mamba's projections too."""
    model = attach(plain(kind).to(dtype), LoRA(rank=4), 0)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def split(model: Any, persistent: int) -> Any:
    """DeepSpeed's engine; parameters of at most so many elements stay whole."""
    zero = {"stage": 3, "stage3_param_persistence_threshold": persistent}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "zero_allow_untested_optimizer": True}
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return deepspeed.initialize(model=model, config=config, optimizer=torch.optim.AdamW(weights, lr=1e-3))[0]


def gathered(model: Any) -> list[str]:
    """Names of the parameters that are whole just now and are not kept so."""
    return [
        name for name, weight in model.named_parameters()
        if weight.ds_status == ZeroParamStatus.AVAILABLE and not weight.ds_persist
    ]  # fmt: skip


def step(engine: Any) -> None:
    ids = torch.randint(5, 48, (1, 6), generator=torch.Generator().manual_seed(0))
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()


def check(rank: int, kind: str, build: Any, persistent: int) -> None:
    expected = dict(whole_weights(build(kind)))
    engine = split(build(kind), persistent)
    model = engine.module
    for bucket_bytes in (1, 5000, 2**30):
        found = {}
        for name, tensor in whole_weights(model, bucket_bytes):
            assert not gathered(model), "nothing a consumer does is to stand inside a collective"
            found[name] = tensor
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert len(list(whole_weights(model, 5000, want=rank == 0))) == (0 if rank else len(expected))
    step(engine)  # and again between steps, whose gathering is not disturbed
    once = dict(whole_weights(model, 5000))
    assert any(not torch.equal(once[name], tensor) for name, tensor in expected.items())
    step(engine)
    assert any(not torch.equal(tensor, once[name]) for name, tensor in whole_weights(model))
    engine.destroy()


def work(rank: int) -> None:
    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo")
    for kind in KINDS:
        for build in (plain, adapted):
            check(rank, kind, build, persistent=100 if kind == "llama" else 0)


if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles collectives for two minutes
    sys.exit(not on_ranks(2, work))
