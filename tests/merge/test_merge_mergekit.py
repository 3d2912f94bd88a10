"""mergekit on architectures it knows, refused on one it does not; its YAML read and written."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from nanoalign.common.errors import CheckpointError, ConfigError
from nanoalign.merge.cli import merge_many_command, merge_yaml_command
from nanoalign.merge.mergekit_bridge import as_linear, load_config, mergekit_config, write_config

pytest.importorskip("mergekit")
Read = Callable[[Path], dict[str, torch.Tensor]]
NEEDS = {
    "linear": {},
    "slerp": {"t": 0.4},
    "task_arithmetic": {"weights": [0.5, 0.5]},
    "ties": {"density": 0.5},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
}


def inputs(method: str, a: Path, b: Path, base: Path) -> dict:
    """Models and base as the method wants them."""
    ancestor = {"linear": None, "slerp": a}.get(method, base)
    models = [a, b, base] if method == "linear" else [a, b]
    return {"models": models, "base": ancestor, **NEEDS[method]}


@pytest.mark.parametrize("kind", ["llama", "tied"])
@pytest.mark.parametrize("method", list(NEEDS))
def test_every_method_writes_every_tensor(
    method: str, kind: str, make_pair_of: Callable, tensors_of: Read, copy: Callable, tmp_path: Path
):
    a, b = make_pair_of(kind)
    base = copy(a, tmp_path / "base")
    out = merge_many_command(method, output=tmp_path / "o", **inputs(method, a, b, base))
    merged, source = tensors_of(out), tensors_of(a)
    assert {n: (t.shape, t.dtype) for n, t in merged.items()} == {n: (t.shape, t.dtype) for n, t in source.items()}
    assert any((merged[name] != source[name]).any() for name in source)
    assert {path.name for path in out.iterdir()} >= {path.name for path in a.iterdir()}
    assert f"merge-{method}" in (out / "README.md").read_text()
    assert load_config(out / "mergekit_config.yml")["merge_method"] == method


def test_task_arithmetic_equals_its_formula(
    llama_pair: tuple[Path, Path], tensors_of: Read, copy: Callable, tmp_path: Path
):
    a, b = llama_pair
    base = copy(a, tmp_path / "base")
    out = merge_many_command("task_arithmetic", [b], tmp_path / "o", base=base, weights=[0.5])
    x, y, merged = tensors_of(base), tensors_of(b), tensors_of(out)
    for name in x:
        due = x[name].float() + 0.5 * (y[name].float() - x[name].float())
        assert torch.allclose(merged[name].float(), due, rtol=2**-6, atol=1e-3)


def test_dare_is_the_same_for_the_same_seed(llama_pair: tuple[Path, Path], copy: Callable, tmp_path: Path):
    a, b = llama_pair
    base = copy(a, tmp_path / "base")
    weights = [
        merge_many_command(
            "dare_linear", [b], tmp_path / f"o{count}", base=base, density=0.5, seed=seed
        ).joinpath("model.safetensors").read_bytes()
        for count, seed in enumerate((1, 1, 2))
    ]  # fmt: skip
    assert weights[0] == weights[1] != weights[2]


def test_an_architecture_of_which_mergekit_writes_a_part_is_refused(
    make_pair_of: Callable, leftovers: Callable, tmp_path: Path
):
    a, b = make_pair_of("nemotron_h")
    with pytest.raises(CheckpointError, match=r"mergekit wrote \d+ of \d+ tensors; backbone\..* is missing"):
        merge_many_command("slerp", [a, b], tmp_path / "o", base=a, t=0.5)
    assert leftovers(tmp_path) == []


def test_inputs_that_disagree_are_refused_before_mergekit_runs(
    llama_pair: tuple[Path, Path], edit: Callable, leftovers: Callable, tmp_path: Path
):
    a, b = llama_pair
    edit(b, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"model.norm.weight: missing in B"):
        merge_many_command("slerp", [a, b], tmp_path / "o", base=a, t=0.5)
    assert leftovers(tmp_path) == []


def test_what_mergekit_itself_refuses_is_a_clear_error(llama_pair: tuple[Path, Path], tmp_path: Path):
    a, b = llama_pair
    config = {"merge_method": "slerp", "models": [{"model": str(a)}, {"model": str(b)}], "base_model": str(a)}
    (tmp_path / "c.yml").write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointError, match="mergekit slerp: "):
        merge_yaml_command(tmp_path / "c.yml", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_linear_configuration_runs_natively_on_any_architecture(
    make_pair_of: Callable, tensors_of: Read, tmp_path: Path
):
    a, b = make_pair_of("nemotron_h")
    write_config(mergekit_config("linear", [a, b], weights=[3.0, 1.0]), tmp_path / "c.yml")
    out = merge_yaml_command(tmp_path / "c.yml", tmp_path / "o")
    x, y, merged = tensors_of(a), tensors_of(b), tensors_of(out)
    assert merged.keys() == x.keys()
    for name in x:
        due = (0.75 * x[name].double() + 0.25 * y[name].double()).bfloat16()
        assert (merged[name] != due).double().mean() < 0.01


def test_as_linear_takes_only_plain_interpolation():
    plain = mergekit_config("linear", [Path("x"), Path("y")], weights=[1.0, 3.0])
    assert as_linear(plain) == (Path("x"), Path("y"), 0.75)
    assert as_linear(plain | {"dtype": "float16"}) is None
    assert as_linear(plain | {"merge_method": "ties"}) is None
    assert as_linear(mergekit_config("linear", [Path("x")] * 3)) is None
    layered = {"model": "y", "parameters": {"weight": [0.1, 0.9]}}
    assert as_linear(plain | {"models": [plain["models"][0], layered]}) is None


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("tie", {}, "method 'tie': expected one of"),
        ("ties", {"density": 0.5}, "method ties: needs a base model"),
        ("ties", {"base": Path("x")}, "method ties: needs a density"),
        ("slerp", {"base": Path("x")}, "method slerp: needs t"),
        ("linear", {"base": Path("x")}, "method linear: takes no base model"),
        ("linear", {"density": 0.5}, "method linear: takes no density"),
        ("linear", {"weights": [1.0]}, "method linear: 1 weights for 2 models"),
    ],
)
def test_settings_that_do_not_fit_a_method_are_refused(method: str, options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        mergekit_config(method, [Path("x"), Path("y")], **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "no merge_method"),
        ("merge_method: ties\nmodles: []", "unknown key 'modles'"),
        ("merge_method: ties\nmodels: 3", "models"),
        ("a: [", "c.yml"),
    ],
)
def test_bad_yaml_is_named(text: str, message: str, tmp_path: Path):
    (tmp_path / "c.yml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.yml")
