"""The ways two checkpoints can disagree or be damaged: each a clear error that names the culprit; no output is left."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanoalign.common.errors import CheckpointError, ConfigError
from nanoalign.merge.interpolate import interpolate

UP, DOWN, EMBED = (
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.embed_tokens.weight",
)


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def rewrite_header(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes the header of a safetensors file and leaves its data alone."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def set_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def truncate_weights(a: Path, b: Path) -> None:
    cut(b / "model.safetensors", (b / "model.safetensors").stat().st_size - 100)


def symlink_loop(a: Path, b: Path) -> None:
    shutil.rmtree(b)
    b.symlink_to(b.with_name("c"))
    b.with_name("c").symlink_to(b)


def weights_symlink_loop(a: Path, b: Path) -> None:
    (b / "model.safetensors").unlink()
    (b / "model.safetensors").symlink_to(b / "again.safetensors")
    (b / "again.safetensors").symlink_to(b / "model.safetensors")
    (b / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {UP: "again.safetensors"}}))


def shard(folder: Path, **index: str) -> None:
    """Splits a checkpoint in two; ``index`` overrides entries of the weight map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part} | index
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def lose_a_shard(a: Path, b: Path) -> None:
    shard(b)
    (b / "two.safetensors").unlink()


def corrupt_header(a: Path, b: Path) -> None:
    with (b / "model.safetensors").open("r+b") as file:
        file.seek(20)
        file.write(b"\xff\xfe{{")


