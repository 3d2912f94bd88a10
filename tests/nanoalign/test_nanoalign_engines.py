"""Engines in a recipe: each has keys of its own; given beside `engine` they are read as before, with a note."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.recipe.load import RecipeError, dump, load, shipped
from nanoalign.report.read import _recipe
from nanoalign.rollouts.engines import HFSettings, ServerSettings, VLLMSettings

HERE = "stages.instruct.rollouts"


def small(rollouts: str, **more: str) -> str:
    stages = {"instruct": rollouts, **more}
    text = "name: small\nseed: 1\nmodel: builtin:miniature-base\nchat: nemotron-nano-v2\n"
    text += "data: {asks: {sources: {miniature:instruction: 8}}}\nstages:\n"
    for name, section in stages.items():
        text += f"  {name}:\n    kind: grpo\n    from: base\n    data: asks\n    reward: {{instruction: 1.0}}\n"
        text += f"    rollouts: {section}\n    train: {{learning_rate: 1e-4, batch_size: 16, steps: 1}}\n"
    return text


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """The engine of a recipe's stage, and the notes."""

    def loaded(rollouts: str, *overrides: str, below: str | None = None) -> tuple[Any, list[str]]:
        if below is not None:
            (tmp_path / "below.yaml").write_text(small(below), encoding="utf-8")
            text = f"extends: below.yaml\nstages: {{instruct: {{rollouts: {rollouts}}}}}\n"
        else:
            text = small(rollouts)
        (tmp_path / "small.yaml").write_text(text, encoding="utf-8")
        notes: list[str] = []
        sets = [f"{HERE}.{override}" for override in overrides]
        recipe: Any = load(str(tmp_path / "small.yaml"), sets, note=notes.append)
        return recipe.stages["instruct"].rollouts.engine, notes

    return loaded


NEW = [
    ("{max_tokens: 8}", (), HFSettings()),
    ("{max_tokens: 8, engine: vllm}", (), VLLMSettings()),
    ("{max_tokens: 8, engine: {kind: vllm, sleep: 1}}", (), VLLMSettings(sleep=1)),
    ("{max_tokens: 8, engine: {kind: vllm, sleep: 1}}", ("engine=hf",), HFSettings()),
    ("{max_tokens: 8, engine: {kind: vllm, sleep: 1}}", ("engine=vllm",), VLLMSettings()),
    ("{max_tokens: 8, engine: vllm}", ("engine.sleep=1",), VLLMSettings(sleep=1)),
    ("{max_tokens: 8}", ("engine.kind=vllm", "engine.sleep=1"), VLLMSettings(sleep=1)),
    ("{max_tokens: 8}", ("engine={kind: vllm_server, gpus: [1]}",), ServerSettings(gpus=[1])),
]


@pytest.mark.parametrize(("written", "overrides", "engine"), NEW)
def test_an_engine_is_a_word_or_a_section(read: Any, written: str, overrides: tuple[str, ...], engine: Any) -> None:
    assert read(written, *overrides) == (engine, [])


OLD = [
    ("{max_tokens: 8, engine: vllm, gpu_memory: 0.3, cache_gb: 8}", (),
     VLLMSettings(gpu_memory=0.3, cache_gb=8), ["`engine: {kind: vllm, gpu_memory: 0.3, cache_gb: 8}`"]),
    ("{max_tokens: 8, engine: vllm, gpu_memory: 0.3}", ("engine=vllm_server",),
     ServerSettings(gpu_memory=0.3), ["`engine: {kind: vllm, gpu_memory: 0.3}`"]),
    ("{max_tokens: 8, engine: vllm, gpu_memory: 0.3}", ("gpu_memory=0.2",), VLLMSettings(gpu_memory=0.2),
     ["gpu_memory: 0.3}`", f"{HERE}.engine.gpu_memory"]),
    ("{max_tokens: 8, engine: vllm, gpu_memory: 0.3}", ("engine.gpu_memory=0.2",),
     VLLMSettings(gpu_memory=0.2), ["gpu_memory: 0.3}`"]),
    ("{max_tokens: 8, engine: {kind: vllm, gpu_memory: 0.3}}", ("gpu_memory=0.2",),
     VLLMSettings(gpu_memory=0.2), [f"{HERE}.engine.gpu_memory"]),
    ("{max_tokens: 8}", ("engine=vllm_server", "server=http://node:1", "deadline_s=5"),
     ServerSettings(server="http://node:1", deadline_s=5),
     [f"{HERE}.engine.server", f"{HERE}.engine.deadline_s"]),
    ("{max_tokens: 8, gpu_memory: 0.3, restarts: 4}", (), HFSettings(), ["leave out: gpu_memory, restarts"]),
    ("{max_tokens: 8, gpu_memory: 0.3}", ("engine=vllm",), VLLMSettings(gpu_memory=0.3), ["leave out"]),
    ("{max_tokens: 8, engine: vllm, deadline_s: 5, sleep: 1}", (), VLLMSettings(sleep=1),
     ["`engine: {kind: vllm, sleep: 1}`; without effect, leave out: deadline_s"]),
]  # fmt: skip


