"""A sweep over alphas that writes no weights: each merge is computed into a live engine, scored, and forgotten.

Every alpha is recomputed from A and B, never from the alpha before it, so that no rounding adds up and the written
winner has the very weights that were scored.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nanoalign.common.errors import CheckpointError
from nanoalign.common.intervals import Estimate
from nanoalign.merge.checkpoint import TensorSource, read_json_object
from nanoalign.merge.choose import Choice, Point, best, golden_section, neighbours, ranking
from nanoalign.merge.compatibility import HEADS
from nanoalign.merge.interpolate import check_alphas
from nanoalign.merge.pair import Pair, require_finite, tensors_at

if TYPE_CHECKING:
    import torch


class LoadsWeights(Protocol):
    """The part of :class:`rollouts.base.RolloutEngine` that a sweep needs."""

    def load_weights(self, tensors: "Iterable[tuple[str, torch.Tensor]]") -> None: ...


def sweep(
    pair: Pair,
    engine: LoadsWeights,
    alphas: Iterable[float],
    score: Callable[[float], Mapping[str, Estimate]],
    choice: Choice,
    *,
    live: "Mapping[str, torch.Tensor] | None" = None,
    refine: int = 0,
    known: Iterable[Point] = (),
    on_point: Callable[[Point], None] = lambda point: None,
) -> tuple[Point, list[Point]]:
    """Scores the ends and every alpha, then ``refine`` more around the best by golden section.

    ``score`` measures what ``engine`` now holds, which is the merge at the given alpha. ``live`` is the state dict of
    the engine's model where it has one in this process: tensors are then computed in place. ``known`` points are not
    scored again; ``on_point`` sees each new one at once. Returns the best point and all points by alpha.

    Raises:
        ConfigError: an alpha is outside [0, 1], or a suite of ``choice`` has no samples.
        CheckpointError: a weight is not finite, or the engine's model has no such tensor.
    """
    grid = sorted({0.0, 1.0, *alphas})
    check_alphas(grid)
    require_finite(pair)
    names = state_dict_names(pair.a)
    own = {name: live[names[name]] for name in pair.names if names[name] in live} if live else {}
    points = {point.alpha: point for point in known}

    def at(alpha: float) -> Point:
        if alpha not in points:
            engine.load_weights((names[name], tensor) for name, tensor in tensors_at(pair, alpha, own))
            points[alpha] = Point(alpha, dict(score(alpha)))
            on_point(points[alpha])
        return points[alpha]

    evaluated = [at(alpha) for alpha in grid]
    if refine:
        key = ranking(evaluated, choice)
        low, high = neighbours(evaluated, max(evaluated, key=key))
        evaluated += [at(alpha) for alpha in golden_section(lambda alpha: key(at(alpha)), low, high, refine)]
    return best(evaluated, choice), sorted(evaluated, key=lambda point: point.alpha)


def state_dict_names(source: TensorSource) -> dict[str, str]:
    """The name that each stored tensor has in the live Hugging Face model (files of nemotron_h have ``backbone.`` where
    the model has ``model.``). Architectures that transformers does not know keep their names.

    Raises:
        CheckpointError: a stored tensor has no counterpart of its shape in the model, or the model has one, no tied
            head, that is not stored.
    """
    config = source.extras["config.json"]
    shapes = live_shapes(config)
    if shapes is None:
        return {name: name for name in source.tensors}
    by_tail: dict[str, list[str]] = {}
    for live in shapes:
        by_tail.setdefault(live.partition(".")[2], []).append(live)
    names = {}
    for name, info in source.tensors.items():
        found = [name] if name in shapes else by_tail.get(name.partition(".")[2], [])
        if len(found) != 1 or shapes[found[0]] != info.shape:
            raise CheckpointError(
                f"{source.folder}: {name} {list(info.shape)} is not a tensor of the model in {config.name}"
            )
        names[name] = found[0]
    tied = bool(read_json_object(config).get("tie_word_embeddings"))
    missing = set(shapes) - set(names.values())
    for name in sorted(missing):
        if not (tied and name.endswith(HEADS)):
            raise CheckpointError(f"{source.folder}: {name}, which {config.name} calls for, is not stored")
    return names


def live_shapes(config_file: Path) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of the live model's state dict, without its weights; None where transformers lacks the class."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if read_json_object(config_file).get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config_file.parent))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
