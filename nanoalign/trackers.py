"""Experiment trackers (`report_to` of a recipe): what stages log, sent on through transformers' integrations.

The runner sends it and no stage does: that is one process however many train, it is on the machine that has a network
where compute nodes have none, and a stage that crashes has its last figures sent. A thread of its own sends, so that a
tracker that waits for a network delays nothing; one that fails is left out with a note, and the run goes on.
"""

import importlib
import importlib.util
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nanoalign.artifacts import StageRecord
from nanoalign.common.files import content_hash
from nanoalign.progress import numbers

CLOSE_S = 60.0
"""Seconds that a run waits at its end for what is still being sent."""

Note = Callable[[str], object]


class Trackers:
    """The trackers of one run. Every method returns at once and none raises."""

    def __init__(self, names: Sequence[str], run: str, note: Note) -> None:
        """``names`` as in a recipe's `report_to`, ``run`` the recipe's name, ``note`` is told what went wrong."""
        # what the runner writes in any case is TensorBoard's (progress.Events)
        self._names = [name for name in names if name != "tensorboard"]
        self._run, self._note = run, note
        self._open: dict[str, Any] = {}
        self._todo: queue.Queue[tuple[Callable[..., None], tuple[Any, ...]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True) if self._names else None
        if self._thread:
            self._thread.start()

    def start(self, record: StageRecord, folder: Path) -> None:
        """A stage begins, or goes on: its run is called `RECIPE-STAGE` and holds the stage's settings."""
        self._do(self._begin, record, folder)

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of its metrics.jsonl."""
        self._do(self._log, row)

    def end(self, *, finished: bool) -> None:
        """The stage has ended."""
        self._do(self._end, finished)

    def close(self) -> None:
        """Waits for what is not sent yet, a minute at most."""
        if self._thread:
            self._todo.put(None)
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                self._note(
                    f"NOTE: {', '.join(self._names)}: no answer for {CLOSE_S:.0f} s; the last figures may be missing"
                )

    def _do(self, work: Callable[..., None], *arguments: Any) -> None:
        if self._thread:
            self._todo.put((work, arguments))

    def _work(self) -> None:
        while (task := self._todo.get()) is not None:
            work, arguments = task
            work(*arguments)

    def _each(self, doing: str, work: Callable[[str, Any], Any]) -> None:
        """Does it for every tracker, and leaves out those that fail."""
        for name in list(self._names):
            try:
                work(name, self._open.get(name))
            except Exception as error:  # whatever a tracker raises, the run is not its business
                self._names.remove(name)
                self._open.pop(name, None)
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                self._note(f"NOTE: {name}: {doing}: {reason}; the run goes on without it")

    def _begin(self, record: StageRecord, folder: Path) -> None:
        def begin(name: str, _: Any) -> None:
            self._open[name] = opened = _Reporter(name, self._run, record, folder)
            if opened.address:
                self._note(f"{name}: {opened.address}")

        self._each("could not be started", begin)

    def _log(self, row: Mapping[str, Any]) -> None:
        self._each("could not be told", lambda name, opened: opened.log(row))

    def _end(self, finished: bool) -> None:
        self._each("could not be closed", lambda name, opened: opened.end(finished))
        self._open.clear()


class _Reporter:
    """One integration of transformers at work on one stage."""

    def __init__(self, name: str, run: str, record: StageRecord, folder: Path) -> None:
        from transformers import TrainerControl, TrainerState
        from transformers.integrations import get_reporting_integration_callbacks

        if name == "wandb":
            _open_wandb(run, record, folder)
        os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", run)
        self._name = name
        [callback] = get_reporting_integration_callbacks([name])
        self._callback, self._state, self._control = callback(), TrainerState(), TrainerControl()
        self._arguments = _arguments(run, record, folder)
        self._callback.on_train_begin(self._arguments, self._state, self._control)

    @property
    def address(self) -> str:
        """Where the run is seen, where the tracker says so."""
        run = importlib.import_module("wandb").run if self._name == "wandb" else None
        return getattr(run, "url", None) or ""

    def log(self, row: Mapping[str, Any]) -> None:
        self._state.global_step = row["step"]
        if logs := numbers(row):
            self._callback.on_log(self._arguments, self._state, self._control, logs=logs)

    def end(self, finished: bool) -> None:
        self._callback.on_train_end(self._arguments, self._state, self._control)
        if self._name == "wandb":  # its integration leaves the run open, and the next stage would be logged to it
            importlib.import_module("wandb").finish(exit_code=0 if finished else 1)


def _open_wandb(run: str, record: StageRecord, folder: Path) -> None:
    """A run of W&B's, which its integration then uses. A stage that goes on after a stop goes on in it too."""
    wandb = importlib.import_module("wandb")
    if os.environ.get("WANDB_MODE", "online") in ("online", "shared"):  # else it asks on the terminal, under our bars
        with suppress(TypeError):  # versions without `prompt`
            if not wandb.login(prompt=False):
                raise RuntimeError("no API key: run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline")
    wandb.init(
        project=os.environ.get("WANDB_PROJECT", run),
        name=f"{run}-{record.name}",
        id=content_hash([run, record.name, record.started]),
        resume="allow",
        dir=str(folder),
        settings=wandb.Settings(console="off", silent=True),
    )


def _arguments(run: str, record: StageRecord, folder: Path) -> Any:
    """What an integration reads of a Trainer's arguments: names, and as settings those of the stage."""
    from transformers import TrainingArguments

    class Arguments(TrainingArguments):
        def to_dict(self) -> dict[str, Any]:
            return {**_flat(record.config), "seed": record.seed, "kind": record.kind, "stage": record.name}

    name = f"{run}-{record.name}"
    return Arguments(output_dir=str(folder), run_name=name, project=run, use_cpu=True, report_to=[])


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{path}.{name}").items()}
    return {path.removeprefix("."): value}


def missing(name: str) -> str | None:
    """What to install for a tracker, as a message; None where it is there."""
    if importlib.util.find_spec(name) is not None:
        return None
    return f"{name} is not installed here: pip install {name}"
