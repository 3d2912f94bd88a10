"""The runner: what is stale runs, in order, each stage in a process of its own, and every kind of stop is survived.

The stages here are stand-ins that a ``sitecustomize`` puts into the stage's process; the runner, its processes, locks
and signals are the real ones. test_nanoalign_resume.py runs a real stage.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nanoalign import graph, runner
from nanoalign.artifacts import StageRecord, read_jsonl, read_record
from nanoalign.common.errors import ConfigError, StageError
from nanoalign.common.stage import StageLog
from nanoalign.recipe.load import load
from nanoalign.recipe.schema import Recipe
from tests.nanoalign.small_runs import write_recipe

STAND_IN = """
import os, sys
if any("nanoalign.stage_process" in argument for argument in sys.orig_argv):
    import signal, time
    import nanoalign.stages
    from nanoalign.common.errors import DataError

    def run_stage(recipe, context):
        told = os.environ.get("STAND_IN_" + context.name, "")
        checkpoint = context.folder / "checkpoints" / "step"
        first = int(checkpoint.read_text()) if checkpoint.exists() else 0
        if told == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if told == "bad row":
            raise DataError("rows.jsonl:7: missing role")
        if told == "crash on rank 1":
            import torch.distributed as dist
            dist.init_process_group("gloo")
            if dist.get_rank() == 1:
                raise ValueError("boom")
            dist.barrier()
        if told == "crash":
            raise RuntimeError("boom")
        for step in range(first + 1, 5):
            context.log.metrics(step, 4, loss=1 / step)
            checkpoint.parent.mkdir(exist_ok=True)
            checkpoint.write_text(str(step))
            if told == "die" and step == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if told in ("slow", "deaf"):
                time.sleep(30 if step == 2 else 0)
        if told != "forget":
            (context.folder / "model").mkdir(exist_ok=True)
            (context.folder / "model" / "seed").write_text(str(context.seed))
            (context.folder / "model" / "mmaps").write_text(os.environ.get("MALLOC_MMAP_MAX_", "not said"))
        return {"went_on_from": first, "loss": float("nan")}

    nanoalign.stages.run_stage = run_stage
