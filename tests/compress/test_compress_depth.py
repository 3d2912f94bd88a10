"""The order of removal, against logits that are computed."""

import pytest
import torch

from nanoalign.common.errors import ConfigError
from nanoalign.compress.depth import Removal, iterative, one_shot
from nanoalign.compress.shapes import Depth, quotas, units
from nanoalign.models.hybrid import install
from tests.compress.models import small_model
from tests.compress.test_compress_importance import _documents, _rows


def _logits(model, gone: frozenset[int]) -> torch.Tensor:
    """Of every document alone, with some blocks passed over."""
    hooks = [model.model.layers[n].register_forward_hook(lambda _, args, out: args[0]) for n in gone]
    with torch.no_grad():
        logits = [model(torch.tensor([ids]), use_cache=False).logits[0] for ids in _documents()]
    for hook in hooks:
        hook.remove()
    return torch.cat(logits)


@pytest.mark.parametrize("name", ["hybrid", "llama"])
def test_errors_are_those_of_the_logits(name: str):
    model = small_model(name)
    install(model)
    removal, whole = Removal(model, _rows()), _logits(model, frozenset())
    for gone in (frozenset(), frozenset({1})):
        found = removal.errors(gone)
        assert set(found) == set(range(len(model.model.layers))) - gone
        for block, error in found.items():
            expected = (_logits(model, gone | {block}) - whole).square().mean()
            assert error == pytest.approx(float(expected), rel=1e-3)


class _Known(Removal):
    """Errors from a table: each block's own, and more beside a removed neighbour."""

    def __init__(self, own: dict[int, float]) -> None:
        self.own, self.asked = own, []

    def errors(self, gone: frozenset[int]) -> dict[int, float]:
        self.asked.append(gone)
        return {n: e + sum(10 for g in gone if abs(n - g) == 1) for n, e in self.own.items() if n not in gone}


def test_iterative_measures_again_after_each_removal():
    removal = _Known({0: 5.0, 1: 1.0, 2: 2.0, 3: 4.0})
    steps = iterative(removal, ["layer"] * 4, [(frozenset({"layer"}), 2)])
    assert [(step.block, step.error) for step in steps] == [(1, 1.0), (3, 4.0)]  # 2 costs more once 1 is gone
    assert steps[1].candidates == {0: 15.0, 2: 12.0, 3: 4.0}
    assert one_shot(removal, 2) == [1, 2]


def test_quotas_and_protected_blocks():
    config = small_model("hybrid").config.to_dict()  # M-M*-M*-
    kinds = units(config)
    removal = _Known({n: float(n) for n in range(8)})
    steps = iterative(removal, kinds, quotas(config, Depth(5, attention=1)), protect=[0, 1])
    gone = [step.block for step in steps]
    assert sorted(kinds[n] for n in gone).count("attention") == 1 and len(gone) == 3
    assert not {0, 1} & set(gone)
    exact = iterative(removal, kinds, quotas(config, Depth(4, attention=1, mamba=1)))
    assert sorted(kinds[step.block] for step in exact) == ["attention", "mamba", "mamba", "mlp"]
    with pytest.raises(ConfigError, match="protect: no attention block is left"):
        iterative(removal, kinds, quotas(config, Depth(7, attention=1)), protect=[3, 6])
