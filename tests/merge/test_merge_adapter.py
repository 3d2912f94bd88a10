"""Two LoRA adapters on one base, against peft's own weights in float64."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from nanoalign.common.errors import CheckpointError
from nanoalign.merge.adapter import BASE_KEPT, KNOWN, open_source
from nanoalign.merge.interpolate import interpolate

Read = Callable[[Path], dict[str, torch.Tensor]]


def train_adapter(base: Path, folder: Path, seed: int, **options) -> None:
    """An adapter with random weights, as peft saves it."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], **options}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter += 0.1 * torch.randn(parameter.shape).to(parameter.dtype)
    adapted.save_pretrained(folder)


def merged_in_float64(base: Path, adapter: Path, tensors_of: Read) -> dict[str, torch.Tensor]:
    """W + scale * B A by the formula of the paper, unrounded."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights, update = tensors_of(base), tensors_of(adapter)
    merged = {name: tensor.double() for name, tensor in weights.items()}
    for name, down in update.items():
        module = name.removeprefix("base_model.model.")
        if ".lora_A." in name:
            scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
            product = update[name.replace("lora_A", "lora_B")].double() @ down.double()
            target = module.replace(".lora_A", "")
            target = target if target in merged else target.replace("model.", "backbone.", 1)
            merged[target] += scale * product
        elif ".lora_B." not in name:
            merged[module] = down.double()
    return merged


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("fp32", {"use_rslora": True}),
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("nemotron_h", {"target_modules": ["in_proj", "q_proj", "up_proj"]}),
    ],
)
def test_an_adapter_pair_equals_the_float64_reference(
    kind: str, options: dict, make_pair_of: Callable, tensors_of: Read, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("nanoalign.merge.interpolate.CHUNK_ELEMENTS", 100)  # chunks that cut rows
    base, _ = make_pair_of(kind)
    for seed, name in enumerate(("x", "y")):
        train_adapter(base, tmp_path / name, seed, **options)
    interpolate(tmp_path / "x", tmp_path / "y", {alpha: tmp_path / str(alpha) for alpha in (0.0, 0.3)}, base=base)
    x, y = (merged_in_float64(base, tmp_path / name, tensors_of) for name in ("x", "y"))
    plain = tensors_of(base)
    for alpha in (0.0, 0.3):
        written = tensors_of(tmp_path / str(alpha))
        assert written.keys() == plain.keys()
        due = {name: ((1 - alpha) * x[name] + alpha * y[name]).to(plain[name].dtype) for name in plain}
        wrong = sum(int((written[name] != due[name]).sum()) for name in due)
        assert wrong < 0.005 * sum(tensor.numel() for tensor in due.values())
        assert any((written[name] != plain[name]).any() for name in due)


def test_the_base_is_found_by_the_adapters_own_config(llama_pair: tuple[Path, Path], tmp_path: Path):
    base, _ = llama_pair
    train_adapter(base, tmp_path / "x", 0)
    assert open_source(tmp_path / "x").inputs == (tmp_path / "x", base)


@pytest.mark.parametrize(
    ("options", "key", "value", "message"),
    [
        ({}, "base_model_name_or_path", "nowhere/at-all", "base model 'nowhere/at-all' is not a folder here"),
        ({}, "peft_type", "IA3", "peft_type 'IA3', only LORA"),
        *(
            ({}, "init_lora_weights", made, f"{made!r} changed the base")
            for made in ("corda", "loftq", "lora_ga", "new")
        ),
        ({"use_dora": True}, None, None, "use_dora is set"),
        ({"target_modules": ["embed_tokens"]}, None, None, "only LoRA on linear modules"),
    ],
)
def test_what_is_not_plain_lora_is_refused(
    options: dict, key: str | None, value: str, message: str, llama_pair: tuple[Path, Path], tmp_path: Path
):
    base, _ = llama_pair
    train_adapter(base, tmp_path / "x", 0, **options)
    config = tmp_path / "x" / "adapter_config.json"
    if key:
        config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=message):
        open_source(tmp_path / "x")


def test_an_adapter_of_another_model_is_refused(make_pair_of: Callable, tmp_path: Path):
    base, _ = make_pair_of("nemotron_h")
    train_adapter(base, tmp_path / "x", 0, target_modules=["in_proj"])
    (tmp_path / "other").mkdir()
    other, _ = make_pair_of("llama")
    with pytest.raises(CheckpointError, match=r"in_proj.weight: the base .* has no such tensor"):
        open_source(tmp_path / "x", other)


INITIALISATIONS = [True, False, "gaussian", "orthogonal", "mica", "eva", "pissa", "pissa_niter_4", "olora"]


@pytest.mark.parametrize("made", INITIALISATIONS)
def test_an_initialisation_is_merged_as_peft_merges_it_or_refused(
    made: bool | str, make_pair_of: Callable, tensors_of: Read, tmp_path: Path
):
    base, _ = make_pair_of("fp32")
    train_adapter(base, tmp_path / "x", 0, init_lora_weights=made)
    if made not in BASE_KEPT:
        with pytest.raises(CheckpointError, match=f"init_lora_weights {made!r} changed the base"):
            open_source(tmp_path / "x")
        return
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), tmp_path / "x")
    due = peft.merge_and_unload().state_dict()
    source = open_source(tmp_path / "x")
    assert any((due[name] != weight).any() for name, weight in tensors_of(base).items())
    for name, info in source.tensors.items():
        read = source.flat(name, 0, due[name].numel()).view(info.shape)
        torch.testing.assert_close(read.to(due[name].dtype), due[name], rtol=1e-5, atol=1e-6)


def test_a_converted_pissa_adapter_is_merged(make_pair_of: Callable, tensors_of: Read, tmp_path: Path):
    """Saved as the difference to the original base, it is plain LoRA of twice the rank."""
    base, _ = make_pair_of("fp32")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].init_lora_weights = True  # as peft's guide says, for the first state
    adapted.save_pretrained(tmp_path / "first")
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn(parameter.shape)
    adapted.peft_config["default"].init_lora_weights = "pissa"
    adapted.save_pretrained(tmp_path / "x", path_initial_model_for_weight_conversion=str(tmp_path / "first"))
    due = adapted.merge_and_unload().state_dict()
    source = open_source(tmp_path / "x", base)
    for name in tensors_of(base):
        read = source.flat(name, 0, due[name].numel()).view(due[name].shape)
        torch.testing.assert_close(read.to(due[name].dtype), due[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", sorted({field.name for field in dataclasses.fields(LoraConfig)} - {*KNOWN}))
def test_every_option_of_peft_that_is_not_known_is_refused(option: str, llama_pair: tuple[Path, Path], tmp_path: Path):
    base, _ = llama_pair
    train_adapter(base, tmp_path / "x", 0)
    config = tmp_path / "x" / "adapter_config.json"
    plain = json.loads(config.read_text())
    open_source(tmp_path / "x")
    for value in (True, 3, [5], {"a": 1}, "x", [], 0):
        config.write_text(json.dumps(plain | {option: value}))
        with pytest.raises(CheckpointError, match=f"{option} is set"):
            open_source(tmp_path / "x")


def test_an_option_of_a_peft_to_come_is_refused(llama_pair: tuple[Path, Path], tmp_path: Path):
    base, _ = llama_pair
    train_adapter(base, tmp_path / "x", 0)
    config = tmp_path / "x" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_tomorrows_lora": True}))
    with pytest.raises(CheckpointError, match="use_tomorrows_lora is set"):
        open_source(tmp_path / "x")


@pytest.mark.parametrize("kept", [True, False])
def test_an_embedding_tied_to_the_head_is_refused(kept: bool, tmp_path: Path):
    """peft's own merge unties the two, or changes both."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    options = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": kept}
    train_adapter(tmp_path / "base", tmp_path / "x", 0, **options)
    with pytest.raises(CheckpointError, match="ensure_weight_tying is set" if kept else "the base's output head too"):
        open_source(tmp_path / "x")


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"q_proj": 8}, "use_rslora": True},
        {"layers_to_transform": [0]},
        {"modules_to_save": ["norm", "lm_head"]},
        {"target_modules": "all-linear", "exclude_modules": ["up_proj"]},
    ],
)
def test_options_that_are_known_are_merged_as_peft_merges_them(options: dict, make_pair_of: Callable, tmp_path: Path):
    base, _ = make_pair_of("fp32")
    train_adapter(base, tmp_path / "x", 0, **options)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), tmp_path / "x")
    due = peft.merge_and_unload().state_dict()
    source = open_source(tmp_path / "x")
    for name, info in source.tensors.items():
        read = source.flat(name, 0, due[name].numel()).view(info.shape)
        torch.testing.assert_close(read.to(due[name].dtype), due[name], rtol=1e-5, atol=1e-6)
