"""Sweeps into live models: what is scored is what would be written, and what is written is what was scored."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from nanoalign.common.errors import CheckpointError, ConfigError
from nanoalign.common.intervals import Estimate
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.config import Mixture, SourceUse
from nanoalign.evaluation.config import Suite
from nanoalign.merge import stage as merge_stage
from nanoalign.merge.checkpoint import open_checkpoint
from nanoalign.merge.choose import Choice
from nanoalign.merge.config import MergeStage
from nanoalign.merge.interpolate import interpolate
from nanoalign.merge.pair import make_pair
from nanoalign.merge.stage import run, run_sweep
from nanoalign.merge.sweep import state_dict_names, sweep
from nanoalign.rollouts.config import Rollouts

CHOICE = Choice("reasoning", "chat")


class Recorder:
    """An engine that keeps the tensors it was given last."""

    def __init__(self) -> None:
        self.held: dict[str, torch.Tensor] = {}
        self.loads = 0

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.held = {name: tensor.clone() for name, tensor in tensors}
        self.loads += 1


def exact(value: float) -> Estimate:
    return Estimate(value, value, value, 1)


def knee(alpha: float) -> dict[str, Estimate]:
    """Reasoning falls slowly, chat rises fast: the best sum is at 0.3."""
    return {"reasoning": exact(1 - alpha), "chat": exact(min(1.0, alpha / 0.3))}


@pytest.mark.parametrize("kind", ["tied", "mixed", "nemotron_h"])
@pytest.mark.parametrize("in_place", [True, False])
def test_an_engine_holds_exactly_what_would_be_written(
    kind: str, in_place: bool, make_pair_of: Callable, tensors_of: Callable, tmp_path: Path
):
    a, b = make_pair_of(kind)
    pair = make_pair(open_checkpoint(a), open_checkpoint(b))
    model = AutoModelForCausalLM.from_pretrained(a, dtype="auto")
    engine, seen = Recorder(), {}

    def score(alpha: float) -> dict[str, Estimate]:
        seen[alpha] = engine.held
        return knee(alpha)

    live = model.state_dict() if in_place else None
    chosen, points = sweep(pair, engine, [0.3, 0.6], score, CHOICE, live=live)
    assert [point.alpha for point in points] == [0.0, 0.3, 0.6, 1.0]
    assert chosen.alpha == 0.3
    interpolate(a, b, {alpha: tmp_path / str(alpha) for alpha in seen})
    names = state_dict_names(pair.a)
    for alpha, held in seen.items():
        written = {names[name]: tensor for name, tensor in tensors_of(tmp_path / str(alpha)).items()}
        assert held.keys() == written.keys()
        assert all(torch.equal(held[name], written[name]) for name in held)
    if in_place:  # the model's own tensors, but for those that it keeps in another dtype
        own = {name: tensor for name, tensor in model.state_dict().items() if name in held}
        same = [name for name, tensor in own.items() if tensor.dtype == held[name].dtype]
        assert len(same) > len(own) / 2
        assert all(torch.equal(own[name], seen[1.0][name]) for name in same)


def test_known_points_are_not_scored_again_and_refinement_closes_in(llama_pair: tuple[Path, Path]):
    pair = make_pair(*map(open_checkpoint, llama_pair))
    engine, scored = Recorder(), []

    def score(alpha: float) -> dict[str, Estimate]:
        scored.append(alpha)
        return knee(alpha)

    _, first = sweep(pair, engine, [0.25, 0.5, 0.75], score, CHOICE)
    chosen, points = sweep(pair, engine, [0.25, 0.5, 0.75], score, CHOICE, known=first, refine=6)
    assert len(scored) == len(points) == 5 + 6 == engine.loads
    assert abs(chosen.alpha - 0.3) < 0.02


def test_weights_that_are_not_finite_stop_a_sweep_before_it_starts(
    llama_pair: tuple[Path, Path], edit: Callable[..., None]
):
    edit(llama_pair[1], lambda tensors: tensors["model.norm.weight"][3].fill_(float("nan")))
    engine = Recorder()
    with pytest.raises(CheckpointError, match=r"model.norm.weight: NaN in B"):
        sweep(make_pair(*map(open_checkpoint, llama_pair)), engine, [0.5], knee, CHOICE)
    assert engine.loads == 0


def test_a_tensor_that_both_checkpoints_lack_is_noticed(llama_pair: tuple[Path, Path], edit: Callable[..., None]):
    for folder in llama_pair:
        edit(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"model.norm.weight, which config.json calls for, is not stored"):
        state_dict_names(open_checkpoint(llama_pair[0]))


def test_stored_names_map_to_live_names(make_pair_of: Callable):
    a, _ = make_pair_of("nemotron_h")
    names = state_dict_names(open_checkpoint(a))
    assert names["backbone.embeddings.weight"] == "model.embeddings.weight"
    assert names["lm_head.weight"] == "lm_head.weight"


@pytest.fixture
def stage(tmp_path: Path, miniature_pair: tuple[Path, Path]) -> tuple[MergeStage, StageContext]:
    config = MergeStage(
        kind="merge",
        reasoning="x",
        chat="y",
        alphas=[0.25, 0.75],
        reasoning_suite="reasoning",
        chat_suite="chat",
        rollouts=Rollouts(max_tokens=4),
    )
    folder = tmp_path / "merged"
    inputs = dict(zip(("reasoning", "chat"), miniature_pair, strict=True))
    context = StageContext("merged", folder, inputs, "nemotron-nano-v2", 0, None, "cpu", log=StageLog(folder))
    return config, context


def likelihood(name: str, engine) -> Estimate:
    """A score that depends on every weight: the log-probability of a fixed text."""
    sign = 1 if name == "reasoning" else -1
    return exact(sign * sum(engine.score([list(range(40, 60))])[0]))


def test_the_stage_writes_the_winner_that_it_scored(stage: tuple[MergeStage, StageContext]):
    config, context = stage
    figures = run_sweep(config, likelihood, context)
    record = json.loads((context.folder / "sweep.json").read_text())
    assert [point["alpha"] for point in record["points"]] == [0.0, 0.25, 0.75, 1.0]
    assert figures["merge.alpha"] == record["chosen"]
    assert record["chosen"] in record["front"]
    assert figures["merge.on_pareto"] == float(0 < record["chosen"] < 1)
    assert figures["merge.reasoning.alpha_0"] == record["points"][0]["scores"]["reasoning"]
    config_of_winner = config.model_copy(update={"alphas": [0.5]})
    again = StageContext(
        "again", context.folder.parent / "again", {**context.inputs, "reasoning": context.folder / "model"},
        context.chat, 0, None, "cpu", log=StageLog(context.folder.parent / "again"),
    )  # fmt: skip
    # Alpha 0 of a sweep that starts from the written winner scores what the winner scored when it was live.
    assert run_sweep(config_of_winner, likelihood, again)["merge.reasoning.alpha_0"] == figures["merge.reasoning"]
    card = (context.folder / "model" / "README.md").read_text()
    assert f"alpha {figures['merge.alpha']:g}" in card
    assert all(name in card for name in record["inputs"].values())


def test_a_stage_that_was_stopped_goes_on(stage: tuple[MergeStage, StageContext]):
    config, context = stage
    calls: list[str] = []

    def stop_at_third_alpha(name: str, engine) -> Estimate:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(name)
        return likelihood(name, engine)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, stop_at_third_alpha, context)
    assert not (context.folder / "model").exists()
    resumed: list[str] = []

    def count(name: str, engine) -> Estimate:
        resumed.append(name)
        return likelihood(name, engine)

    figures = run_sweep(config, count, context)
    assert len(resumed) == 4
    fresh = StageContext(
        "fresh", context.folder.parent / "fresh", context.inputs, context.chat, 0, None, "cpu",
        log=StageLog(context.folder.parent / "fresh"),
    )  # fmt: skip
    assert run_sweep(config, likelihood, fresh) == figures
    assert run_sweep(config, count, context, settings="other suites") == figures
    assert len(resumed) == 4 + 8


def test_an_engine_that_takes_less_memory_measures_nothing_again(
    stage: tuple[MergeStage, StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, context = stage
    opened, asked = merge_stage._open, []
    monkeypatch.setattr(merge_stage, "_open", lambda _, context: opened(config, context))

    def count(name: str, engine) -> Estimate:
        asked.append(name)
        return likelihood(name, engine)

    for engine, points in (({"gpu_memory": 0.4}, 4), ({"gpu_memory": 0.2, "sleep": 1}, 4), ({"dtype": "float16"}, 8)):
        rollouts = Rollouts.model_validate({"engine": {"kind": "vllm", **engine}, "max_tokens": 4})
        run_sweep(config.model_copy(update={"rollouts": rollouts}), count, context)
        assert len(asked) == 2 * points


def test_an_alpha_out_of_range_is_refused(stage: tuple[MergeStage, StageContext]):
    config, context = stage
    with pytest.raises(ConfigError, match=r"alpha 1.5 is outside"):
        run_sweep(config.model_copy(update={"alphas": [1.5]}), likelihood, context)


def test_the_stage_scores_with_the_recipes_suites(stage: tuple[MergeStage, StageContext]):
    config, context = stage
    mixtures = {
        "maths": Mixture(sources={"miniature:math": SourceUse(samples=3, split="test")}),
        "talk": Mixture(sources={"miniature:instruction": SourceUse(samples=3, split="test")}),
    }
    suites = {"reasoning": Suite(data="maths"), "chat": Suite(data="talk", reward={"instruction": 1.0})}
    figures = run(config.model_copy(update={"alphas": [0.5]}), mixtures, context, suites)
    assert figures["merge.reasoning"]["n"] == figures["merge.chat"]["n"] == 3
    assert (context.folder / "model" / "tokenizer.json").exists()
    with pytest.raises(ConfigError, match="unknown suite 'chat'"):
        run(config, mixtures, context, {"reasoning": suites["reasoning"]})
