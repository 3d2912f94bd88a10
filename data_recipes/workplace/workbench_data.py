"""WorkBench's databases and its 480 single-domain tasks, read from ``<data_root>/workbench``."""

import ast
import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.conversation import ToolCall
from nanoalign.data_recipes.workplace.workbench import Row, Table, WorkBench
from nanoalign.data_recipes.workplace.workbench_tools import TOOLS

DOMAINS = ("analytics", "calendar", "customer_relationship_manager", "email", "project_management")
_TABLES = {
    "emails": ("emails.csv", "email_id"),
    "calendar": ("calendar_events.csv", "event_id"),
    "tasks": ("project_tasks.csv", "task_id"),
    "customers": ("customer_relationship_manager_data.csv", "customer_id"),
}


@dataclass(frozen=True)
class WorkBenchTask:
    """One request and its reference calls, which may be none: 81 tasks ask for something that is already so."""

    id: str
    domain: str
    split: str
    request: str
    calls: tuple[ToolCall, ...]


def load_office(data_root: Path) -> WorkBench:
    """The office at the clock's start. Raises DataError where a database is absent or has no rows."""
    folder = data_root / "workbench" / "db"
    tables: dict[str, Table] = {
        name: {row[key]: row for row in _rows(folder / file)} for name, (file, key) in _TABLES.items()
    }
    directory = (folder / "email_addresses.csv").read_text(encoding="utf-8").split()
    return WorkBench({**tables, "plots": {}}, tuple(_rows(folder / "analytics_data.csv")), tuple(directory))


def load_tasks(data_root: Path) -> list[WorkBenchTask]:
    """All tasks, in the files' order. A quarter is the test split, chosen by a hash of template and reference calls,
    so that paraphrases of one task are never on both sides. Raises DataError with file:line."""
    tasks = []
    for domain in DOMAINS:
        path = data_root / "workbench" / "queries" / f"{domain}.csv"
        for number, row in enumerate(_rows(path)):
            calls = _parse_calls(row["answer"], f"{path}: task {number}")
            digest = hashlib.sha256(f"{row['base_template']} {row['answer']}".encode()).hexdigest()
            split = "test" if int(digest[:8], 16) % 4 == 0 else "train"
            tasks.append(WorkBenchTask(f"workbench-{domain}-{number}", domain, split, row["query"], calls))
    return tasks


def _rows(path: Path) -> list[Row]:
    if not path.is_file():
        raise DataError(f"{path}: WorkBench's file is missing (see its SOURCE.txt for where it comes from)")
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    if not rows:
        raise DataError(f"{path}:1: no rows")
    return rows


def _parse_calls(answer: str, where: str) -> tuple[ToolCall, ...]:
    """``["email.send_email.func(recipient=\\"...\\")", ...]`` as calls; nothing is evaluated but literals."""
    try:
        return tuple(_parse_call(text) for text in ast.literal_eval(answer))
    except (ValueError, SyntaxError, AttributeError, TypeError) as error:
        raise DataError(f"{where}: the reference answer is not a list of calls ({error})") from error


def _parse_call(text: str) -> ToolCall:
    node = ast.parse(text, mode="eval").body
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError(f"not a call with named arguments: {text}")
    name = ast.unparse(node.func).removesuffix(".func").replace(".", "_")
    if name not in TOOLS:
        raise ValueError(f"unknown tool {name}")
    return ToolCall(name, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords})