def overlap(header: dict) -> None:
    names = sorted((name for name in header if name != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    start, stop = header[names[1]]["data_offsets"]
    header[names[1]]["data_offsets"] = [start - 64, stop - 64]


def other_vocabulary(a: Path, b: Path) -> None:
    """B's embedding has another vocabulary, as after a tokenizer was extended."""
    edit(b, lambda t: t.update({EMBED: torch.cat([t[EMBED], t[EMBED][:4]])}))


@dataclass(frozen=True)
class Case:
    """What is done to the pair (a, b), and what the error must say."""

    name: str
    damage: Callable[[Path, Path], object]
    message: str
    error: type[Exception] = CheckpointError
    kind: str = "llama"


CASES = [
    Case("missing tensor", lambda a, b: edit(b, lambda t: t.pop(UP)), f"{UP}: missing in B"),
    Case("extra tensor", lambda a, b: edit(b, lambda t: t.update(x=torch.ones(2))), "x: only in B"),
    Case("transposed", lambda a, b: edit(b, lambda t: t.update({UP: t[UP].T.contiguous()})),
         rf"{UP}: shape \[48, 32\] in A, \[32, 48\] in B \(transposed\?\)"),
    Case("other shape", lambda a, b: edit(b, lambda t: t.update({DOWN: t[DOWN][:, :40].contiguous()})),
         rf"{DOWN}: shape \[32, 48\] in A, \[32, 40\] in B"),
    Case("other vocabulary", other_vocabulary, rf"{EMBED}: shape .* \(another vocabulary\?\)"),
    Case("other dtype", lambda a, b: edit(b, lambda t: t.update({UP: t[UP].float()})),
         f"{UP}: dtype BF16 in A, F32 in B"),
    Case("float8 weights", lambda a, b: [edit(f, lambda t: t.update({UP: t[UP].to(torch.float8_e4m3fn)}))
                                         for f in (a, b)], f"{UP}: F8_E4M3 weights carry scales"),
    Case("integers differ", lambda a, b: [edit(f, lambda t, n=n: t.update(steps=torch.tensor([n])))
                                          for n, f in enumerate((a, b))], "steps: I64 values differ"),
    Case("truncated weights", truncate_weights, r"b/model.safetensors: truncated: .* is cut"),
    Case("truncated header", lambda a, b: cut(b / "model.safetensors", 300), "b/model.safetensors: truncated"),
    Case("empty file", lambda a, b: cut(b / "model.safetensors", 0), "b/model.safetensors: truncated: 0 bytes"),
    Case("corrupted header", corrupt_header, "b/model.safetensors: corrupted header"),
    Case("absurd header length", lambda a, b: (b / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}"),
         "b/model.safetensors: truncated"),
    Case("overlapping offsets", lambda a, b: rewrite_header(b, overlap), "data_offsets overlaps the tensor before it"),
    Case("hole", lambda a, b: rewrite_header(b, lambda h: h.pop(UP)), "data_offsets leaves a hole before it"),
    Case("trailing bytes", lambda a, b: (b / "model.safetensors").open("ab").write(b"x" * 9), "has trailing bytes"),
    Case("shape and bytes", lambda a, b: rewrite_header(b, lambda h: h[UP].update(shape=[48, 31])),
         rf"{UP}: BF16 \[48, 31\] needs 2976 bytes, has 3072"),
    Case("unknown dtype", lambda a, b: rewrite_header(b, lambda h: h[UP].update(dtype="F6")),
         f"{UP}: unknown dtype F6"),
    Case("negative shape", lambda a, b: rewrite_header(b, lambda h: h[UP].update(shape=[-48, -32])),
         f"{UP}: corrupted header entry"),
    Case("NaN in A", lambda a, b: edit(a, lambda t: t[UP].view(-1)[77].fill_(float("nan"))), rf"{UP}: NaN in A"),
    Case("negative infinity in B", lambda a, b: edit(b, lambda t: t[DOWN].view(-1)[-1].fill_(-float("inf"))),
         f"{DOWN}: infinity in B"),
    Case("symlink loop", symlink_loop, "b: symlink loop"),
    Case("weights symlink loop", weights_symlink_loop, "again.safetensors: symlink loop"),
    Case("missing shard", lose_a_shard, "two.safetensors: does not exist"),
    Case("shard outside", lambda a, b: shard(b, **{UP: "../a/model.safetensors"}), "is outside the folder"),
    Case("index names another shard", lambda a, b: shard(b, **{UP: "one.safetensors", DOWN: "one.safetensors"}),
         "the index has"),
    Case("index names a tensor that is not there", lambda a, b: shard(b, ghost="one.safetensors"),
         "ghost is not in one.safetensors"),
    Case("two layouts", lambda a, b: (b / "model.safetensors.index.json").write_text("{}"), "remove the stale one"),
    Case("no weights", lambda a, b: (b / "model.safetensors").unlink(), "neither model.safetensors nor"),
    Case("pickles", lambda a, b: (b / "model.safetensors").rename(b / "pytorch_model.bin"),
         "convert pytorch_model.bin to safetensors"),
    Case("no folder", lambda a, b: shutil.rmtree(b), "b: does not exist"),
    Case("no config", lambda a, b: (b / "config.json").unlink(), "b/config.json: does not exist"),
    Case("broken config", lambda a, b: cut(b / "config.json", 30), "b/config.json: not valid JSON"),
    Case("other config", lambda a, b: set_json(b / "config.json", rms_norm_eps=1e-3),
         "config.json: rms_norm_eps: 1e-06 in A, 0.001 in B"),
    Case("other end token", lambda a, b: set_json(b / "generation_config.json", eos_token_id=5),
         "generation_config.json: eos_token_id: 2 in A, 5 in B"),
    Case("other tokenizer", lambda a, b: set_json(b / "tokenizer.json", model={"type": "WordLevel", "vocab": {"a": 1}}),
         "tokenizer.json: model: vocab: a: 0 in A, 1 in B"),
    Case("no tokenizer", lambda a, b: (b / "tokenizer.json").unlink(), "tokenizer.json: only in A"),
    Case("other chat template", lambda a, b: [(f / "chat_template.jinja").write_text(str(f)) for f in (a, b)],
         "chat_template.jinja: contents differ"),
    Case("other code", lambda a, b: (b / "modeling_x.py").write_text(""), "modeling_x.py: only in B"),
    Case("untied head", lambda a, b: edit(b, lambda t: t.update({"lm_head.weight": t[EMBED] + 1})),
         f"b: lm_head.weight differs from {EMBED}, to which config.json ties it", kind="tied"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_disagreement_is_named_and_leaves_nothing(case: Case, make_pair_of: Callable, tmp_path: Path):
    a, b = make_pair_of(case.kind)
    case.damage(a, b)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(case.error, match=case.message):
        interpolate(a, b, {0.5: tmp_path / "o", 0.7: tmp_path / "p"})
    assert sorted(tmp_path.iterdir()) == before


def test_how_models_were_saved_is_no_disagreement(llama_pair: tuple[Path, Path], tmp_path: Path):
    a, b = llama_pair
    set_json(b / "config.json", _name_or_path="elsewhere", transformers_version="5.0", use_cache=False)
    set_json(b / "generation_config.json", temperature=0.6, eos_token_id=[2], transformers_version="5.0")
    set_json(b / "tokenizer_config.json", local_files_only=True, is_local=True, name_or_path="elsewhere")
    set_json(b / "tokenizer.json", truncation={"max_length": 7}, padding={"length": 3})
    (b / "README.md").write_text("B")
    interpolate(a, b, {0.5: tmp_path / "o"})
    assert (tmp_path / "o" / "config.json").read_bytes() == (a / "config.json").read_bytes()


def test_of_a_chat_template_that_one_has_the_merged_model_has_what_a_has(llama_pair: tuple[Path, Path], tmp_path: Path):
    a, b = llama_pair
    (b / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.warns(UserWarning, match=r"chat_template.jinja: only in B .*; the merged model's is A's"):
        interpolate(a, b, {0.5: tmp_path / "o"})
    assert not (tmp_path / "o/chat_template.jinja").exists()


def test_many_differences_are_counted(llama_pair: tuple[Path, Path], tmp_path: Path):
    a, b = llama_pair
    edit(b, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name])
    with pytest.raises(CheckpointError, match=r"and 4 more$"):
        interpolate(a, b, {0.5: tmp_path / "o"})


@pytest.mark.parametrize(
    ("alphas", "message"),
    [([], "no alphas"), ([1.2], "alpha 1.2 is outside"), ([float("nan")], "alpha nan is outside")],
)
def test_alphas_are_checked(alphas: list[float], message: str, llama_pair: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        interpolate(*llama_pair, dict.fromkeys(alphas, tmp_path / "o"))


@pytest.mark.parametrize("output", ["a", "a/inside", "."])
def test_an_output_never_touches_an_input(output: str, llama_pair: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(ConfigError, match="overlap"):
        interpolate(*llama_pair, {0.5: tmp_path / output})
    assert (tmp_path / "a" / "model.safetensors").exists()


def test_a_disk_too_small_is_seen_before_anything_is_written(llama_pair, tmp_path: Path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="the disk has 1,000,000 free"):
        interpolate(*llama_pair, {0.5: tmp_path / "o"})
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_fills_up_leaves_nothing(llama_pair: tuple[Path, Path], tmp_path: Path):
    """A limit on file size stands in for the full disk: writes end short and then fail."""
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"writing .*/o: File too large"):
            interpolate(*llama_pair, {0.5: tmp_path / "o"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.iterdir()) == before


def test_a_killed_merge_never_looks_finished(llama_pair: tuple[Path, Path], tmp_path: Path):
    a, b = llama_pair
    program = (
        "import os, sys; from pathlib import Path; from nanoalign.merge.interpolate import interpolate\n"
        "a, b, o = map(Path, sys.argv[1:])\n"
        "interpolate(a, b, {0.5: o}, threads=1, progress=lambda done, total: os._exit(9))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, a, b, tmp_path / "o"], check=False)
    assert ended.returncode == 9
    assert not (tmp_path / "o").exists()


def test_ctrl_c_leaves_nothing(llama_pair: tuple[Path, Path], tmp_path: Path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        interpolate(*llama_pair, {0.5: tmp_path / "o"}, threads=2, progress=stop)
    assert sorted(tmp_path.iterdir()) == before
