"""`nanoalign status`: what it says of a run in each of its states."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.common.errors import ConfigError
from nanoalign.common.files import exclusive_lock
from nanoalign.common.stage import StageLog
from nanoalign.recipe.load import dump, load
from nanoalign.status import find_run, render, status_of
from tests.nanoalign.small_runs import record_stage, write_recipe


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose first stage is finished and whose second one was at step 3 of 12 when it was last seen."""
    recipe = write_recipe(tmp_path, first="base", second="first", third="second", other="base")
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump(load(str(recipe))), encoding="utf-8")
    record_stage(
        folder, "first", "finished", figures={"steps": 12, "loss_last": 0.25, "dropped": {"a": 1}}, wall_s=65.0
    )
    record_stage(folder, "second", "running")
    log = StageLog(folder / "second")
    for step in (1, 2, 3):
        log._append("metrics.jsonl", {"time": 100.0 + 2 * step, "step": step, "total_steps": 12, "loss": 1 / step})
    return folder


def test_a_running_stage_has_its_step_its_figures_and_the_time_left(run: Path) -> None:
    with exclusive_lock(run, ""):
        status = status_of(run)
    assert status.state == "running"
    assert [stage.state for stage in status.stages] == ["finished", "running", "to come", "to come"]
    first, second = status.stages[:2]
    assert first.figures == {"steps": 12, "loss_last": 0.25} and first.wall_s == 65
    assert (second.step, second.total_steps, second.eta_s, second.on) == (3, 12, 18.0, ())
    lines = render(status).splitlines()
    assert lines[0].endswith("running, 1 of 4 stages finished")
    assert lines[1] == "  first   sft  finished in 1:05  steps 12  loss last 0.25"
    assert lines[2] == "  second  sft  running  step 3/12  loss 0.333  ETA 0:18"
    assert lines[3:] == ["  third   sft  to come", "  other   sft  to come"]


def test_a_stage_whose_runner_is_gone_was_killed(run: Path) -> None:
    status = status_of(run)
    assert status.state == "killed" and status.stages[1].eta_s is None
    assert "nanoalign run" in render(status)


def test_a_failed_stage_says_why_and_how_to_go_on(run: Path) -> None:
    record_stage(run, "second", "failed", error="rows.jsonl:7: missing role")
    text = render(status_of(run))
    assert "second failed: rows.jsonl:7: missing role" in text and "it reached: step 3 of 12" in text
    for how in ("--set seeds.second=2", "--force second", "--until other"):
        assert how in text


def test_as_json_by_name(run: Path) -> None:
    result = CliRunner().invoke(app, ["status", "tiny", "--root", str(run.parent), "--json"])
    told = json.loads(result.output)
    assert told["state"] == "killed" and [stage["name"] for stage in told["stages"]][:2] == ["first", "second"]
    assert told["stages"][1]["figures"]["loss"] == pytest.approx(1 / 3)


def test_a_run_that_is_not_there_is_named_with_the_nearest(run: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean `tiny`"):
        find_run("tyny", run.parent)


def test_finished(run: Path) -> None:
    for name in ("second", "third", "other"):
        record_stage(run, name, "finished")
    assert status_of(run).state == "finished"
    (run / "second" / "stage.json").unlink()
    assert status_of(run).state == "begun"
