"""What a stage's fingerprint leaves out: how it runs, and nothing else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from nanoalign.common.config import RUNTIME_ONLY, Section
from nanoalign.graph import nodes, resolved
from nanoalign.recipe.load import load
from nanoalign.recipe.schema import Recipe

LEFT_OUT = {
    "DistillStage.teacher_gpus",
    "Training.checkpoint_every",
    "MeasuredTraining.checkpoint_every",
    *(f"{engine}.{field}" for engine in ("VLLMSettings", "ServerSettings")
      for field in ("gpu_memory", "cache_gb", "restarts")),
    "VLLMSettings.sleep", "ServerSettings.server", "ServerSettings.weights", "ServerSettings.deadline_s",
    "GRPOStage.reward_gpu", "McpTools.folder", "Mixture.look_in",
    "Judge.deadline_s", "Judge.retries", "Judge.parallel", "Judge.key_variable",
    "OwnReward.workers", "OwnReward.deadline_s",
}  # fmt: skip
"""Every field whose change keeps a finished stage; look twice before adding one."""


def sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections(field.annotation)
    for inner in get_args(annotation):
        yield from sections(inner)


def test_no_other_field_is_left_out() -> None:
    found = {
        f"{section.__name__}.{name}"
        for section in sections(Recipe)
        for name, field in section.model_fields.items()
        if RUNTIME_ONLY in field.metadata
    }
    assert found == LEFT_OUT


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(inner, (*path, key))


@pytest.mark.parametrize("name", ["miniature", "nemotron-nano-v2", "smollm2-135m"])
def test_all_that_is_not_left_out_is_there(name: str) -> None:
    recipe = load(name)
    plain = recipe.model_dump(mode="json", by_alias=True)
    names = {each.partition(".")[2] for each in LEFT_OUT}
    for stage in recipe.stages:
        said, kept = set(leaves(plain["stages"][stage])), set(leaves(resolved(recipe, stage)["stage"]))
        assert kept <= said
        assert {path[-1] for path in said - kept} <= names
        for mixture, section in resolved(recipe, stage)["data"].items():
            assert section == {key: value for key, value in plain["data"][mixture].items() if key not in names}
        for suite, section in resolved(recipe, stage)["suites"].items():
            assert section == plain["suites"][suite]


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("stages.instruct.train.checkpoint_every=3", False),
        ("stages.instruct.rollouts.deadline_s=60", False),
        ("stages.instruct.rollouts.engine={kind: hf}", False),
        ("stages.instruct.rollouts.gpu_memory=0.3", False),
        ("stages.instruct.rollouts.batch_size=32", True),
        ("stages.instruct.train.micro_batch_size=8", True),
        ("stages.instruct.max_mismatch=1.2", True),
        ("data.instructions.sources={miniature:instruction: 401}", True),
        ("seeds.instruct=3", True),
        ("seeds.chat=3", False),
        ("launch={kind: local, processes: 2}", False),
    ],
)
def test_a_change_of_how_it_runs_changes_no_fingerprint(override: str, changed: bool, tmp_path: Path) -> None:
    before, after = ({node.name: node.fingerprint for node in nodes(load("miniature", sets), tmp_path)}
                     for sets in ([], [override]))  # fmt: skip
    assert (before["instruct"] != after["instruct"]) == changed
    assert before["foundation"] == after["foundation"]


OPERATIONAL = [
    ("vllm", "gpu_memory", 0.3), ("vllm", "cache_gb", 4.0), ("vllm", "sleep", 2), ("vllm", "restarts", 0),
    ("vllm_server", "gpu_memory", 0.3), ("vllm_server", "cache_gb", 4.0), ("vllm_server", "restarts", 0),
    ("vllm_server", "server", "http://node:8000"), ("vllm_server", "deadline_s", 60.0),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "key", "value"), OPERATIONAL)
def test_an_engines_memory_address_and_patience_change_no_fingerprint(engine: str, key: str, value: Any) -> None:
    """As a section, as a key of an override, and in the spelling of before; another engine does change it."""
    own, old = f"stages.instruct.rollouts.engine={engine}", f"stages.instruct.rollouts.{key}={value}"
    new = own.replace(engine, f"{{kind: {engine}, {key}: {value}}}")
    before, *same = (load("miniature", sets, note=lambda note: None) for sets in ([own], [new], [own, old]))
    assert [resolved(recipe, "instruct") for recipe in same] == [resolved(before, "instruct")] * 2
    assert same[0] == same[1] != before
    assert resolved(load("miniature"), "instruct") != resolved(before, "instruct")
    by_override = load("miniature", [own, old.replace("rollouts.", "rollouts.engine.")])
    assert by_override == same[0]


def test_precision_and_the_split_over_gpus_do_change_it() -> None:
    before, *others = (
        load("miniature", [f"stages.instruct.rollouts.engine={{kind: vllm_server{more}}}"])
        for more in ("", ", dtype: float16", ", gpus: [1, 2]")
    )
    assert all(resolved(each, "instruct") != resolved(before, "instruct") for each in others)
