"""The 9B or 12B shape of Nemotron Nano v2 with random weights, as a folder: ``python -m benchmarks.nano9b FOLDER``.

18 GB in bfloat16, drawn on a GPU in seconds and written block by block; on /dev/shm it needs no disk. The tokenizer and
the chat format's tokens are the miniature's. ``--stop 2.4`` scales the head's row of the token that ends an answer,
so that a completion ends about every 2,000 tokens: rows at 1.0 would end one in 131,072. ``--tiny`` is for trials.
"""

import argparse
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file

from nanoalign.models.known import KNOWN
from nanoalign.models.loading import ASSETS
from nanoalign.models.size import layer_kinds

WORDS = {"mamba": "linear_attention", "mlp": "mlp", "attention": "full_attention"}
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 16,
    "n_groups": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "hybrid_override_pattern": "M-*-",
}  # fmt: skip


def shapes_of(config: dict[str, int], kind: str) -> dict[str, tuple[int, ...]]:
    """A block's tensors, by their names on the hub."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    if kind == "mlp":
        return {"mixer.up_proj.weight": (wide, hidden), "mixer.down_proj.weight": (hidden, wide)}
    if kind == "attention":
        queries, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
        return {
            "mixer.q_proj.weight": (queries, hidden), "mixer.k_proj.weight": (keys, hidden),
            "mixer.v_proj.weight": (keys, hidden), "mixer.o_proj.weight": (hidden, queries),
        }  # fmt: skip
    heads = config["mamba_num_heads"]
    inner = heads * config["mamba_head_dim"]
    channels = inner + 2 * config["n_groups"] * config["ssm_state_size"]
    return {
        "mixer.A_log": (heads,), "mixer.D": (heads,), "mixer.dt_bias": (heads,), "mixer.norm.weight": (inner,),
        "mixer.conv1d.weight": (channels, 1, config["conv_kernel"]), "mixer.conv1d.bias": (channels,),
        "mixer.in_proj.weight": (inner + channels + heads, hidden), "mixer.out_proj.weight": (hidden, inner),
    }  # fmt: skip


def draw(name: str, shape: tuple[int, ...], blocks: int, device: str) -> torch.Tensor:
    """As transformers initialises them; what is added to the stream is smaller by the root of the blocks' number."""
    if name.endswith(("norm.weight", ".D", "norm_f.weight")):
        return torch.ones(shape, dtype=torch.bfloat16, device=device)
    if name.endswith("A_log"):
        return torch.log(torch.rand(shape, device=device) * 15 + 1).bfloat16()
    if name.endswith("dt_bias"):
        steps = torch.exp(torch.rand(shape, device=device) * 4.6 - 6.9)  # 0.001 to 0.1
        return (steps + torch.log(-torch.expm1(-steps))).bfloat16()
    if name.endswith("conv1d.bias"):
        return torch.zeros(shape, dtype=torch.bfloat16, device=device)
    if name.endswith("conv1d.weight"):
        return (torch.rand(shape, device=device) - 0.5).bfloat16()
    scale = 0.02 / blocks**0.5 if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")) else 0.02
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0.0, scale)


def make(folder: Path, device: str, stop: float, tiny: bool, size: str = "9B") -> None:
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.loading import load_tokenizer

    asset, shape = ASSETS / "miniature-base", KNOWN[f"nvidia/NVIDIA-Nemotron-Nano-{size}-v2"] | (TINY if tiny else {})
    kinds = layer_kinds(shape)
    folder.mkdir(parents=True, exist_ok=True)
    for path in asset.glob("*"):
        if path.name.startswith(("tokenizer", "generation")):
            shutil.copy(path, folder)
    config = json.loads((asset / "config.json").read_text()) | {"chunk_size": 128} | shape
    config["layers_block_type"] = [WORDS[kind] for kind in kinds]
    del config["hybrid_override_pattern"]  # one of the two
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    chat, tokenizer = chat_format("nemotron-nano-v2"), load_tokenizer(asset)
    ends = {tokenizer.convert_tokens_to_ids(text) for text in chat.stop} | {tokenizer.eos_token_id}
    torch.manual_seed(0)
    hidden, index, total = shape["hidden_size"], {}, 0
    with ThreadPoolExecutor(4) as threads:
        jobs = []

        def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
            nonlocal total
            total += sum(tensor.nbytes for tensor in tensors.values())
            index.update(dict.fromkeys(tensors, name))
            on_host = {key: tensor.cpu() for key, tensor in tensors.items()}
            jobs.append(threads.submit(save_file, on_host, folder / name, {"format": "pt"}))

        head = draw("head", (shape["vocab_size"], hidden), len(kinds), device)
        head[[token for token in ends if token is not None]] *= stop
        write("model-ends.safetensors", {
            "backbone.embeddings.weight": draw("embeddings", (shape["vocab_size"], hidden), len(kinds), device),
            "backbone.norm_f.weight": draw("norm_f.weight", (hidden,), len(kinds), device), "lm_head.weight": head,
        })  # fmt: skip
        for number, kind in enumerate(kinds):
            block = {"norm.weight": (hidden,), **shapes_of(shape, kind)}
            write(f"model-{number:02d}.safetensors", {
                f"backbone.layers.{number}.{name}": draw(name, size, len(kinds), device) for name, size in block.items()
            })  # fmt: skip
        for job in jobs:
            job.result()
    told = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stop", type=float, default=2.4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--size", choices=["9B", "12B"], default="9B")
    options = parser.parse_args()
    started = time.monotonic()
    partial = options.folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    make(partial, options.device, options.stop, options.tiny, options.size)
    partial.rename(options.folder)  # whole or absent: a benchmark waits for it
    print(f"{options.folder} in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
