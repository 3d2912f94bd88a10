"""FP8 products: rounding, isolation to the bit, and what tiles, adapters, offload and optimizers make of them."""

import copy
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from nanoalign.common.errors import ConfigError
from nanoalign.models import fp8, fp8_layers, fp8_tiles
from nanoalign.models.adapters import attach
from nanoalign.models.config import LoRA, Training
from nanoalign.models.fp8 import Fp8Linear, held
from nanoalign.models.fp8_layers import use_fp8
from nanoalign.models.fp8_tiles import LARGEST, Tiles
from nanoalign.models.hybrid import install
from nanoalign.models.isolation import check_isolation, full_precision
from nanoalign.models.loss import causal_loss
from nanoalign.models.offload import HostOffload
from nanoalign.models.packed_attention import packed_inputs
from nanoalign.models.tiling import tile
from nanoalign.models.training import training_arguments
from tests.models.small import VOCAB, small_model


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fp8_layers.EMULATE, "1")
    held.clear()


def noise(*shape: int, seed: int = 0) -> Tensor:
    """bf16, with rows of very different sizes."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=draw)
    return (values * (3 * torch.randn(shape[0], 1, generator=draw)).exp()).bfloat16()


def relative(found: Tensor, want: Tensor) -> float:
    found, want = found.detach().double(), want.detach().double()
    return float((found - want).norm() / want.norm())


def same(first: Tiles, second: Tiles) -> bool:
    values = [each.values.view(torch.uint8) for each in (first, second)]
    return torch.equal(*values) and torch.equal(first.scale, second.scale)


@given(st.floats(2.0**-90, 2.0**127, width=32))
def test_a_scale_is_the_smallest_power_of_two_that_brings_values_into_range(largest: float):
    scale, inverse = fp8_tiles.scales(torch.tensor([largest]))
    assert float(scale * inverse) == 1 and float(scale.frexp().mantissa) == 0.5
    assert LARGEST / 2 < largest * float(inverse) <= LARGEST


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 150), st.integers(1, 600), st.integers(0, 99))
def test_values_are_rounded_once_to_four_bits(rows: int, columns: int, seed: int):
    x = noise(rows, columns, seed=seed)
    down, across = fp8_tiles.along_columns(x), fp8_tiles.along_rows(x)
    for tiles, want in ((across, x), (down, x.T), *zip(fp8_tiles.in_blocks(x), (x, x.T))):
        found = tiles.dequantized()
        assert not found[len(want) :].any() and not found[:, want.shape[1] :].any()
        found, want = found[: len(want), : want.shape[1]], want.double()
        fine = 2.0**-10 * tiles.scale.double()
        fine = (fine if len(fine) == len(tiles.values) else fine.repeat_interleave(128, 0)).repeat_interleave(128, 1)
        assert ((found - want).abs() <= (want.abs() / 16).maximum(fine[: len(want), : want.shape[1]])).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=4), st.integers(1, 40), st.integers(1, 40), st.data())
def test_a_documents_outputs_and_gradients_are_its_own_to_the_bit(lengths: list[int], inputs: int, outputs: int, data):
    """Whatever its neighbours are, infinite ones too, and as if it were alone."""
    x, grad, weight = noise(sum(lengths), inputs), noise(sum(lengths), outputs, seed=1), noise(outputs, inputs, seed=2)
    which = data.draw(st.integers(0, len(lengths) - 1))
    own = slice(sum(lengths[:which]), sum(lengths[: which + 1]))
    loud = torch.ones(len(x), 1).index_fill(0, torch.tensor([0, len(x) - 1]), torch.inf) * 1e4
    loud[own] = 1
    for together_x, together_grad in ((x, grad), ((x * loud).bfloat16(), (grad * loud).bfloat16())):
        y = fp8.product(together_x, weight)[own]
        grad_x, _ = fp8.gradients(together_grad, together_x, weight, True, False)
        alone, _ = fp8.gradients(grad[own], x[own], weight, True, False)
        assert torch.equal(y, fp8.product(x[own], weight))
        assert grad_x is not None and alone is not None and torch.equal(grad_x[own], alone)


def test_what_a_weights_gradient_feels_of_a_neighbour():
    """Within 2^13 nothing beyond rounding as usual; a neighbour far louder, in the same 128 tokens, hides values."""
    x, grad = torch.randn(128, 16).bfloat16(), torch.randn(128, 16).bfloat16()
    grad[64:] = 0  # the neighbour has no loss, and only shares its tiles
    want = grad[:64].double().T @ x[:64].double()
    errors = []
    for loud in (1, 2.0**10, 2.0**24):
        x[64:] = loud * torch.sign(x[64:])
        _, found = fp8.gradients(grad, x, torch.zeros(16, 16), False, True)
        assert found is not None
        errors.append(relative(found, want))
    assert errors[0] < 0.06 and errors[1] < 0.06 and errors[2] > 0.9


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 200), inputs=st.integers(1, 300), outputs=st.integers(1, 200), added=st.booleans(),
    wide=st.booleans(),
)  # fmt: skip
def test_products_and_gradients_are_near_those_of_float32(
    rows: int, inputs: int, outputs: int, added: bool, wide: bool
):
    x, plus = noise(rows, inputs).requires_grad_(), torch.randn(rows, outputs).requires_grad_() if added else None
    if plus is not None and not wide:
        plus = plus.detach().bfloat16().requires_grad_()
    weight = torch.randn(outputs, inputs, requires_grad=True)
    leaves = [leaf for leaf in (x, weight, plus) if leaf is not None]
    y = fp8.linear(x.view(1, rows, inputs), weight, None if plus is None else plus.view(1, rows, outputs))[0]
    want = x.float() @ weight.T + (0 if plus is None else plus.float())
    assert y.dtype == (torch.float32 if added and wide else torch.bfloat16)
    slope = torch.randn(rows, outputs)
    found, exact = torch.autograd.grad(y, leaves, slope.to(y.dtype)), torch.autograd.grad(want, leaves, slope)
    loud_x, loud_weight, loud_slope = x.detach().float().abs(), weight.detach().abs(), slope.abs()
    sums = [loud_x @ loud_weight.T + (0 if plus is None else plus.detach().abs()), loud_slope @ loud_weight]
    sums += [loud_slope.T @ loud_x, loud_slope]  # of magnitudes: what is rounded may cancel
    for a, b, loud in zip((y, *found), (want, *exact), sums):
        assert (a.detach().float() - b.detach().float()).norm() < 0.14 * loud.norm()
    assert all(a.dtype == leaf.dtype for a, leaf in zip(found, leaves, strict=True))


def test_what_is_not_finite_stays_so():
    x, weight = noise(8, 32), noise(16, 32)
    for value in (torch.inf, torch.nan):
        x[3, 5] = value
        y = fp8.product(x, weight)
        assert not y[3].isfinite().any() and y[:3].isfinite().all() and y[4:].isfinite().all()


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 300), columns=st.integers(1, 600), half=st.booleans(), strided=st.booleans())
def test_the_kernel_gives_the_same_bits(rows: int, columns: int, half: bool, strided: bool):
    """Of any values on a GPU; in Triton's interpreter, which rounds in its own way (3.6: 31.6 to 16), of E4M3's."""
    kernels = pytest.importorskip("nanoalign.models.triton_fp8")
    x = noise(rows, columns + 3)
    if DEVICE == "cpu":
        x = torch.randn(rows, columns + 3).to(torch.float8_e4m3fn).bfloat16() * 2.0 ** torch.randint(-9, 9, (rows, 1))
        x = x.where(x.abs() > 2.0**-6, 0).where(x.abs() < 2.0**6, 2.0**6)  # none that a tile's scale makes too small
    x = (x if half else x.float()).to(DEVICE)
    x = x[:, 2 : 2 + columns] if strided else x[:, :columns].contiguous()
    pairs = [*zip(kernels.quantize(x, True, True), (fp8_tiles.along_rows(x), fp8_tiles.along_columns(x)))]
    pairs += [*zip(kernels.in_blocks(x), fp8_tiles.in_blocks(x))]
    assert all(same(ours, plain) for ours, plain in pairs)
    assert same(kernels.quantize(x, False, True)[1], pairs[1][1]) and same(kernels.quantize(x)[0], pairs[0][1])


def trainable(lora: bool = False, fp8_ends: int | None = 0, half: bool = True) -> PreTrainedModel:
    """The hybrid ``M-M*-`` with gradient checkpointing, its projections in FP8 but for ``fp8_ends`` at either end."""
    model = small_model("nemotron_h").train()
    model = model.bfloat16() if half else model
    install(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora:
        adapted = attach(model, LoRA(rank=3), 0)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
    if fp8_ends is not None:
        use_fp8(model, ends=fp8_ends)
    return model


def gradients(model: PreTrainedModel, lengths: list[int], autocast: bool = False) -> dict[str, Tensor]:
    ids = torch.randint(3, VOCAB, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = causal_loss(model, ids, input_ids=ids, **packed_inputs(lengths))
    loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach(), **found}


def distance(found: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    assert found.keys() == want.keys()
    flat = [torch.cat([part[name].float().flatten() for name in want]) for part in (found, want)]
    return relative(*flat)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_tiles_and_kept_blocks_learn_the_same(lora: bool, autocast: bool):
    plain, whole, tiled = (trainable(lora, ends, not autocast) for ends in (None, 0, 0))
    tile(tiled, 8, keep=3)
    bf16, want, found = (gradients(model, [12, 5, 14], autocast) for model in (plain, whole, tiled))
    assert 0 < distance(want, bf16) < 0.35  # a narrow, deep, random model, whose rounding errors are large
    assert distance(found, want) < 0.12


@pytest.mark.parametrize("lora", [False, True])
def test_products_that_end_a_checkpoint_are_not_computed_again(lora: bool, monkeypatch: pytest.MonkeyPatch):
    model, calls, product = trainable(lora), [], fp8.product
    tile(model, 64, keep=99)
    monkeypatch.setattr(fp8, "product", lambda *arguments: calls.append(1) or product(*arguments))
    ids = torch.randint(3, VOCAB, (1, 30))
    loss = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.float().square().mean()
    assert len(calls) == 2 * 2 + 2 * 2 + 4
    loss.backward()
    assert len(calls) == 2 * 2 + 2 * 2 + 4


def test_offloaded_activations_come_back():
    model, offload = trainable(half=False), HostOffload(10**8, least=1, kind="cpu")
    tile(model, 16, keep=3)
    whole, offloaded = copy.deepcopy(model), copy.deepcopy(model)
    offloaded.base_model.register_forward_hook(lambda *_: entered.close())
    want = gradients(whole, [40, 35, 25], autocast=True)
    with ExitStack() as entered:
        entered.enter_context(offload.forward())
        found = gradients(offloaded, [40, 35, 25], autocast=True)
    assert offload.parked_bytes > 0
    assert all(torch.equal(found[name], value) for name, value in want.items())


@pytest.mark.parametrize("name", ["nemotron_h", "llama", "mistral", "bamba", "granitemoehybrid", "falcon_h1"])
def test_every_architecture_trains_and_isolates(name: str):
    """As far as bf16 does: log-probabilities in a pack against alone differ by rounding alone."""
    model = small_model(name).bfloat16().train()
    install(model)
    plain = gradients(model, [12, 5, 14])
    model.zero_grad()
    layers = use_fp8(model, ends=0)
    documents = [list(range(3, 3 + length)) for length in (20, 1, 9, 30)]
    report = check_isolation(model, documents)
    assert report.isolated, report
    with full_precision(model):
        exact = check_isolation(model, documents)
    assert exact.isolated and exact.mean_difference <= report.mean_difference
    found = gradients(model, [12, 5, 14])
    assert len(layers) >= 9 and all(grad.isfinite().all() for grad in found.values())
    assert abs(float(found["loss"] - plain["loss"])) < 0.1 and 0 < distance(found, plain) < 0.6


def test_projections_inside_the_model_are_converted():
    found = use_fp8(trainable(fp8_ends=None))
    assert found == [
        "layers.1.mixer.up_proj", "layers.1.mixer.down_proj", "layers.2.mixer.in_proj", "layers.2.mixer.out_proj",
        "layers.3.mixer.q_proj", "layers.3.mixer.k_proj", "layers.3.mixer.v_proj", "layers.3.mixer.o_proj",
    ]  # fmt: skip
    adapted = attach(small_model("nemotron_h"), LoRA(rank=2), 0)
    assert use_fp8(adapted) == [f"{name}.base_layer" for name in found]
    assert not any(isinstance(layer, Fp8Linear) for name, layer in adapted.named_modules() if "lora_" in name)
    with pytest.raises(ConfigError, match="finds no layer for it: of 2 blocks, 1 at either end"):
        use_fp8(small_model("llama"))
    assert len(use_fp8(small_model("llama"), ends=0)) == 14


def test_a_weight_that_changes_is_rounded_anew():
    layer, x = Fp8Linear(32, 16, bias=False, dtype=torch.bfloat16), noise(4, 32)
    first = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    assert torch.equal(layer(x), 2 * first)
    layer.weight.data = layer.weight.data * 2  # as ZeRO-3 puts gathered weights there
    held.clear()
    assert torch.equal(layer(x), 4 * first)
    model = trainable()
    model(torch.arange(3, 9)[None], use_cache=False)
    assert 0 < len(held.weights) <= fp8.HELD


def test_evaluation_and_full_precision_are_not_in_fp8():
    layer, x = Fp8Linear(32, 16, dtype=torch.bfloat16), noise(4, 32)
    plain = F.linear(x, layer.weight, layer.bias)
    assert not torch.equal(layer(x), plain) and torch.equal(layer.eval()(x), plain)
    layer.always = True
    assert not torch.equal(layer(x), plain)
    layer = layer.float().train()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.float()).dtype == torch.bfloat16 and not torch.equal(layer(x.float()), plain)
        with full_precision(layer):  # of a layer in bf16, too: adapters have such a base
            assert not layer.bfloat16().computes_fp8(x) and layer.float()
            assert torch.equal(layer(x.float()), F.linear(x.float(), layer.weight, layer.bias))


def test_a_device_without_fp8_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    monkeypatch.delenv(fp8_layers.EMULATE)
    recipe = Training(learning_rate=1e-3, precision="fp8")
    with pytest.raises(ConfigError, match=r"precision: fp8 needs a Hopper GPU .* this stage trains on the cpu"):
        training_arguments(recipe, tmp_path, samples=25, device="cpu", seed=3)
    with pytest.raises(ConfigError, match="needs a Hopper GPU"):
        fp8.product(noise(4, 32), noise(4, 32))
