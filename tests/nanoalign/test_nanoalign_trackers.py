"""`report_to`: every row reaches a tracker under the right names, and no tracker can end a run."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nanoalign import trackers
from nanoalign.artifacts import StageRecord
from nanoalign.recipe.load import RecipeError, load
from nanoalign.trackers import Trackers

RECORD = StageRecord(
    "sums", "grpo", "running", "f", {}, {}, {}, {"stage": {"train": {"learning_rate": 1e-3}}}, 7, {}, 1.0
)
ROWS = [
    {"time": 0.0, "step": 1, "total_steps": 2, "reward": 0.5, "mismatch": 1.01},
    {"time": 1.0, "step": 2, "total_steps": 2, "phase": "round 1", "success": 0.75},
]


class Fake:
    """An integration that keeps what it is told; ``faults`` names the calls that raise."""

    told: list[tuple[Any, ...]]
    faults: tuple[str, ...] = ()

    def _say(self, call: str, *what: Any) -> None:
        if call in self.faults:
            raise ConnectionError(f"no network in {call}\nand a long trace")
        self.told.append((call, *what))

    def on_train_begin(self, args: Any, state: Any, control: Any) -> None:
        self._say("begin", args.run_name, args.project, args.to_dict())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float]) -> None:
        self._say("log", state.global_step, logs)

    def on_train_end(self, args: Any, state: Any, control: Any) -> None:
        self._say("end")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    import transformers.integrations

    integration = type("FakeCallback", (Fake,), {"told": []})
    monkeypatch.setattr(transformers.integrations, "get_reporting_integration_callbacks", lambda names: [integration])
    return integration


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")


def report(folder: Path, notes: list[str], stages: int = 1) -> None:
    told = Trackers(["mlflow", "tensorboard"], "mine", notes.append)
    for _ in range(stages):
        told.start(RECORD, folder)
        for row in ROWS:
            told.row(row)
        told.end(finished=True)
    told.close()


def test_every_figure_is_sent_under_the_names_of_recipe_and_stage(fake: type[Fake], tmp_path: Path) -> None:
    notes: list[str] = []
    report(tmp_path, notes)
    settings = {"stage.train.learning_rate": 1e-3, "seed": 7, "kind": "grpo", "stage": "sums"}
    assert fake.told == [
        ("begin", "mine-sums", "mine", settings),
        ("log", 1, {"reward": 0.5, "mismatch": 1.01}),
        ("log", 2, {"round 1/success": 0.75}),
        ("end",),
    ]
    assert notes == []


@pytest.mark.parametrize("call", ["begin", "log", "end"])
def test_a_tracker_that_fails_is_left_out_with_one_note(fake: type[Fake], tmp_path: Path, call: str) -> None:
    fake.faults, notes = (call,), []
    report(tmp_path, notes, stages=2)
    [note] = notes
    assert note.startswith("NOTE: mlflow: could not be") and f"no network in {call}; the run goes on" in note


def test_a_tracker_that_hangs_is_waited_for_a_while(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, notes = threading.Event(), []  # type: ignore[var-annotated]
    monkeypatch.setattr(fake, "on_log", lambda *_, **__: held.wait(60))
    monkeypatch.setattr(trackers, "CLOSE_S", 0.2)
    begun = time.monotonic()
    report(tmp_path, notes)
    held.set()
    assert time.monotonic() - begun < 30 and "no answer" in notes[0]


def test_a_tracker_that_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"--set report_to=\[wandb\]: report_to: wandb is not .*: pip install wandb"):
        load("miniature", ["report_to=[wandb]"], check_files=True)
    assert load("miniature", ["report_to=wandb"]).report_to == ["wandb"]  # a finished run is read anywhere


def test_the_key_takes_a_name_or_a_list() -> None:
    assert load("miniature").report_to == []
    assert load("miniature", ["report_to=none"]).report_to == []
    assert load("miniature", ["report_to=tensorboard"], check_files=True).report_to == ["tensorboard"]
    with pytest.raises(RecipeError, match="did you mean `wandb`"):
        load("miniature", ["report_to=wandbb"])


def test_mlflow_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tmp_path.as_uri())
    notes: list[str] = []
    report(tmp_path, notes)
    assert notes == []
    [run] = mlflow.search_runs(experiment_names=["mine"], output_format="list")
    assert run.info.run_name == "mine-sums" and run.data.metrics["reward"] == 0.5


def test_wandb_offline_gives_each_stage_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    notes: list[str] = []
    told = Trackers(["wandb"], "mine", notes.append)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        told.start(StageRecord(**{**RECORD.__dict__, "name": name}), tmp_path / name)
        told.row(ROWS[0])
        told.end(finished=True)
    told.close()
    assert notes == []
    assert [len(list((tmp_path / name).glob("wandb/offline-run-*"))) for name in ("a", "b")] == [1, 1]


def test_trackio_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio", reason="trackio is not installed")
    notes: list[str] = []
    told = Trackers(["trackio"], "mine", notes.append)
    told.start(RECORD, tmp_path)
    told.row(ROWS[0])
    told.end(finished=True)
    told.close()
    assert notes == [] and list(tmp_path.rglob("mine*"))
