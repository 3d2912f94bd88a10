"""What a run leaves behind: ``runs/<name>/<stage>/`` and the record in its ``stage.json``.

==================  ====================================================================================
``stage.json``      the record: config, fingerprints, versions, timing, figures, status
``model/``          the stage's model (HF layout), if it makes one
``metrics.jsonl``   one row per step; ``samples.jsonl`` rendered samples; ``tensorboard/`` the same as events
``log.txt``         everything the stage's process printed
``job.json``        the process's instructions; ``result.json`` its result, ``failed.json`` its error
``checkpoints/``    where training resumes after a crash
==================  ====================================================================================
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nanoalign.common.files import write_json


@dataclass(frozen=True)
class StageRecord:
    """A stage's ``stage.json``."""

    name: str
    kind: str
    status: str
    """running, finished, failed or stopped; a record marked running without a live run was killed."""
    fingerprint: str
    parts: dict[str, str]
    """Hashes of config, inputs, code and data."""
    code: dict[str, str]
    """Versions of the rooms that it ran in."""
    inputs: dict[str, str]
    """Role to stage name or `base`."""
    config: dict[str, Any]
    """The recipe's settings that determine the stage's result; how it was run is in ``job.json``."""
    seed: int
    versions: dict[str, str]
    """Python's and the libraries' versions, and the machine."""
    started: float
    """Seconds since the epoch, of the first attempt."""
    ended: float | None = None
    attempts: int = 1
    """Processes started for it; above 1 it was resumed after a stop or a crash."""
    wall_s: float = 0.0
    """Seconds over all attempts."""
    peak_rss_gb: float = 0.0
    """Largest resident memory of its processes together, in 1e9 bytes."""
    figures: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def read_record(folder: Path) -> StageRecord | None:
    """The record in a stage folder, or None where there is none that this version reads."""
    try:
        return StageRecord(**json.loads((folder / "stage.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_record(folder: Path, record: StageRecord) -> None:
    """Writes ``stage.json`` atomically; figures that are not finite become null."""
    write_json(folder / "stage.json", finite(asdict(record)))


def clear(folder: Path) -> None:
    """Removes a stage folder; a crash on the way leaves nothing that looks finished."""
    if folder.exists():
        (folder / "stage.json").unlink(missing_ok=True)
        shutil.rmtree(folder)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl or samples.jsonl; a last line cut by a crash is left out. Rows of one
    step are one: a step that was logged again, after a restart from a checkpoint, has the later values."""
    rows: dict[Any, dict[str, Any]] = {}
    if path.exists():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")):
            try:  # rows end at a newline only: splitlines() also splits at U+2028 and U+0085, which texts may hold
                row = json.loads(line)
                key = (row.get("phase"), row["step"]) if path.name == "metrics.jsonl" else number
                rows[key] = {**rows.pop(key, {}), **row}
            except (ValueError, AttributeError, KeyError, TypeError):
                continue
    return list(rows.values())


def finite(value: Any) -> Any:
    """Plain data that JSON can hold: numbers that are not finite become null, numpy's and torch's become Python's."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
