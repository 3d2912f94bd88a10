"""Scores against plain loops over documents, and choices that keep groups whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.compress.importance import Scores, best, choose, measure
from nanoalign.compress.shapes import own_widths
from nanoalign.data_recipes.tokenize import Example
from nanoalign.models.hybrid import install
from nanoalign.sft.collate import collate, gather
from tests.compress.models import small_model

LENGTHS = (9, 4, 12, 7)


def _documents() -> list[list[int]]:
    return [[3 + (5 * number + place) % 50 for place in range(length)] for number, length in enumerate(LENGTHS)]


def _rows() -> list[dict[str, torch.Tensor]]:
    documents = gather([Example(ids, [1] * len(ids)) for ids in _documents()])
    return [collate(documents, [[0, 1]], True, 0), collate(documents, [[2, 3]], True, 0)]


def _by_hand(model: Any, watched: str, read: Any) -> torch.Tensor:
    """The L2 norm over documents, each alone through the model, of the mean of ``read(args, out)`` (T, ...)."""
    found: list[torch.Tensor] = []
    module = model.get_submodule(watched)
    hook = module.register_forward_hook(lambda _, args, out: found.append(read(args, out).mean(0)))
    with torch.no_grad():
        for ids in _documents():
            model(torch.tensor([ids]))
    hook.remove()
    return torch.stack(found).square().sum(0).sqrt().double()


@pytest.mark.parametrize("name", ["hybrid", "llama"])
def test_scores_are_those_of_documents_alone(name: str):
    model = small_model(name)
    install(model)
    found = measure(model, _rows())
    names = {"hybrid": ("mixer.down_proj", "mixer.o_proj", 1), "llama": ("mlp.down_proj", "self_attn.o_proj", 2)}
    down, output, block = names[name]
    neurons = _by_hand(model, f"model.layers.{block}.{down}", lambda args, out: args[0][0].abs())
    torch.testing.assert_close(found.neurons[block], neurons, rtol=1e-4, atol=1e-5)
    attention = 3 if name == "hybrid" else 2
    heads = _by_hand(model, f"model.layers.{attention}.{output}",
                     lambda args, out: args[0][0].unflatten(-1, (4, -1)).norm(dim=-1))  # fmt: skip
    torch.testing.assert_close(found.heads[attention], heads, rtol=1e-4, atol=1e-5)
    norms = [n for n, m in model.named_modules() if n.rpartition(".")[2] in ("norm", "input_layernorm",
             "post_attention_layernorm") and n.count(".") == 3]  # fmt: skip
    hidden = torch.stack([_by_hand(model, n, lambda args, out: out[0].abs()).square() for n in norms]).sum(0).sqrt()
    torch.testing.assert_close(found.hidden, hidden, rtol=1e-4, atol=1e-5)
    if name == "hybrid":
        mamba = _by_hand(model, "model.layers.2.mixer.in_proj",
                         lambda args, out: out[0, :, 32:64].abs().unflatten(-1, (4, 8)))  # fmt: skip
        torch.testing.assert_close(found.mamba[2], mamba, rtol=1e-4, atol=1e-5)


def test_scores_survive_a_file(tmp_path: Path):
    scores = measure(small_model("llama"), _rows()[:1])
    scores.save(tmp_path / "scores.safetensors")
    loaded = Scores.load(tmp_path / "scores.safetensors")
    assert torch.equal(loaded.hidden, scores.hidden) and loaded.mamba == {}
    assert all(torch.equal(loaded.heads[block], scores.heads[block]) for block in range(4))


@given(st.integers(1, 4), st.integers(1, 6), st.data())
def test_groups_stay_whole_and_keep_their_best(groups: int, size: int, data: st.DataObject):
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 9), min_size=groups * size, max_size=groups * size)))
    each = data.draw(st.integers(1, size))
    kept = best(scores.float(), groups * each, groups)
    assert kept == sorted(set(kept)) and len(kept) == groups * each
    for group in range(groups):
        places = range(group * size, (group + 1) * size)
        inside = [place for place in kept if place in places]
        assert len(inside) == each
        gone = [int(scores[place]) for place in places if place not in inside]
        assert min(int(scores[place]) for place in inside) >= max(gone, default=0)


def test_heads_are_judged_by_the_channels_that_stay():
    """Nested: a head whose magnitude is in a channel that goes does not count for it."""
    from dataclasses import replace

    config = small_model("hybrid").config.to_dict()
    score = torch.ones(4, 8)
    score[0, 7] = 1.5  # head 0 is louder, but in channel 7 only, which goes
    score[1, :7] = 1.1
    score[2:, :7] = torch.tensor([[2.0], [1.0]])
    scores = Scores(torch.ones(32), {}, {}, dict.fromkeys((0, 2, 5), score))
    kept = choose(scores, config, range(8), replace(own_widths(config), mamba_num_heads=2, mamba_head_dim=7))
    assert kept.mamba_channels[0] == [0, 1, 2, 3, 4, 5, 6]
    assert kept.mamba_heads[0] == [1, 2]
