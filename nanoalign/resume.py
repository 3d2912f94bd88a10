"""How far an unfinished stage got, and how to resume it: for the runner's error and for the report."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanoalign.artifacts import read_jsonl, read_record
from nanoalign.graph import needed_by, order, seed_of
from nanoalign.recipe.schema import Recipe

LOG_LINES = 15
LOG_BYTES = 64_000
"""At most this much of a log's end is read."""


def reached(place: Path) -> str:
    """The last step that a stage logged, as ``step 3 of 12``; what it was doing, if logged; or that there is none."""
    rows = read_jsonl(place / "metrics.jsonl")
    if not rows:
        return "before its first step"
    row = rows[-1]
    steps = f"step {row['step']}" + (f" of {row['total_steps']}" if row.get("total_steps") else "")
    return f"{steps} ({row['phase']})" if row.get("phase") else steps


def resume_point(place: Path) -> str:
    """From where the stage resumes when it is run again: ``the checkpoint at step 5``, or its beginning."""
    rounds = sorted(int(file.parent.name.removeprefix("round-")) for file in place.glob("round-*/round.json"))
    phases = sorted(int(file.parent.name.removeprefix("phase-")) for file in place.glob("phase-*/phase.json"))
    training = place / (f"round-{rounds[-1] + 1}" if rounds else f"phase-{len(phases) + 1}")
    training = training if rounds or training.is_dir() else place  # a distillation's last phase, and all else
    steps = [
        int(file.parent.name.removeprefix("checkpoint-")) for file in training.glob("checkpoints/checkpoint-*/whole")
    ]
    parts = [f"round {rounds[-1]}"] if rounds else []
    parts += [f"phase {phases[-1]}"] if phases else []
    parts += [f"the checkpoint at step {max(steps)}"] if steps else []
    for file, list_name, what in (("evaluation.json", "checkpoints", "models"), ("sweep.json", "points", "alphas")):
        done = _json(place / file).get(list_name)
        parts += [f"the {len(done)} {what} already measured"] if done else []
    if (place / "importance.safetensors").exists():  # a compress stage
        measured = sum("loss" in row for row in _json(place / "search.json").get("candidates", []))
        parts.append(f"the importance{f' and the {measured} candidates' if measured else ''} already measured")
    if not parts and any(place.glob("records/*/*.completions.jsonl")):
        parts.append("the answers that had ended")
    return ", ".join(parts) or "its beginning (it has no checkpoint yet)"


def next_steps(recipe: Recipe, name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """The options for the unfinished stage ``name`` of the run in ``folder``, each with its command."""
    again = _command(folder, name)
    yield f"resume from {resume_point(folder / name)}", again
    seed = (seed_of(recipe, name) + 1) % 2**31
    yield "restart this stage alone with another seed", f"{again} --set seeds.{name}={seed}"
    yield "restart it with the same seed", f"{again} --force {name}"
    if others := _without(recipe, name, folder):
        yield "run only what does not depend on it", " ".join([again, *(f"--until {other}" for other in others)])


def advice(recipe: Recipe, name: str, folder: Path) -> str:
    """All of it as the lines that end an error message."""
    place = folder / name
    done = [other for other in order(recipe) if _finished(folder, other) and name not in needed_by(recipe, [other])]
    lines = [f"it reached: {reached(place)}; its log: {place / 'log.txt'}"]
    lines += [f"finished stages are kept: {', '.join(done)}"] if done else []
    lines += [f"{what}:\n    {how}" for what, how in next_steps(recipe, name, folder)]
    return "\n".join(f"  {line}" for line in lines)


def log_tail(place: Path) -> str:
    """The last lines of a stage's log, each as a terminal would show it (progress bars write a line over and over)."""
    try:
        with (place / "log.txt").open("rb") as file:
            file.seek(max(0, (place / "log.txt").stat().st_size - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip().rpartition("\r")[2] for line in text.rstrip().split("\n")]
    return "\n".join(lines[-LOG_LINES:])


def log_end(place: Path) -> str:
    """The same, indented, under a line that names the file."""
    lines = (log_tail(place) or "(it is empty)").split("\n")
    return "\n".join([f"the end of {place / 'log.txt'}:", *(f"  {line}" for line in lines)])


def _command(folder: Path, name: str) -> str:
    """The command that runs this run again, with the recipe that is in its folder."""
    words = ["nanoalign", "run", str(folder / "recipe.yaml")]
    words += ["--root", str(folder.parent)] if folder.parent != Path("runs") else []
    data_root = _json(folder / name / "job.json").get("data_root")
    words += ["--data-root", data_root] if data_root else []
    return shlex.join(words)


def _without(recipe: Recipe, name: str, folder: Path) -> list[str]:
    """Unfinished stages that do not need ``name``."""
    others = [other for other in order(recipe) if name not in needed_by(recipe, [other])]
    return [other for other in others if not _finished(folder, other)]


def _finished(folder: Path, name: str) -> bool:
    record = read_record(folder / name)
    return record is not None and record.status == "finished"


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
