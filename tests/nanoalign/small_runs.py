"""Small recipes, a run of one, and a stage's record, for tests of what happens around a run."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from nanoalign import runner
from nanoalign.artifacts import StageRecord, write_record
from nanoalign.recipe.load import load

REAL = """\
name: NAME
seed: 3
model: builtin:miniature-base
chat: nemotron-nano-v2
device: cpu
data: {mixed: {sources: {miniature:math: 60, miniature:tools: 20}}}
stages:
  first:
    kind: sft
    from: base
    data: mixed
    strip_reasoning: 0.1
    pack: {length: 256}
    train: {learning_rate: 1e-3, batch_size: 1, steps: 6, dtype: float32, checkpoint_every: 2}
"""


def run_real(folder: Path, name: str, *overrides: str) -> Path:
    """Runs one real stage, on the CPU, in a recipe of this name; returns its folder."""
    recipe = folder / f"{name}.yaml"
    recipe.write_text(REAL.replace("NAME", name), encoding="utf-8")
    runner.run(load(str(recipe), overrides), runner.Options(root=folder), Console(file=StringIO()))
    return folder / name / "first"


def write_recipe(folder: Path, **stages: str) -> Path:
    """``folder/tiny.yaml``, with SFT stages that are each trained from the base or from another."""
    lines = [
        f"  {name}: {{kind: sft, from: {source}, data: mixed, train: {{learning_rate: 1e-3}}}}\n"
        for name, source in stages.items()
    ]
    path = folder / "tiny.yaml"
    path.write_text(
        "name: tiny\nseed: 1\nmodel: builtin:miniature-base\nchat: nemotron-nano-v2\n"
        "data: {mixed: {sources: {miniature:math: 10}}}\nstages:\n" + "".join(lines),
        encoding="utf-8",
    )
    return path


def record_stage(run: Path, name: str, state: str, **more: object) -> None:
    """Writes the record of a stage of this state."""
    made = StageRecord(name, "sft", state, "f", {}, {}, {}, {}, 1, {}, 100.0)
    write_record(run / name, StageRecord(**{**made.__dict__, **more}))  # type: ignore[arg-type]
