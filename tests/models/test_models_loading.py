"""Loading, saving and describing models; every damaged folder is an error that names what is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from nanoalign.common.errors import CheckpointError
from nanoalign.models.hybrid import Mamba2Path
from nanoalign.models.loading import describe_model, load_model, load_tokenizer, resolve, save_model
from nanoalign.models.miniature import miniature_config
from nanoalign.models.model_folder import read_tensors
from tests.models.small import VOCAB, small_model

REPO = Path(__file__).resolve().parents[2]


def tokenizer(**tokens: str) -> PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(VOCAB - 3))])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), **tokens)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    save_model(small_model("nemotron_h"), tokenizer(eos_token="</s>"), folder)
    return folder


@pytest.fixture
def damaged(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_a_model_comes_back_as_it_was(saved: Path):
    model, ids = load_model(saved), torch.arange(40)[None]
    assert sum(isinstance(module, Mamba2Path) for module in model.modules()) == 2
    assert not model.training
    again = small_model("nemotron_h").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())
    assert load_model(str(saved), dtype="bfloat16")(ids).logits.dtype == torch.float32
    assert load_model(saved, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_saved_names_are_those_that_vllm_reads(saved: Path):
    names = list(read_tensors(saved))
    assert "backbone.embeddings.weight" in names and "lm_head.weight" in names
    assert all(name.startswith(("backbone.", "lm_head.")) for name in names)
    assert json.loads((saved / "config.json").read_text())["architectures"] == ["NemotronHForCausalLM"]


def test_a_tokenizer_gets_its_padding(saved: Path, tmp_path: Path):
    assert load_tokenizer(saved).pad_token == "</s>"
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no end token"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="contains no tokenizer"):
        empty = tmp_path / "empty"
        empty.mkdir()
        load_tokenizer(empty)


def test_adapters_are_not_saved_as_models(tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(small_model("nemotron_h"), LoraConfig(r=2, target_modules=["in_proj"]))
    with pytest.raises(CheckpointError, match="merge it first"):
        save_model(adapted, tokenizer(eos_token="</s>"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def change(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_wrong_tensors_are_named(damaged: Path):
    change(damaged, lambda tensors: tensors.pop("backbone.layers.0.mixer.A_log"))
    with pytest.raises(CheckpointError, match=r"1 tensors missing: .*layers\.0\.mixer\.A_log"):
        load_model(damaged)
    change(damaged, lambda tensors: tensors.update({"backbone.layers.0.mixer.A_log": torch.zeros(5)}))
    with pytest.raises(CheckpointError, match=r"A_log"):
        load_model(damaged)
    change(damaged, lambda tensors: tensors.update({"backbone.layers.0.mixer.A_log": torch.zeros(4)}))
    change(damaged, lambda tensors: tensors.update({"backbone.surplus": torch.zeros(4)}))
    with pytest.raises(CheckpointError, match=r"1 tensors unexpected: .*surplus"):
        load_model(damaged)


def test_damaged_files_are_named(damaged: Path):
    weights = damaged / "model.safetensors"
    whole = weights.read_bytes()
    for content in (b"", whole[:4], whole[:200], whole[:-1], whole + b"x", b"\xff" * 64, b"\x02" + bytes(7) + b"[]"):
        weights.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
            load_model(damaged)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"contains no \*\.safetensors"):
        load_model(damaged)


def test_shards_are_read_by_their_index(damaged: Path):
    small_model("nemotron_h").save_pretrained(damaged, max_shard_size="20KB")
    (damaged / "model.safetensors").unlink()
    shards = sorted(damaged.glob("*.safetensors"))
    assert len(shards) > 2
    load_model(damaged)
    assert describe_model(damaged)["parameters"] == sum(
        weight.numel() for weight in small_model("nemotron_h").parameters()
    )
    index = damaged / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    name = next(name for name, file in places["weight_map"].items() if file == shards[0].name)
    index.write_text(json.dumps({"weight_map": places["weight_map"] | {name: shards[1].name}}))
    with pytest.raises(CheckpointError, match=f"{name} in {shards[1].name}"):
        load_model(damaged)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=shards[1].name):
        load_model(damaged)


def test_missing_folders_and_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(CheckpointError, match="no such model folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json: has no model_type"):
        describe_model(tmp_path)
    for spec in ("builtin:nothing", "pip:nothing"):
        with pytest.raises(CheckpointError, match="unknown"):
            resolve(spec)
    with pytest.raises(CheckpointError, match="no such model folder"):
        resolve("./not/there")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="no-one/nothing-here: not a folder here, and could not be fetched"):
        resolve("no-one/nothing-here")
    with pytest.raises(CheckpointError, match="its shape is not known"):
        describe_model("no-one/nothing-here")


@pytest.mark.parametrize(
    "spec, count, blocks",
    [
        ("nvidia/NVIDIA-Nemotron-Nano-12B-v2-Base", 12.31e9, {"mamba": 28, "attention": 6, "mlp": 28}),
        ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", 8.89e9, {"mamba": 27, "attention": 4, "mlp": 25}),
    ],
)
def test_known_models_are_described_by_name(spec: str, count: float, blocks: dict[str, int]):
    """The published sizes: 12.31B and 8.89B parameters (METHOD.md; arXiv 2508.14444)."""
    found = describe_model(spec)
    assert found["parameters"] == pytest.approx(count, rel=1e-3)
    assert found["blocks"] == blocks


def test_nano_9b_fits_its_target():
    """9B at 128K in bf16: 16.6 GiB of weights, 2.0 of KV cache, 0.13 of state (arXiv 2508.14444)."""
    found = describe_model("nvidia/NVIDIA-Nemotron-Nano-9B-v2")
    assert found["weight_bytes"] / 2**30 == pytest.approx(16.6, abs=0.1)
    assert found["kv_bytes_per_token"] * 131_072 / 2**30 == pytest.approx(2.0, abs=0.01)
    assert found["state_bytes_per_sequence"] / 2**30 == pytest.approx(0.13, abs=0.01)


def test_the_miniature_takes_the_special_tokens_it_is_given():
    config = miniature_config(2048, eos_token_id=5)
    assert config.eos_token_id == 5
    with pytest.raises(TypeError, match="end_token_id"):
        miniature_config(2048, end_token_id=5)


def test_describing_needs_no_torch(saved: Path):
    code = (
        "import sys; from nanoalign.models.loading import describe_model; "
        f"describe_model({str(saved)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO, env={"PYTHONPATH": str(REPO), "PATH": ""})
