"""What each GPU of a stage that samples holds, and who waits for whom, as far as it is known before a run."""

from collections.abc import Iterator, Mapping
from typing import Any

from nanoalign import plan_cost as cost


def gpus(stage: Any, devices: int, training_gb: float | None, model: Mapping[str, Any] | None) -> Iterator[str]:
    """A line for each group of GPUs, numbered as the stage's processes see them.

    Args:
        stage: a stage with `rollouts` and `train`.
        devices: processes that train, on as many GPUs.
        training_gb: what training needs on each of them.
        model: the base model's size; None where it is not known.
    """
    engine, rollouts = stage.rollouts.engine, stage.rollouts
    training = "training" + ("" if training_gb is None else f", ~{training_gb:.1f} GB")
    trainer = _named(range(devices))
    weights_gb = None if model is None else 2 * model["parameters"] / 1e9
    cache = f"cache up to {engine.gpu_memory:.0%} of the GPU" if hasattr(engine, "gpu_memory") else ""
    if engine.kind == "hf":
        yield f"{trainer}: {training}, and rollouts in turn with it"
    elif engine.kind == "vllm":
        asleep = {0: "beside it", 1: "asleep meanwhile, its weights with the host", 2: "asleep meanwhile"}[engine.sleep]
        each = " on each" if devices > 1 else ""
        yield f"{trainer}: {training}; a vLLM{each}, {asleep}: {_gb(weights_gb)}{cache}"
    else:
        yield f"{trainer}: {training}"
        servers: list[Any] = [*engine.urls] or engine.shares
        for number, place in enumerate(servers, 1):
            name = f"vLLM {number} of {len(servers)}" if len(servers) > 1 else "vLLM"
            if isinstance(place, str):
                yield f"{place}: {name}"
            else:
                split = None if weights_gb is None else weights_gb / max(1, len(place))
                yield f"{_named(place) if place else 'GPU 0, beside the trainer'}: {name}: {_gb(split)}{cache}"
    if getattr(stage, "reward_gpu", None) is not None:
        yield f"GPU {stage.reward_gpu}: the reward model"
    if model is not None and engine.kind != "hf":
        tokens = rollouts.max_tokens * model["kv_bytes_per_token"] + model["state_bytes_per_sequence"]
        yield f"a completion of {rollouts.max_tokens:,} tokens takes {tokens / 1e6:,.0f} MB of a vLLM's cache"


def waits(stage: Any, devices: int, engines: int, model: Mapping[str, Any] | None, device: str) -> str:
    """Who waits for whom in a GRPO step, from rough estimates of its two halves."""
    longest = stage.train.batch_size * stage.rollouts.max_tokens
    halves = ""
    if model is not None:
        generating = cost.generate_seconds(model["parameters"], longest, device) / engines
        training = cost.train_seconds(model["parameters"], longest, stage.train, device, devices)
        halves = f" (at most ~{generating:,.0f} s of rollouts, ~{training:,.0f} s of training a step)"
    if not stage.rollouts.ahead:
        return f"rollouts and training wait for each other{halves}"
    steps = f"{stage.rollouts.ahead} step{'s' if stage.rollouts.ahead > 1 else ''}"
    return f"rollouts are up to {steps} ahead: the faster half waits for the slower one{halves}"


def _named(numbers: Any) -> str:
    """``GPU 3``, ``GPUs 0 to 7`` or ``GPUs 1, 3``."""
    places = list(numbers)
    if len(places) == 1:
        return f"GPU {places[0]}"
    if places == list(range(places[0], places[-1] + 1)):
        return f"GPUs {places[0]} to {places[-1]}"
    return f"GPUs {', '.join(map(str, places))}"


def _gb(value: float | None) -> str:
    return "" if value is None else f"weights ~{value:.1f} GB, "
