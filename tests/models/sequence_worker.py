"""Small models on packs spread over gloo ranks: python sequence_worker.py RANKS FOLDER MODEL ...

Rank 0 writes FOLDER/MODEL.pt: losses, logits and gradients of one process and of the ranks together.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from nanoalign.models.hybrid import install
from nanoalign.models.isolation import check_isolation
from nanoalign.models.loss import IGNORED, linear_cross_entropy
from nanoalign.models.packed_attention import packed_inputs
from nanoalign.models.sequence_parallel import parallelize
from tests.models.small import VOCAB, small_model
from tests.ranks import on_ranks

LENGTHS = [9, 1, 20, 3, 15]
"""Documents of a pack of 48 tokens: the third lies across the border of two ranks, the last across that of four."""


def batch() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(3, VOCAB, (1, sum(LENGTHS)), generator=draw), **packed_inputs(LENGTHS)}


def shifted(ids: torch.Tensor, seq_idx: torch.Tensor) -> torch.Tensor:
    """Each token's next token, of its own document."""
    labels = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
    return labels.masked_fill(F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (0, 1), value=True), IGNORED)


def loss_of(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return linear_cross_entropy(hidden.flatten(0, 1), model.get_output_embeddings().weight, labels.flatten(), tile=16)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def model_of(name: str) -> Any:
    model = small_model(name)
    install(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def compare(name: str, folder: Path) -> None:
    model, inputs = model_of(name), batch()
    labels = shifted(inputs["input_ids"], inputs["seq_idx"])
    logits = model(**inputs).logits.detach()
    loss = loss_of(model, model.base_model(**inputs).last_hidden_state, labels)
    loss.backward()
    one = {"logits": logits, "loss": loss.detach(), **gradients(model)}

    model = model_of(name)
    parallelize(model, dist.group.WORLD)
    whole = model(**inputs).logits.detach()
    odd = check_isolation(model, [list(range(3, 3 + length)) for length in (7, 12, 4)])  # 23 tokens: filled up
    mine = [inputs[key].chunk(dist.get_world_size(), 1)[dist.get_rank()] for key in ("input_ids", "position_ids")]
    segment = dict(zip(("input_ids", "position_ids"), mine)) | {"seq_idx": inputs["seq_idx"]}
    part = loss_of(
        model, model.base_model(**segment).last_hidden_state, labels.chunk(dist.get_world_size(), 1)[dist.get_rank()]
    )
    part.backward()
    summed = {"loss": part.detach(), **gradients(model)}
    for tensor in summed.values():
        dist.all_reduce(tensor)
    if dist.get_rank() == 0:
        torch.save({"one": one, "many": {"logits": whole, **summed}, "isolated": odd.isolated}, folder / f"{name}.pt")


def main() -> None:
    torch.set_num_threads(1)
    ranks, folder = int(sys.argv[1]), Path(sys.argv[2])

    def work(rank: int) -> None:
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
        for name in sys.argv[3:]:
            compare(name, folder)

    sys.exit(not on_ranks(ranks, work))


if __name__ == "__main__":
    main()