"""

Run = Callable[..., list[str]]
REPORT = runner._report


@pytest.fixture
def output() -> StringIO:
    return StringIO()


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, left="start", right="start", start="base")


@pytest.fixture
def run(tmp_path: Path, recipe_file: Path, output: StringIO, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the recipe in this process with overrides and options; its stages are stand-ins."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(STAND_IN, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(runner.__file__).parents[1])])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(runner, "_report", lambda folder, console, anew: None)

    def go(*overrides: str, told: dict[str, str] | None = None, **options: object) -> list[str]:
        for stage in ("start", "left", "right"):
            monkeypatch.setenv(f"STAND_IN_{stage}", (told or {}).get(stage, ""))
        recipe = load(str(recipe_file), overrides)
        return runner.run(recipe, runner.Options(root=tmp_path / "runs", **options), Console(file=output))  # type: ignore[arg-type]

    return go


def record(tmp_path: Path, stage: str) -> StageRecord:
    found = read_record(tmp_path / "runs" / "tiny" / stage)
    assert found is not None
    return found


def test_runs_in_order_once(run: Run, tmp_path: Path, output: StringIO) -> None:
    assert run() == ["start", "left", "right"]
    first = record(tmp_path, "left")
    assert (first.status, first.attempts, first.kind, first.inputs) == ("finished", 1, "sft", {"from": "start"})
    assert first.figures == {"went_on_from": 0, "loss": None}
    assert first.versions["torch"] and first.wall_s > 0 and first.peak_rss_gb > 0
    assert [row["step"] for row in read_jsonl(tmp_path / "runs/tiny/left/metrics.jsonl")] == [1, 2, 3, 4]
    assert list((tmp_path / "runs/tiny/left/tensorboard").glob("events.out.tfevents.*"))
    assert not (tmp_path / "runs/tiny/left/checkpoints").exists()
    assert "[2/3] left (sft): after start" in output.getvalue() and "step 4/4  loss 0.250" in output.getvalue()

    before = (tmp_path / "runs/tiny/left/stage.json").stat().st_mtime_ns
    assert run() == []
    assert (tmp_path / "runs/tiny/left/stage.json").stat().st_mtime_ns == before


def test_the_allocator_is_set_on_a_cpu_alone_and_what_the_user_says_holds(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for device, own in (("auto", None), ("cpu", None), ("cpu", "7")):
        if own:
            monkeypatch.setenv("MALLOC_MMAP_MAX_", own)
        run(f"device={device}", force=["start"], until=["start"])
        said.append((tmp_path / "runs/tiny/start/model/mmaps").read_text())
    assert said == ["not said", "0", "7"]


def test_a_changed_stage_and_those_after_it_run_again(run: Run, tmp_path: Path, output: StringIO) -> None:
    run()
    changed = "stages.left.train.learning_rate=2e-3"
    assert run(changed) == ["left"]
    assert "left (sft): changed: stage.train.learning_rate 0.001 -> 0.002" in output.getvalue()
    assert run(changed, "device=cpu", "launch={kind: local, processes: 1}") == []
    assert run(changed, "data.mixed.sources={miniature:math: 11}", until=["left"]) == ["start", "left"]
    assert record(tmp_path, "left").attempts == 1


def test_how_a_stage_runs_undoes_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(StageError):
        run(told={"left": "die", "start": ""})
    assert run("stages.start.train.checkpoint_every=7", "stages.left.train.checkpoint_every=7") == ["left", "right"]
    assert record(tmp_path, "left").figures["went_on_from"] == 2
    assert run("stages.right.train.checkpoint_every=9") == []


def test_other_code_runs_again_unless_ignored(run: Run, output: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    run(until=["left"])
    versions = graph.source_hash
    monkeypatch.setattr(graph, "source_hash", lambda room: "other" if room == "sft" else versions(room))
    assert run(until=["left"], ignore_code=True) == []
    assert run("stages.left.train.weight_decay=0.0", until=["left"], ignore_code=True) == ["left"]
    assert run(until=["start"]) == ["start"]
    assert "start (sft): the code changed: sft" in output.getvalue()
    assert run(until=["start"]) == []


def test_force_and_until(run: Run, tmp_path: Path) -> None:
    assert run(until=["left"]) == ["start", "left"]
    assert run(until=["start"]) == []
    assert run(force=["left"], until=["left"]) == ["left"]
    assert run(force=["start"], until=["start"]) == ["start"]
    assert read_record(tmp_path / "runs" / "tiny" / "left") is None


def test_a_killed_stage_goes_on_from_its_checkpoint(run: Run, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"stage start: its process was killed by SIGKILL"):
        run(told={"start": "die"})
    assert record(tmp_path, "start").status == "failed"
    assert run(until=["start"]) == ["start"]
    again = record(tmp_path, "start")
    assert (again.status, again.attempts, again.figures["went_on_from"]) == ("finished", 2, 2)


def test_a_stage_that_was_changed_since_it_was_killed_starts_anew(run: Run, tmp_path: Path) -> None:
    with pytest.raises(StageError):
        run(told={"start": "die"})
    run("stages.start.train.learning_rate=2e-3", until=["start"])
    assert (record(tmp_path, "start").attempts, record(tmp_path, "start").figures["went_on_from"]) == (1, 0)


def test_a_crash_shows_the_end_of_the_log(run: Run, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"(?s)stage left: its process ended with status 1; .*RuntimeError: boom"):
        run(told={"left": "crash"})
    assert "RuntimeError: boom" in (tmp_path / "runs/tiny/left/log.txt").read_text()
    assert record(tmp_path, "start").status == "finished" and record(tmp_path, "left").status == "failed"


def test_of_several_processes_the_first_that_fails_is_told(run: Run, tmp_path: Path) -> None:
    """Not the other one, whose collective fails for want of it."""
    with pytest.raises(StageError, match=r"(?s)stage start: rank 1 of 2: ValueError: boom; .*log"):
        run("launch={kind: local, processes: 2}", told={"start": "crash on rank 1"})
    assert record(tmp_path, "start").error == "rank 1 of 2: ValueError: boom"
    assert run(until=["start"]) == ["start"]


def test_a_failed_stage_says_how_to_go_on_and_the_report_is_written(
    run: Run, tmp_path: Path, output: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_report", REPORT)
    with pytest.raises(StageError) as caught:
        run(told={"left": "die"})
    folder = tmp_path / "runs/tiny"
    again = f"nanoalign run {folder}/recipe.yaml --root {tmp_path}/runs"
    for expected in (
        f"it reached: step 2 of 4; its log: {folder}/left/log.txt", "finished stages are kept: start",
        f"resume from its beginning (it has no checkpoint yet):\n    {again}\n", f"{again} --set seeds.left=2\n",
        f"{again} --force left", f"{again} --until right",
    ):  # fmt: skip
        assert expected in str(caught.value), str(caught.value)
    assert "left: failed" in (folder / "report.html").read_text() and "report.html" in output.getvalue()


def test_a_report_that_fails_hides_no_error(run: Run, output: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, console: Console, anew: bool) -> None:
        raise ValueError("[/no] plot")

    monkeypatch.setattr(runner, "_report", broken)
    with pytest.raises(StageError, match="stage left"):
        run(told={"left": "crash"})
    assert "the report could not be written: ValueError('[/no] plot')" in output.getvalue()


def test_a_seed_of_its_own_keeps_the_other_stages(run: Run, tmp_path: Path, output: StringIO) -> None:
    with pytest.raises(StageError):
        run(told={"left": "die"})
    assert run("seeds.left=7") == ["left", "right"]
    assert "left (sft): changed: seed 1 -> 7" in output.getvalue()
    assert record(tmp_path, "left").figures["went_on_from"] == 0
    with pytest.raises(ConfigError, match="unknown stage `lefd`; did you mean `left`"):
        run("seeds.lefd=7")


def test_an_error_of_the_user_is_passed_on(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"stage left: rows.jsonl:7: missing role"):
        run(told={"left": "bad row"})


def test_a_stage_without_a_model_is_not_finished(run: Run, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="ended without writing its artifacts"):
        run(told={"start": "forget"})
    assert record(tmp_path, "start").status == "failed"


def test_a_lost_model_is_made_again(run: Run, tmp_path: Path) -> None:
    run(until=["start"])
    seed = tmp_path / "runs/tiny/start/model/seed"
    before = seed.read_text()
    shutil.rmtree(seed.parent)
    assert run(until=["start"]) == ["start"]
    assert seed.read_text() == before


def test_one_run_at_a_time(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    with (
        FileLock(tmp_path / "runs" / "tiny" / ".lock"),
        pytest.raises(ConfigError, match="another nanoalign is working"),
    ):
        run()


@pytest.mark.parametrize("told", ["slow", "deaf"])
def test_ctrl_c_ends_the_stage_and_the_next_run_goes_on(
    run: Run, tmp_path: Path, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE_S", 1.0)
    rows = tmp_path / "runs/tiny/start/metrics.jsonl"
    threading.Thread(
        target=when, args=(lambda: len(read_jsonl(rows)) == 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    ).start()
    with pytest.raises(KeyboardInterrupt):
        run(told={"start": told})
    assert record(tmp_path, "start").status == "stopped"
    assert not stage_processes(tmp_path)
    assert run(until=["start"]) == ["start"]
    assert record(tmp_path, "start").figures["went_on_from"] == 2


@pytest.mark.parametrize(("number", "status", "recorded"), [
    (signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "stopped"), (signal.SIGKILL, -9, "running"),
])  # fmt: skip
def test_a_stopped_command_leaves_no_process(
    run: Run,
    tmp_path: Path,
    recipe_file: Path,
    number: signal.Signals,
    status: int,
    recorded: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAND_IN_start", "slow")
    command = [
        sys.executable,
        "-c",
        "from nanoalign.cli import main; main()",
        "run",
        str(recipe_file),
        "--root",
        str(tmp_path / "runs"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        when(
            lambda: len(read_jsonl(tmp_path / "runs/tiny/start/metrics.jsonl")) == 2,
            lambda: process.send_signal(number),
        )
        said = process.communicate(timeout=60)[0]
    assert process.returncode == status and "Traceback" not in said
    when(lambda: not stage_processes(tmp_path), lambda: None)
    assert record(tmp_path, "start").status == recorded
    assert run(until=["start"], ignore_code=True) == ["start"]
    assert record(tmp_path, "start").attempts == 2


def when(condition: Callable[[], bool], action: Callable[[], None], seconds: float = 60.0) -> None:
    """Does something once a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)
    action()


