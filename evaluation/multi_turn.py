"""BFCL's multi-turn tasks, to be played in ``rollouts.environments.bfcl``."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.adapters import tool_use
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.readers import BadRow, RowError, read_rows
from nanoalign.evaluation.benchmark_data import conversation, files_of, missing, rows_of
from nanoalign.evaluation.benchmark_tasks import category_of
from nanoalign.evaluation.benchmarks import TaskReading

FUNCTIONS = {
    "GorillaFileSystem": "gorilla_file_system", "MathAPI": "math_api", "MessageAPI": "message_api",
    "TwitterAPI": "posting_api", "TicketAPI": "ticket_api", "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking", "VehicleControlAPI": "vehicle_control",
}  # fmt: skip
"""A simulated system to the file that describes its functions."""


def bfcl(reading: TaskReading) -> Iterable[Conversation]:
    """The categories whose files are there, each a domain. A conversation holds all requests, as one message each has
    them; the task what is played (see ``data_recipes.workplace.bfcl``).

    Raises DataError where there are no files, or a row is of another layout.
    """
    files = files_of(reading.benchmark, reading.data_root)
    if not files:
        raise DataError(missing(reading.name, reading.benchmark, reading.data_root) or "")
    for file in files:
        possible = {row["id"]: row for _, row in _rows(file.parent / "possible_answer" / file.name, reading)}
        for origin, raw in _rows(file, reading):
            try:
                made = _row(raw, possible[raw["id"]], file.parent / "multi_turn_func_doc")
            except (KeyError, TypeError, AttributeError, RowError) as error:
                raise DataError(f"{origin}: benchmark {reading.name}: not a row of it ({error!r})") from None
            task = {**made["task"], "kind": "bfcl_play", "long": "long_context" in file.stem}
            yield conversation(reading, origin, {**made, "task": task, "domain": category_of(file)})


def _row(raw: Mapping[str, Any], possible: Mapping[str, Any], described: Path) -> dict[str, Any]:
    functions = [each for name in raw["involved_classes"] for each in _functions(described / f"{FUNCTIONS[name]}.json")]
    [made] = tool_use.bfcl_multi_turn({**raw, "functions": functions, "answer": possible})
    requests = [message for turn in raw["question"] for message in turn]
    task = {**made["task"], "held_out": raw.get("missed_function", {})}
    return {**made, "messages": tool_use.one_speaker_at_a_time(requests), "task": task}


@cache
def _functions(file: Path) -> Sequence[Mapping[str, Any]]:
    return [row for _, row in read_rows(file) if not isinstance(row, BadRow)]


def _rows(file: Path, reading: TaskReading) -> Iterable[tuple[str, Any]]:
    if not file.exists():
        raise DataError(f"benchmark {reading.name}: no {file}")
    yield from rows_of(file, reading.name)
