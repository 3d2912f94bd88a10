"""Do two checkpoints fit together? Everything that differs and matters is named; nothing is skipped silently."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanoalign.common.errors import CheckpointError
from nanoalign.merge.checkpoint import TensorSource, elements, read_json_object

HEADS = ("lm_head.weight", "output.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "embeddings.weight", "embedding.weight", "wte.weight", "embed_in.weight")
CONFIG_IGNORED = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
"""Where the model came from and how it was loaded; dtypes are compared tensor by tensor."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
TEMPLATES = ("chat_template.jinja", "chat_template.json")
"""Said where only one has them: what is merged is as A is, and a stage's model gets its format's template anyway."""
TOKENIZER_IGNORED = {"name_or_path", "is_local", "local_files_only", "truncation", "padding", "transformers_version"}
"""Where the tokenizer was loaded from and what it was last called with."""
SHOWN = 5
CHUNK = 1 << 20


def require_compatible(a: TensorSource, b: TensorSource) -> list[str]:
    """The names of the tensors to merge, in A's order: all, but for a tied head that is a copy of the embedding.

    Raises:
        CheckpointError: configs, tokenizers or code differ, a tensor is missing, has another shape or dtype, or is
            tied in one and not in the other. The message names up to five differences and their number.
    """
    names = set(a.tensors) | set(b.tensors)
    dropped = {alias for alias in _tied_heads(a) | _tied_heads(b) if alias not in a.tensors or alias not in b.tensors}
    differences = [
        *_config_differences(a, b),
        *_tokenizer_differences(a, b),
        *_code_differences(a, b),
        *(text for name in sorted(names - dropped) if (text := _tensor_difference(a, b, name))),
    ]
    if differences:
        more = f"\n  ... and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        listed = "".join(f"\n  {text}" for text in differences[:SHOWN])
        raise CheckpointError(f"A ({a.folder}) and B ({b.folder}) differ:{listed}{more}")
    return [name for name in a.tensors if name not in dropped]


def _tensor_difference(a: TensorSource, b: TensorSource, name: str) -> str | None:
    if name not in b.tensors:
        return f"{name}: missing in B"
    if name not in a.tensors:
        return f"{name}: only in B"
    x, y = a.tensors[name], b.tensors[name]
    if x.shape != y.shape:
        hint = ""
        if x.shape == y.shape[::-1]:
            hint = " (transposed?)"
        elif name.endswith(HEADS + EMBEDDINGS) and x.shape[1:] == y.shape[1:]:
            hint = " (another vocabulary?)"
        return f"{name}: shape {list(x.shape)} in A, {list(y.shape)} in B{hint}"
    if x.dtype != y.dtype:
        return f"{name}: dtype {x.dtype} in A, {y.dtype} in B"
    return None


def _tied_heads(source: TensorSource) -> set[str]:
    """Output heads that the config ties to the embedding and the file stores all the same."""
    if not read_json_object(source.extras["config.json"]).get("tie_word_embeddings"):
        return set()
    tied = set()
    for head in (name for name in source.tensors if name.endswith(HEADS)):
        shape, dtype = source.tensors[head].shape, source.tensors[head].dtype
        twins = [
            name for name, info in source.tensors.items()
            if name.endswith(EMBEDDINGS) and (info.shape, info.dtype) == (shape, dtype)
        ]  # fmt: skip
        if twins and not any(same_values(source, head, source, twin) for twin in twins):
            raise CheckpointError(f"{source.folder}: {head} differs from {twins[0]}, to which config.json ties it")
        if twins:
            tied.add(head)
    return tied


def same_values(a: TensorSource, name_a: str, b: TensorSource, name_b: str) -> bool:
    """Whether two tensors of one shape and dtype hold equal bytes."""
    import torch

    return all(
        torch.equal(a.flat(name_a, *span).view(torch.uint8), b.flat(name_b, *span).view(torch.uint8))
        for span in elements(a.tensors[name_a].numel, CHUNK)
    )


def _config_differences(a: TensorSource, b: TensorSource) -> Iterator[str]:
    x, y = (read_json_object(source.extras["config.json"]) for source in (a, b))
    yield from _json_differences("config.json", x, y, CONFIG_IGNORED)
    name = "generation_config.json"
    if name in a.extras and name in b.extras:
        x, y = (_token_ids(read_json_object(source.extras[name])) for source in (a, b))
        yield from _json_differences(name, x, y, set())


def _token_ids(generation: dict[str, Any]) -> dict[str, Any]:
    """Trainers write ``[2]`` or ``2`` for one end token."""
    ids = {key: value for key, value in generation.items() if key.endswith("token_id")}
    return {key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in ids.items()}


def _tokenizer_differences(a: TensorSource, b: TensorSource) -> Iterator[str]:
    for name in TOKENIZER_FILES:
        x, y = a.extras.get(name), b.extras.get(name)
        if (x is None) != (y is None) and name in TEMPLATES:
            only, has = ("A", a) if y is None else ("B", b)
            warnings.warn(f"{name}: only in {only} ({has.folder}); the merged model's is A's", stacklevel=2)
        elif (x is None) != (y is None):
            yield f"{name}: only in {'A' if y is None else 'B'}"
        elif x is not None and y is not None and x.read_bytes() != y.read_bytes():
            if name.endswith(".json"):
                yield from _json_differences(name, _json(x), _json(y), TOKENIZER_IGNORED)
            else:
                yield f"{name}: contents differ"


def _code_differences(a: TensorSource, b: TensorSource) -> Iterator[str]:
    for name in sorted(set(a.extras) | set(b.extras)):
        if name.endswith(".py"):
            if name not in a.extras or name not in b.extras:
                yield f"{name}: only in {'A' if name in a.extras else 'B'}"
            elif a.extras[name].read_bytes() != b.extras[name].read_bytes():
                yield f"{name}: contents differ"


def _json_differences(label: str, x: Any, y: Any, ignored: set[str]) -> Iterator[str]:
    """One line for each leaf that differs, as ``label: path: value in A, value in B``."""
    if isinstance(x, dict) and isinstance(y, dict):
        for key in sorted(set(x) | set(y)):
            if key not in ignored:
                if key in x and key in y:
                    yield from _json_differences(f"{label}: {key}", x[key], y[key], ignored)
                else:
                    yield f"{label}: {key}: only in {'A' if key in x else 'B'}"
    elif x != y:
        yield f"{label}: {_short(x)} in A, {_short(y)} in B"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