@pytest.mark.parametrize(("written", "overrides", "engine", "told"), OLD)
def test_settings_beside_the_engine_are_its_own(
    read: Any, written: str, overrides: tuple[str, ...], engine: Any, told: list[str]
) -> None:
    found, notes = read(written, *overrides)
    assert found == engine
    assert len(notes) == len(told) and all(each in note for each, note in zip(told, notes)), notes


@pytest.mark.parametrize(
    ("below", "above", "engine"),
    [
        ("{max_tokens: 8, engine: vllm, gpu_memory: 0.3}", "{gpu_memory: 0.2}", VLLMSettings(gpu_memory=0.2)),
        ("{max_tokens: 8, engine: {kind: vllm, gpu_memory: 0.3}}", "{gpu_memory: 0.2}",
         VLLMSettings(gpu_memory=0.2)),
        ("{max_tokens: 8, engine: vllm, gpu_memory: 0.3}", "{engine: {kind: vllm, gpu_memory: 0.2}}",
         VLLMSettings(gpu_memory=0.2)),
        ("{max_tokens: 8, engine: vllm, gpu_memory: 0.3}", "{engine: {sleep: 1}}",
         VLLMSettings(gpu_memory=0.3, sleep=1)),
        ("{max_tokens: 8, engine: {kind: vllm, gpu_memory: 0.3}}", "{engine: vllm}",
         VLLMSettings(gpu_memory=0.3)),
        ("{max_tokens: 8, engine: {kind: vllm, gpu_memory: 0.3}}", "{engine: hf}", HFSettings()),
    ],
)  # fmt: skip
def test_an_extending_recipe_may_be_of_either_spelling(read: Any, below: str, above: str, engine: Any) -> None:
    assert read(above, below=below)[0] == engine


