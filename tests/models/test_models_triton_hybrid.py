"""Whole models on the Triton kernels against the same on torch's: packs, tiles, adapters, padding, shares of heads."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from nanoalign.models import chunks
from nanoalign.models.adapters import attach
from nanoalign.models.chunks import pack_layout
from nanoalign.models.config import LoRA
from nanoalign.models.hybrid import Mamba2Path, install
from nanoalign.models.kernels import TORCH, TRITON, KernelSet
from nanoalign.models.mamba2 import split_channels
from nanoalign.models.packed_attention import packed_inputs
from nanoalign.models.tiling import tile
from tests.models.small import VOCAB, small_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="Triton is not installed (it comes with torch's CUDA builds)")

from nanoalign.models import triton_scan  # noqa: E402

LENGTHS = [3, 18, 1, 10]
"""Documents of a pack: the second has more than a chunk. Together whole vectors of a CPU, whose softplus rounds the
elements behind the last one otherwise."""
Found = dict[str, Tensor]


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch):
    """Of 16 tokens, the fewest that Triton's products take."""
    for module in (chunks, triton_scan):
        monkeypatch.setattr(module, "LONGEST", 16)


def built(name: str, kernels: KernelSet, lora: bool = False, tiles: tuple[int, int] | None = None) -> PreTrainedModel:
    """A model whose mixers, and blocks where it runs in ``tiles`` of so many tokens, are on ``kernels``."""
    model = small_model(name).to(DEVICE).train()
    install(model)
    for mixer in model.modules():
        if isinstance(mixer, Mamba2Path):
            mixer.kernels = kernels
    if lora:
        attach(model, LoRA(rank=3), seed=0)
        torch.manual_seed(1)
        for parameter, weight in model.named_parameters():
            if "lora_B" in parameter:
                torch.nn.init.normal_(weight, std=0.1)
    if tiles:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        tile(model, *tiles)
    return model


def tokens(rows: int, count: int) -> Tensor:
    return torch.randint(3, VOCAB, (rows, count), generator=torch.Generator().manual_seed(0)).to(DEVICE)


def logprobs(model: PreTrainedModel, ids: Tensor, lengths: list[int], half: bool = False) -> Tensor:
    """Of each next token (T - 1,); ``half`` autocasts to fp16, as Triton's interpreter multiplies no bf16."""
    with torch.autocast(DEVICE, torch.float16, enabled=half):
        logits = model(input_ids=ids, **packed_inputs(lengths, device=DEVICE)).logits
    return logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)


def results(model: PreTrainedModel, values: Tensor) -> Found:
    """Log-probabilities and all gradients."""
    values.square().mean().backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"log-probabilities": values.detach(), **grads}


def assert_close(found: Found, want: Found, tolerance: float = 1e-4) -> None:
    assert found.keys() == want.keys() and len(want) > 1
    for name, value in want.items():
        assert float((found[name] - value).norm()) < tolerance * float(value.norm()) + 1e-6, name


@pytest.mark.parametrize(
    ("name", "lora", "tiles", "half"),
    [
        ("nemotron_h", False, None, False),
        ("nemotron_h", False, (16, 0), False),
        ("nemotron_h", True, (16, 2), False),
        ("nemotron_h", False, (16, 5), True),
        ("falcon_h1", False, None, False),
    ],
)
def test_a_pack(name: str, lora: bool, tiles: tuple[int, int] | None, half: bool):
    """In tiles and not, where the torch model always reads the whole pack."""
    ids = tokens(1, sum(LENGTHS))
    want, got = built(name, TORCH, lora), built(name, TRITON, lora, tiles)
    assert_close(
        *(results(model, logprobs(model, ids, LENGTHS, half)) for model in (got, want)), 2e-2 if half else 1e-4
    )


def test_padded_rows():
    """Rows that begin with padding and have no documents."""
    ids, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.int64, device=DEVICE)
    mask[0, :5], mask[1, :10] = 0, 0
    found = []
    for kernels in (TORCH, TRITON):
        model = built("nemotron_h", kernels)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        found.append(results(model, logits.log_softmax(-1)[mask.bool()]))
    assert_close(found[1], found[0])


def test_a_cached_prefix_goes_on():
    """Prefill in two calls, as a cache hands on the state and the convolution's inputs, and one token more."""
    ids, found = tokens(2, 12), []
    for kernels in (TORCH, TRITON):
        model, cache, parts = built("nemotron_h", kernels).eval(), None, []
        for part in ids.split([7, 4, 1], dim=1):
            with torch.no_grad():
                output = model(input_ids=part, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits)
        found.append(torch.cat(parts, 1))
    assert torch.allclose(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [slice(0, 1), slice(2, 4)])
def test_a_share_of_the_heads(heads: slice):
    """As models.sequence_parallel asks for: some heads of one group, from channels cut out for them."""
    mixer: Any = next(module for module in built("nemotron_h", TORCH).modules() if isinstance(module, Mamba2Path))
    group = heads.start // 2
    draw = torch.Generator().manual_seed(0)
    wide, steps = (
        torch.randn(1, sum(LENGTHS), width, generator=draw).to(DEVICE).abs()
        for width in (mixer.conv_dim, mixer.num_heads)
    )
    x, inputs, outputs = split_channels(wide, mixer.num_heads, mixer.head_dim, mixer.ssm_state_size)
    parts = [x[:, :, heads], inputs[:, :, group], outputs[:, :, group]]
    channels = torch.cat([part.flatten(2) for part in parts], -1)
    documents = pack_layout(packed_inputs(LENGTHS, device=DEVICE)["seq_idx"])
    found = []
    for kernels in (TORCH, TRITON):
        mixer.kernels = kernels
        leaves = [channels.clone().requires_grad_(), steps[..., heads].clone().requires_grad_()]
        y, state = mixer._recur(*leaves, None, documents, None, heads)
        grads = torch.autograd.grad(y.square().sum() + state.square().sum(), [*leaves, mixer.A_log, mixer.D])
        found.append(dict(zip(["y", "state", "channels", "steps", "A", "D"], [y.detach(), state.detach(), *grads])))
    assert_close(found[1], found[0])


def test_a_document_has_the_same_bits_wherever_it_lies():
    """In packs of one length, so that products have the same shapes."""
    model, documents = built("nemotron_h", TRITON), tokens(1, sum(LENGTHS)).split(LENGTHS, dim=1)
    found = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        lengths = [LENGTHS[place] for place in order]
        with torch.no_grad():
            values = logprobs(model, torch.cat([documents[place] for place in order], 1), lengths)
        parts = F.pad(values, (0, 1)).split(lengths)  # the last of each is another document's first
        found.append([parts[order.index(place)][:-1] for place in range(len(LENGTHS))])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
