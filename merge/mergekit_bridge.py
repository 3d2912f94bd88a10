"""More than two models, and more than linear: slerp, task arithmetic, TIES, DARE and soups through mergekit.

mergekit 0.1.5 succeeds on architectures that it writes only in part (15 of 67 tensors of a nemotron_h). Here its output
is compared with the inputs before it gets its name. This is the one module that imports mergekit.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from nanoalign.common.errors import CheckpointError, ConfigError
from nanoalign.common.files import atomic_file, atomic_folder
from nanoalign.merge.checkpoint import Checkpoint, open_checkpoint
from nanoalign.merge.compatibility import require_compatible
from nanoalign.merge.model_card import write_card
from nanoalign.merge.sweep import state_dict_names

METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")
NEEDS_BASE = ("slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")
SPARSE = ("ties", "dare_linear", "dare_ties")


def mergekit_config(
    method: str,
    models: Sequence[Path],
    *,
    base: Path | None = None,
    weights: Sequence[float] | None = None,
    density: float | None = None,
    t: float | None = None,
) -> dict[str, Any]:
    """A mergekit configuration as a dict; :func:`write_config` makes YAML of it.

    Args:
        method: one of ``METHODS``; ``linear`` with more than two models is a soup.
        base: the common ancestor; for slerp the first of the two models.
        weights: one per model, equal by default (not for slerp).
        density: share of each difference kept by TIES and DARE.
        t: slerp's position between ``base`` (0) and the other model (1).

    Raises:
        ConfigError: an unknown method, or a setting that is missing or that the method does not have.
    """
    if method not in METHODS:
        raise ConfigError(f"method {method!r}: expected one of {', '.join(METHODS)}")
    if (base is None) == (method in NEEDS_BASE):
        raise ConfigError(f"method {method}: {'needs a' if base is None else 'takes no'} base model")
    if (density is None) == (method in SPARSE):
        raise ConfigError(f"method {method}: {'needs a' if density is None else 'takes no'} density")
    if (t is None) == (method == "slerp"):
        raise ConfigError(f"method {method}: {'needs' if t is None else 'takes no'} t")
    if weights is not None and (len(weights) != len(models) or method == "slerp"):
        raise ConfigError(f"method {method}: {len(weights)} weights for {len(models)} models")
    shares = weights or [1.0 / len(models)] * len(models)
    entries: list[dict[str, Any]] = []
    for model, weight in zip(models, shares, strict=True):
        parameters = {} if t is not None else {"weight": weight} | ({"density": density} if density is not None else {})
        entries.append({"model": str(model)} | ({"parameters": parameters} if parameters else {}))
    config: dict[str, Any] = {"merge_method": method, "models": entries}
    if base is not None:
        config["base_model"] = str(base)
    if t is not None:
        config["parameters"] = {"t": t}
    return config


def load_config(path: Path) -> dict[str, Any]:
    """An existing mergekit YAML, checked by mergekit's own schema and for keys that it would ignore.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mergekit configuration.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    _validated(config, str(path))
    return config


def write_config(config: Mapping[str, Any], path: Path) -> None:
    """Writes a configuration as YAML that ``mergekit-yaml`` takes."""
    with atomic_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")


def as_linear(config: Mapping[str, Any]) -> tuple[Path, Path, float] | None:
    """A, B and alpha where a configuration is plain interpolation of two full models, which is done natively."""
    models = config.get("models") or []
    if config["merge_method"] != "linear" or len(models) != 2 or set(config) - {"merge_method", "models", "base_model"}:
        return None
    settings = [model.get("parameters") or {} for model in models]
    weights = [setting["weight"] for setting in settings if set(setting) == {"weight"}]
    if len(weights) != 2 or not all(type(weight) in (int, float) and weight >= 0 for weight in weights):
        return None
    total = sum(weights)
    return (Path(models[0]["model"]), Path(models[1]["model"]), weights[1] / total) if total else None


def merge_with_mergekit(config: Mapping[str, Any], output: Path, seed: int = 0) -> None:
    """Runs mergekit and keeps its output only if every tensor is there; tokenizer and code come from the base model.

    ``seed`` fixes what DARE drops.

    Raises:
        ConfigError: not a mergekit configuration.
        CheckpointError: inputs are damaged or disagree, mergekit fails, or its output lacks a tensor (then
            ``method: linear`` does it natively).
    """
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    parsed = _validated(config, "mergekit configuration")
    inputs = {name: open_checkpoint(Path(name)) for name in _input_names(parsed)}
    first = next(iter(inputs.values()))
    new_tokenizer = bool(config.get("tokenizer") or config.get("tokenizer_source"))
    whole_models, keep_dtypes = bool(parsed.models), not (parsed.dtype or parsed.out_dtype)  # a merge alters `parsed`
    if not new_tokenizer:
        for other in inputs.values():
            require_compatible(first, other)
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=seed)
    with atomic_folder(output) as folder:
        try:
            with _quiet():
                run_merge(parsed, str(folder), options)
        except Exception as error:  # mergekit raises bare RuntimeError, KeyError and pydantic's errors alike
            raise CheckpointError(f"mergekit {parsed.merge_method}: {error}") from error
        merged = open_checkpoint(folder)
        if whole_models and not new_tokenizer:
            _check_against_input(merged, first, keep_dtypes)
        else:
            state_dict_names(merged)  # raises where the model that config.json describes lacks a tensor
        for name, path in first.extras.items():
            if not (folder / name).exists():
                shutil.copyfile(path, folder / name)
        letters = {chr(ord("A") + place): source for place, source in enumerate(inputs.values())}
        write_card(folder, letters, parsed.merge_method, config.get("parameters") or {})
        write_config(config, folder / "mergekit_config.yml")


def _validated(config: Any, where: str) -> Any:
    from mergekit.config import MergeConfiguration

    if not isinstance(config, Mapping) or "merge_method" not in config:
        raise ConfigError(f"{where}: no merge_method")
    unknown = sorted(set(config) - set(MergeConfiguration.model_fields))
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}")
    try:
        return MergeConfiguration.model_validate(config)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _input_names(parsed: Any) -> list[str]:
    """The models of a parsed configuration in its order, the base model first; mergekit's own list is in no order."""
    names = [str(parsed.base_model)] if parsed.base_model else []
    names += [str(entry.model) for entry in parsed.models or []]
    names += sorted(map(str, parsed.referenced_models()))
    return list(dict.fromkeys(names))


def _check_against_input(merged: Checkpoint, source: Checkpoint, keep_dtypes: bool) -> None:
    """The output must have exactly the input's tensors."""
    missing = [name for name in source.tensors if name not in merged.tensors]
    if missing:
        raise CheckpointError(
            f"mergekit wrote {len(source.tensors) - len(missing)} of {len(source.tensors)} tensors; {missing[0]} is "
            "missing: it does not know this architecture; `method: linear` runs natively"
        )
    for name, found in merged.tensors.items():
        due = source.tensors.get(name)
        if due is None or found.shape != due.shape or (keep_dtypes and found.dtype != due.dtype):
            expected = f"{due.dtype} {list(due.shape)}" if due else "no such tensor"
            raise CheckpointError(f"mergekit wrote {name} as {found.dtype} {list(found.shape)}, expected {expected}")


@contextmanager
def _quiet() -> Iterator[None]:
    """mergekit logs each step at INFO and WARNING; its failures come as exceptions or from the checks above."""
    logger = logging.getLogger("mergekit")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
