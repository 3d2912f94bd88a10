"""Interpolated checkpoints against a float64 reference, for every kind of checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from nanoalign.merge.checkpoint import open_checkpoint
from nanoalign.merge.interpolate import interpolate
from nanoalign.merge.pair import lerp, make_pair, tensors_at

Make = Callable[..., tuple[Path, Path]]
Read = Callable[[Path], dict[str, torch.Tensor]]


def reference(x: torch.Tensor, y: torch.Tensor, alpha: float) -> torch.Tensor:
    return ((1 - alpha) * x.double() + alpha * y.double()).to(x.dtype)


def wrong_share(merged: dict[str, torch.Tensor], due: dict[str, torch.Tensor]) -> float:
    """Share of elements that differ; names, shapes and dtypes must not."""
    assert {name: (t.shape, t.dtype) for name, t in merged.items()} == {n: (t.shape, t.dtype) for n, t in due.items()}
    wrong = sum(int((merged[name] != due[name]).sum()) for name in due)
    return wrong / sum(tensor.numel() for tensor in due.values())


@pytest.mark.parametrize("kind", ["llama", "tied", "fp32", "fp16", "nemotron_h", "mixed"])
def test_all_tensors_equal_the_float64_reference(kind: str, make_pair_of: Make, tensors_of: Read, tmp_path: Path):
    a, b = make_pair_of(kind)
    alphas = [0.0, 0.1, 0.3, 0.5, 0.9, 1.0]
    interpolate(a, b, {alpha: tmp_path / str(alpha) for alpha in alphas})
    x, y = tensors_of(a), tensors_of(b)
    for alpha in alphas:
        due = {name: reference(x[name], y[name], alpha) for name in x}
        assert wrong_share(tensors_of(tmp_path / str(alpha)), due) < 0.005
    for end, source in ((0.0, x), (1.0, y)):
        assert wrong_share(tensors_of(tmp_path / str(end)), source) == 0


@pytest.mark.parametrize("kind", ["tied", "mixed"])
def test_the_output_loads_without_a_missing_or_new_weight(kind: str, make_pair_of: Make, tmp_path: Path):
    a, b = make_pair_of(kind)
    interpolate(a, b, {0.5: tmp_path / "o"})
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "o", dtype="auto", output_loading_info=True)
    assert not (report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"])
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (kind == "tied")
    assert {path.name for path in (tmp_path / "o").iterdir()} == {path.name for path in a.iterdir()}


@pytest.mark.parametrize("shards", [("20KB", "1GB"), ("1GB", "20KB"), ("20KB", "45KB")])
def test_any_sharding_gives_the_same_tensors_in_the_sharding_of_a(
    shards: tuple[str, str], make_pair_of: Make, tensors_of: Read, tmp_path: Path
):
    a, b = make_pair_of("llama", shards)
    interpolate(a, b, {0.3: tmp_path / "o"}, threads=2)
    x, y = tensors_of(a), tensors_of(b)
    assert wrong_share(tensors_of(tmp_path / "o"), {name: reference(x[name], y[name], 0.3) for name in x}) < 0.005
    assert {path.name for path in (tmp_path / "o").iterdir()} == {path.name for path in a.iterdir()}
    index = tmp_path / "o" / "model.safetensors.index.json"
    if index.exists():
        assert json.loads(index.read_text())["weight_map"] == json.loads((a / index.name).read_text())["weight_map"]


def test_a_tied_head_that_only_one_stores_is_merged_once(
    make_pair_of: Make, tensors_of: Read, edit: Callable, tmp_path: Path
):
    a, b = make_pair_of("tied")
    edit(b, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    interpolate(a, b, {0.5: tmp_path / "o"})
    assert tensors_of(tmp_path / "o").keys() == tensors_of(a).keys()


def test_equal_integer_tensors_are_copied(llama_pair: tuple[Path, Path], tensors_of: Read, edit: Callable, tmp_path):
    a, b = llama_pair
    steps = torch.tensor([2**62 + 1, -3])
    for folder in (a, b):
        edit(folder, lambda tensors: tensors.update({"model.steps": steps, "model.none": torch.empty(0, 4)}))
    interpolate(a, b, {0.5: tmp_path / "o"})
    assert torch.equal(tensors_of(tmp_path / "o")["model.steps"], steps)
    assert tensors_of(tmp_path / "o")["model.none"].shape == (0, 4)


def test_many_threads_and_chunks_write_what_one_does(make_pair_of: Make, tmp_path: Path, monkeypatch):
    a, b = make_pair_of("mixed")
    interpolate(a, b, {0.3: tmp_path / "one"}, threads=1)
    monkeypatch.setattr("nanoalign.merge.interpolate.CHUNK_ELEMENTS", 37)
    interpolate(a, b, {0.3: tmp_path / "many", 0.7: tmp_path / "other"}, threads=4)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "many/model.safetensors").read_bytes()


def test_what_is_computed_live_is_what_is_written(make_pair_of: Make, tensors_of: Read, tmp_path: Path):
    a, b = make_pair_of("mixed")
    interpolate(a, b, {0.3: tmp_path / "o"})
    written = tensors_of(tmp_path / "o")
    pair = make_pair(open_checkpoint(a), open_checkpoint(b))
    live = {name: torch.full_like(tensor, 7) for name, tensor in written.items()}
    for into in ({}, live):
        assert wrong_share(dict(tensors_at(pair, 0.3, into)), written) == 0
    assert wrong_share(live, written) == 0


def test_progress_counts_every_byte_once(llama_pair: tuple[Path, Path], tmp_path: Path):
    a, b = llama_pair
    seen: list[tuple[int, int]] = []
    interpolate(a, b, {0.2: tmp_path / "x", 0.4: tmp_path / "y"}, progress=lambda *counts: seen.append(counts))
    total = 2 * make_pair(open_checkpoint(a), open_checkpoint(b)).nbytes
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


floats = st.lists(st.floats(-1e4, 1e4, width=16), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(floats, floats, st.integers(0, 100), st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
def test_lerp_lies_between_its_inputs_and_next_to_the_exact_value(xs, ys, percent, dtype):
    size = min(len(xs), len(ys))
    x, y = (torch.tensor(values[:size]).to(dtype) for values in (xs, ys))
    merged = lerp(x, y, percent / 100, torch.empty_like(x))
    exact = (1 - percent / 100) * x.double() + percent / 100 * y.double()
    assert ((merged >= torch.minimum(x, y)) & (merged <= torch.maximum(x, y))).all()
    # Half a unit in the last place of the output, and a little for the fp32 arithmetic with its cancellation.
    unit = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).smallest_normal)
    slack = 2**-22 * torch.maximum(x.abs(), y.abs()).double()
    assert ((merged.double() - exact).abs() <= 0.5 * unit + slack).all()


def test_bf16_rounds_ties_to_even():
    one = torch.tensor([1.0, 1 + 2**-7], dtype=torch.bfloat16)
    two = torch.tensor([1 + 2**-7, 1 + 2**-6], dtype=torch.bfloat16)
    assert lerp(one, two, 0.5, torch.empty_like(one)).tolist() == [1.0, 1 + 2**-6]