def stage_processes(tmp_path: Path) -> list[int]:
    """Stage processes of this test that live."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if (
            "nanoalign.stage_process" in line
            and str(tmp_path) in line
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ):
            found.append(process.pid)
    return found


def test_tail_reads_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n')
    tail = runner.Tail(path)
    assert tail.rows() == []
    with path.open("a") as file:
        file.write('{"step": 1}\n{"st')
        file.flush()
        assert tail.rows() == [{"step": 1}]
        file.write('ep": 2}\n')
        file.flush()
        assert tail.rows() == [{"step": 2}]
    assert tail.rows() == []


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(0, 30))
def test_tail_gives_every_row_once(cuts: list[int], seed: int) -> None:
    import tempfile

    text = "".join(json.dumps({"step": i}) + "\n" for i in range(seed % 7)).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.jsonl"
        tail, seen, position = runner.Tail(path), [], 0
        for cut in [*cuts, len(text)]:
            with path.open("ab") as file:
                file.write(text[position : position + cut])
            position = min(len(text), position + cut)
            seen += tail.rows()
        assert [row["step"] for row in seen] == list(range(seed % 7))


def test_rows_end_at_a_newline_only(tmp_path: Path) -> None:
    texts = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0b\x0c\x1c\x1d\x1eb\r", "\ud800 alone", "plain"]
    log = StageLog(tmp_path)
    for text in texts:
        log.sample(answer=text)
    assert [row["answer"] for row in read_jsonl(tmp_path / "samples.jsonl")] == texts
    (tmp_path / "samples.jsonl").write_bytes(b'{"answer": 1}\n3\nnull\n{"answer": "\xff"}\n{"answer": 2')
    assert [row["answer"] for row in read_jsonl(tmp_path / "samples.jsonl")] == [1, "\ufffd"]


def test_rows_of_a_step_are_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 2, "held": 1}\n'
                    '{"step": 1, "phase": "x"}\n'
                    '{"step": 2, "loss": 1.5}\n{"st')  # fmt: skip
    assert read_jsonl(path) == [
        {"step": 1, "loss": 3},
        {"step": 1, "phase": "x"},
        {"step": 2, "loss": 1.5, "held": 1},
    ]


def test_changed_data_files_make_a_stage_stale(recipe_file: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n", encoding="utf-8")
    recipe = load(str(recipe_file), [f"data.mixed.sources={{'file:{rows}': 1}}"])
    before = graph.nodes(recipe, tmp_path)[0]
    assert graph.nodes(recipe, tmp_path)[0].fingerprint == before.fingerprint
    rows.write_text("{}\n{}\n", encoding="utf-8")
    after = graph.nodes(recipe, tmp_path)[0]
    assert after.parts["data"] != before.parts["data"] and after.parts["config"] == before.parts["config"]
    assert after.fingerprint != before.fingerprint


def test_order_and_reach(recipe_file: Path) -> None:
    recipe = load(str(recipe_file))
    assert graph.order(recipe) == ["start", "left", "right"]
    assert graph.needed_by(recipe, ["left"]) == {"start", "left"}
    assert graph.after(recipe, ["start"]) == {"start", "left", "right"}


def test_a_stages_seed_is_its_own(recipe_file: Path) -> None:
    def seed(recipe: Recipe, name: str) -> int:
        return graph.stage_seed(recipe, name)

    one, other = load(str(recipe_file)), load(str(recipe_file), ["seed=2"])
    assert len({seed(one, "left"), seed(one, "right"), seed(other, "left")}) == 3


def test_differences_are_short() -> None:
    old, new = {"a": {"b": 1, "c": None}, "d": [1]}, {"a": {"b": 2, "c": {"x": 1}}, "d": [1, 2], "e": 1, "f": 2}
    assert graph.differences(old, new) == ["a.b 1 -> 2", "a.c null -> {...}", "d [1] -> [1, 2]", "2 more"]
    assert graph.differences(old, old) == []
