"""A user's own packages do not get in our way, nor ours in theirs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROOMS = sorted(link.name for link in (ROOT / "nanoalign").iterdir() if link.is_symlink())
RECIPE = {
    "name": "mine", "seed": 1, "model": "builtin:miniature-base", "chat": "nemotron-nano-v2",
    "data": {"sums": {"sources": {"miniature:math": 8}}},
    "stages": {"first": {"kind": "sft", "from": "base", "data": "sums",
                         "train": {"learning_rate": 1e-3, "steps": 1, "batch_size": 4}}},
}  # fmt: skip


def test_rooms_are_links_to_the_folders_at_the_top() -> None:
    assert {"common", "models", "data_recipes", "sft", "budget_control", "reward", "rl", "merge"} <= set(ROOMS)
    for room in ROOMS:
        assert (ROOT / "nanoalign" / room).resolve() == ROOT / room


@pytest.mark.parametrize("path", ["", "."])
def test_a_stage_runs_from_a_folder_with_packages_of_the_same_names(tmp_path: Path, path: str) -> None:
    for name in (*ROOMS, "datasets", "trl"):
        (tmp_path / name).mkdir()
        if path and name in ("datasets", "trl"):  # on the path, these are what the user asks for
            continue
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the package of the user')")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    # -P: as the installed command has it, the working folder is not on its path
    command = [sys.executable, "-P", "-c", "from nanoalign.cli import main; main()", "run", "recipe.yaml"]
    python_path = os.pathsep.join([str(ROOT), *([path] if path else [])])
    environment = os.environ | {"PYTHONPATH": python_path}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert (tmp_path / "runs/mine/first/model/config.json").is_file()


def test_the_wheel_holds_one_package(tmp_path: Path) -> None:
    from setuptools import find_packages

    found = find_packages(str(ROOT), include=["nanoalign*"])
    assert {name.split(".")[0] for name in found} == {"nanoalign"}
    assert {f"nanoalign.{room}" for room in ROOMS} - {"nanoalign.recipes"} <= set(found)
