"""Packs and batches must divide over the processes of a launch, and a plan shows how they do."""

from pathlib import Path

import pytest

from nanoalign import plan as planning
from nanoalign.launch import command
from nanoalign.plan_text import render_plan
from nanoalign.recipe.load import RecipeError, load
from nanoalign.recipe.schema import LocalLaunch

RECIPE = """
name: spread
seed: 1
model: builtin:miniature-base
chat: nemotron-nano-v2
data: {sums: {sources: {miniature:math: 64}}}
stages:
  packed:
    kind: sft
    from: base
    data: sums
    pack: {length: 1024, sequence_parallel: 2}
    train: {learning_rate: 1e-3, batch_size: 4, micro_batch_size: 2}
launch: {kind: local, processes: 4, zero: 3}
"""


def recipe(tmp_path: Path, old: str = "", new: str = "") -> str:
    assert old in RECIPE
    (tmp_path / "spread.yaml").write_text(RECIPE.replace(old, new), encoding="utf-8")
    return str(tmp_path / "spread.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sequence_parallel: 2", "sequence_parallel: 3", "pack.sequence_parallel: 3 does not divide the 4 processes"),
        (
            "batch_size: 4,", "batch_size: 6,",
            "batch_size: 6 is not a multiple of 4 sequences at once, 2 on each of 2 groups of 2",
        ),
        (", sequence_parallel: 2", "", "4 is not a multiple of 8 sequences at once, 2 on each of 4 processes"),
        ("kind: local, processes: 4", "kind: slurm, nodes: 2", "4 is not a multiple of 16 sequences at once"),
        ("pack: {length: 1024, sequence_parallel: 2}", "sequence_parallel: 2", "packed.sequence_parallel: unknown key"),
    ],
)  # fmt: skip
def test_what_does_not_divide_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(recipe(tmp_path, old, new))
    assert message in str(error.value)


GRPO = """
name: spread
seed: 1
model: builtin:miniature-base
chat: nemotron-nano-v2
data: {sums: {sources: {miniature:math: 64}}}
stages:
  asked:
    kind: grpo
    from: base
    data: sums
    reward: {math: 1.0}
    rollouts: {engine: hf, max_tokens: 16}
    train: {learning_rate: 1e-4, batch_size: 16}
"""


@pytest.mark.parametrize(
    ("launch", "engine"),
    [
        ("{kind: local, processes: 2}", "hf"),
        ("{kind: local, processes: 1}", "vllm"),
        ("{kind: local, processes: 2}", "vllm"),
        ("{kind: local, processes: 2, zero: 2}", "hf"),
        ("{kind: slurm, nodes: 2, zero: 3}", "hf"),
    ],
)
def test_a_stage_that_samples_runs_on_all_processes(tmp_path: Path, launch: str, engine: str) -> None:
    (tmp_path / "spread.yaml").write_text(GRPO, encoding="utf-8")
    loaded = load(str(tmp_path / "spread.yaml"), [f"launch={launch}", f"stages.asked.rollouts.engine={engine}"])
    assert planning.make_plan(loaded, tmp_path / "runs", None).notes == []
    several = "torch.distributed.run" in " ".join(command(loaded, "asked", tmp_path / "job.json").argv)
    assert several == (loaded.launch.devices > 1)


def test_grpo_batches_divide_over_processes_too(tmp_path: Path) -> None:
    (tmp_path / "spread.yaml").write_text(GRPO, encoding="utf-8")
    with pytest.raises(RecipeError, match="16 is not a multiple of 15 sequences at once, 5 on each of 3 processes"):
        load(str(tmp_path / "spread.yaml"), ["launch={kind: local, processes: 3}"])


def test_a_servers_gpus_are_others_than_the_trainers(tmp_path: Path) -> None:
    (tmp_path / "spread.yaml").write_text(GRPO, encoding="utf-8")
    settings = ["launch={kind: local, processes: 2}", "stages.asked.rollouts.engine={kind: vllm_server, gpus: [1, 2]}"]
    with pytest.raises(RecipeError, match="the trainer's 2 processes have GPUs 0 to 1, got"):
        load(str(tmp_path / "spread.yaml"), settings)
    load(str(tmp_path / "spread.yaml"), [*settings, "stages.asked.rollouts.engine.gpus=[2, 3]"])
    nodes = [*settings, "launch={kind: slurm, nodes: 2, gpus_per_node: 2}"]
    with pytest.raises(RecipeError, match="the trainer's 2 processes on each node have GPUs 0 to 1, got"):
        load(str(tmp_path / "spread.yaml"), nodes)
    load(str(tmp_path / "spread.yaml"), [*nodes, "stages.asked.rollouts.engine.gpus=[2]"])


@pytest.mark.parametrize(
    ("launch", "option"),
    [
        ("{kind: slurm, nodes: 2, gpus_per_node: 2}", "--gpus-per-node="),
        ("{kind: ray, gpus: 2}", "--entrypoint-num-gpus="),
    ],
)
def test_a_job_asks_for_its_servers_gpus_too(tmp_path: Path, launch: str, option: str) -> None:
    (tmp_path / "spread.yaml").write_text(GRPO, encoding="utf-8")
    for engine, gpus in (("hf", 2), ("{kind: vllm_server, gpus: [2, 3, 4]}", 5), ("{kind: vllm_server, gpus: [3]}", 4)):
        loaded = load(str(tmp_path / "spread.yaml"), [f"launch={launch}", f"stages.asked.rollouts.engine={engine}"])
        line = command(loaded, "asked", tmp_path / "job.json").argv
        assert f"{option}{gpus}" in line
        assert "--nproc-per-node=2" in " ".join(line)


def test_the_plan_shows_how_a_stage_is_spread(tmp_path: Path) -> None:
    plan = planning.make_plan(load(recipe(tmp_path)), tmp_path / "runs", None)
    (stage,) = plan.stages
    assert (stage.devices, stage.sequence_parallel, stage.zero) == (4, 2, 3)
    assert "devices   4, 2 share a pack, ZeRO-3" in render_plan(plan)


def test_processes_without_a_kind_are_of_this_machine(tmp_path: Path) -> None:
    alone = recipe(tmp_path, "launch: {kind: local, processes: 4, zero: 3}", "")
    assert load(alone, ["launch.processes=2"]).launch == LocalLaunch(kind="local", processes=2)