@pytest.mark.parametrize(
    ("written", "path", "message"),
    [
        ("{max_tokens: 8, engine: {kind: hf, sleep: 1}}", "engine.sleep", "hf has no such key; vllm has it"),
        ("{max_tokens: 8, engine: {kind: hf, gpu_memory: 0.3}}", "engine.gpu_memory", "vllm and vllm_server have it"),
        ("{max_tokens: 8, engine: hf, sleep: 1}", "engine.sleep", "hf has no such key; vllm has it"),
        ("{max_tokens: 8, engine: vllm, server: 'http://a'}", "engine.server", "vllm has no such key; vllm_server"),
        ("{max_tokens: 8, engine: vllm, gpus: [1]}", "engine.gpus", "vllm has no such key; vllm_server has it"),
        ("{max_tokens: 8, engine: {kind: vllm, gpu_memroy: 0.3}}", "engine.gpu_memroy", "did you mean `gpu_memory`?"),
        ("{max_tokens: 8, engine: vlm}", "engine", "unknown `vlm`; did you mean `vllm`?"),
        ("{max_tokens: 8, engine: vlm, gpu_memory: 0.3}", "engine", "unknown `vlm`; did you mean `vllm`?"),
        ("{max_tokens: 8, engine: {gpu_memory: 0.3}}", "engine",
         "`kind` is required but missing, one of: hf, vllm, vllm_server"),
        ("{max_tokens: 8, engine: 3, sleep: 1}", "engine",
         "expected a mapping with `kind`, one of: hf, vllm, vllm_server; got 3"),
        ("{max_tokens: 8, engine: null}", "engine", "one of: hf, vllm, vllm_server; got null"),
        ("{max_tokens: 8, engine: [vllm]}", "engine", "one of: hf, vllm, vllm_server; got ['vllm']"),
        ("{max_tokens: 8, engine: {kind: [vllm]}, sleep: 1}", "engine", "unknown `['vllm']`"),
        ("{max_tokens: 8, engine: {kind: vllm, gpu_memory: 0.3}, gpu_memory: 0.3}", "gpu_memory", "keep that one"),
        ("{max_tokens: 8, engine: {kind: vllm_server, weights: nccl, gpus: [0, 1]}}", "engine", "GPUs of its own"),
        ("{max_tokens: 8, engine: {kind: vllm_server, server: 'http://a', gpus: [1]}}", "engine",
         "only for a server that the stage starts"),
        ("{max_tokens: 8, engine: {kind: vllm_server, gpus: [1, 2, 3], tensor_parallel: 2}}", "engine",
         "2 does not divide the 3"),
        ("{max_tokens: 8, engine: {kind: vllm_server, tensor_parallel: 1}}", "engine", "starts on `gpus`"),
        ("{max_tokens: 8, engine: {kind: vllm_server, gpus: [1, 1]}}", "engine", "each GPU once"),
        ("{max_tokens: 8, engine: {kind: vllm_server, server: ['http://a', 'http://a/']}}", "engine", "each URL once"),
        ("{max_tokens: 8, engine: {kind: vllm_server, server: []}}", "engine", "each URL once"),
    ],
)  # fmt: skip
def test_what_is_refused(read: Any, written: str, path: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(written)
    (problem,) = caught.value.problems
    assert problem.path == f"{HERE}.{path}" and message in problem.message, str(problem)
    assert problem.place.line == small(written).splitlines().index(f"    rollouts: {written}") + 1


def test_the_plan_says_how_to_write_it_now(tmp_path: Path) -> None:
    """A note on the very line, whose text stands as it is in the new recipe; that one says nothing."""
    old = "{max_tokens: 8, engine: vllm, gpu_memory: 0.3, cache_gb: 8}"
    file = tmp_path / "small.yaml"
    file.write_text(small(old), encoding="utf-8")
    plan = CliRunner().invoke(app, ["plan", str(file)])
    (note,) = [line for line in plan.output.splitlines() if line.startswith("NOTE")]
    assert note.startswith(f"NOTE: {file}:12: {HERE}: ") and plan.exit_code == 0
    assert "NOTE" in CliRunner().invoke(app, ["plan", str(file), "--resolved"]).stderr
    before = load(str(file), note=lambda note: None)
    file.write_text(small(f"{{max_tokens: 8, {note.split('`')[1]}}}"), encoding="utf-8")
    assert load(str(file)) == before
    assert "NOTE" not in CliRunner().invoke(app, ["plan", str(file)]).output


def test_what_runs_of_before_left_behind_is_read(tmp_path: Path) -> None:
    """Their recipe.yaml holds every key of every engine; a report is written from it, and the run goes on."""
    recipe: Any = yaml.safe_load(dump(load(str(shipped()["miniature"]))))
    every = {"gpu_memory": 0.45, "cache_gb": None, "sleep": 0, "server": None, "gpus": None, "weights": "folder"}
    for stage in recipe["stages"].values():
        if "rollouts" in stage:
            stage["rollouts"] |= {"engine": "hf", "dtype": None, **every, "deadline_s": 1800.0, "restarts": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert _recipe(tmp_path) == load("miniature")
    assert load(str(tmp_path / "recipe.yaml"), note=lambda note: None) == load("miniature")


def test_gpus_become_servers() -> None:
    shares = {size: ServerSettings(gpus=[1, 2, 3, 4], tensor_parallel=size).shares for size in (None, 1, 2)}
    assert shares == {None: [[1, 2, 3, 4]], 1: [[1], [2], [3], [4]], 2: [[1, 2], [3, 4]]}
    assert ServerSettings().shares == [None]
    assert ServerSettings(server=["http://a", "http://b"]).urls == ["http://a", "http://b"]
