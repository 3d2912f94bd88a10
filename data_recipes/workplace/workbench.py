"""WorkBench's office (Styles et al., arXiv 2405.00823): five databases, their tools, and tasks scored on the end state.

Written from the benchmark's description and data. The clock is fixed at 2023-11-30 23:59. Databases are read from
``<data_root>/workbench/db``; the neighbouring ``nemo_gym_db`` differs from it and is never mixed in.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from nanoalign.data_recipes.workplace import workbench_tools as spec
from nanoalign.data_recipes.workplace.quoting import quote, short_text

NOW = "2023-11-30 23:59:00"
SYSTEM = (
    "Today is Thursday, 2023-11-30, and the time is 23:59:00. You work for Sam. Meetings must not start before 9:00 or "
    "end after 18:00. Use the tools to do what is asked, and nothing else."
)
CASE_MATTERS = frozenset({"status", "list_name", "board"})
PAGE_SIZE = 5
LONGEST_VALUE = 2_000
"""Characters of an argument; the longest text in the benchmark's own rows has 575."""
LONGEST_RESULT = 20_000
"""Characters of a tool's answer."""
MAX_ROWS = 2_000
"""Rows of a table; the benchmark's largest begins with 500."""
MAX_MINUTES = 99_999
LAST_YEAR = 9998
"""Of a time, so that a day or an event's duration can be added to it."""

Row = Mapping[str, str]
Table = dict[str, Row]


class ToolError(Exception):
    """A call that a tool refuses; its text is the tool's answer."""


@dataclass
class WorkBench:
    """The five tables by row id, and what never changes. Rows are replaced, never written to, so that copies are cheap.

    ``tables`` holds emails, calendar, tasks, customers and plots (the analytics tools' only effect).
    """

    tables: dict[str, Table]
    visits: tuple[Row, ...]
    directory: tuple[str, ...]

    def copy(self) -> "WorkBench":
        return WorkBench({name: dict(table) for name, table in self.tables.items()}, self.visits, self.directory)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Runs a tool. Numbers are taken as text. Whatever the arguments, it answers with a text of at most
        ``LONGEST_RESULT`` characters; a wrong call changes nothing and says why."""
        if name not in spec.TOOLS:
            return f"Error: there is no tool {quote(name)!r}."
        given = {key: value for key, value in arguments.items() if value is not None}
        missing, unknown = spec.REQUIRED[name] - given.keys(), sorted(given.keys() - spec.ALLOWED[name])
        if missing or unknown:
            what = f"needs {', '.join(sorted(missing))}" if missing else f"does not take {quote(', '.join(unknown))}"
            return f"Error: {name} {what}."
        texts = {key: text for key, value in given.items() if (text := short_text(value, LONGEST_VALUE)) is not None}
        if wrong := given.keys() - texts.keys():
            what = f"must be texts of at most {LONGEST_VALUE:,} characters"
            return f"Error: the arguments of {name} {what}; not so: {', '.join(sorted(wrong))}."
        try:
            result = _HANDLERS[name](self, **texts)
        except ToolError as error:
            return f"Error: {error}"
        # Only searches answer at length: what changes the state says so in a line.
        return result if len(result) <= LONGEST_RESULT else "Error: the result is too long to show."


def same(left: WorkBench, right: WorkBench) -> bool:
    """All five tables are equal; case counts in status, list_name and board only."""
    return all(
        left.tables[name].keys() == right.tables[name].keys()
        and all(row is right.tables[name][id] or _folded(row) == _folded(right.tables[name][id])
                for id, row in left.tables[name].items())
        for name in left.tables
    )  # fmt: skip


def changes(before: WorkBench, after: WorkBench) -> frozenset[tuple[Any, ...]]:
    """Rows that are new, other or gone, with the case that :func:`same` counts."""
    return frozenset(
        (name, id, None if row is None else tuple(sorted(_folded(row).items())))
        for name, table in after.tables.items()
        for id in table.keys() | before.tables[name].keys()
        if (row := table.get(id)) is not (old := before.tables[name].get(id))
        and (row is None or old is None or _folded(row) != _folded(old))
    )


def _folded(row: Row) -> dict[str, str]:
    return {key: value if key in CASE_MATTERS else value.lower() for key, value in row.items()}


# Shared verbs on a table


def _row(office: WorkBench, table: str, id: str) -> Row:
    if id not in office.tables[table]:
        raise ToolError(f"no row {quote(id)!r} in {table}.")
    return office.tables[table][id]


def _field(row: Row, name: str) -> str:
    if name not in row:
        raise ToolError(f"field must be one of {', '.join(row)}, not {quote(name)!r}.")
    return json.dumps({name: row[name]})


def _append(office: WorkBench, table: str, fields: tuple[str, ...], values: Mapping[str, str]) -> str:
    """Adds a row under the next free id (8 digits), as every table's first field."""
    if len(office.tables[table]) >= MAX_ROWS:
        raise ToolError(f"there is no room for more {table}.")
    id = f"{max((int(id) for id in office.tables[table]), default=-1) + 1:08d}"
    office.tables[table][id] = {name: values.get(name, "") for name in fields} | {fields[0]: id}
    return id


def _delete(office: WorkBench, table: str, id: str) -> str:
    _row(office, table, id)
    del office.tables[table][id]
    return f"{id} deleted."


def _update(office: WorkBench, table: str, id: str, name: str, value: str) -> str:
    row = _row(office, table, id)
    if name not in list(row)[1:]:
        raise ToolError(f"field must be one of {', '.join(list(row)[1:])}, not {quote(name)!r}.")
    office.tables[table][id] = {**row, name: _checked(office, table, name, value)}
    return f"{id} updated."


_CHOICES = {
    ("tasks", "board"): spec.BOARDS,
    ("tasks", "list_name"): spec.LISTS,
    ("customers", "status"): spec.STATUSES,
    ("customers", "product_interest"): spec.PRODUCTS,
}


def _checked(office: WorkBench, table: str, name: str, value: str) -> str:
    """The value as stored in ``table``: known choices, known colleagues, well-formed addresses and times."""
    choices = _CHOICES.get((table, name))
    if choices and value not in choices:
        raise ToolError(f"{name} must be one of {', '.join(choices)}, not {quote(value)!r}.")
    if name == "assigned_to_email" and value.lower() not in office.directory:
        raise ToolError(f"{quote(value)!r} is not in the company directory.")
    if name in ("participant_email", "sender/recipient") and not _is_address(value):
        raise ToolError(f"{quote(value)!r} is not an email address.")
    if name == "event_start":
        _moment(value)
    if name == "duration" and ((minutes := _whole(value)) is None or minutes > MAX_MINUTES):
        raise ToolError(f"duration is in minutes, up to {MAX_MINUTES:,}, not {quote(value)!r}.")
    return value.lower() if "email" in name or name == "sender/recipient" else value


def _is_address(text: str) -> bool:
    name, at, domain = text.partition("@")
    return bool(name and at and "." in domain)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.strptime(text, "%Y-%m-%d %H:%M:%S" if len(text) > 10 else "%Y-%m-%d")
    except ValueError:
        raise ToolError(f"{quote(text)!r} is not a time; write YYYY-MM-DD or YYYY-MM-DD HH:MM:SS.") from None
    if moment.year > LAST_YEAR:
        raise ToolError(f"{quote(text)!r} is too late: the calendar ends with the year {LAST_YEAR}.")
    return moment


def _day(text: str) -> str:
    return _moment(text).date().isoformat()


def _whole(text: str) -> int | None:
    """The number in up to nine plain digits: others ("²") may not be decimals, and more of them are not a count."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def _paged(rows: Iterable[Row], page: str = "1") -> str:
    number = _whole(page)
    if not number:
        raise ToolError(f"page is a number from 1, not {quote(page)!r}.")
    start = (number - 1) * PAGE_SIZE
    found = list(rows)[start : start + PAGE_SIZE]
    return json.dumps(found) if found else "Nothing found."


def _matches(row: Row, wanted: Mapping[str, str]) -> bool:
    return all(value.lower() in row[name].lower() for name, value in wanted.items())


# Email


def _search_emails(office: WorkBench, query: str = "", date_min: str = "", date_max: str = "", page: str = "1") -> str:
    low, high = _day(date_min) if date_min else "", _day(date_max) if date_max else "9999"
    words = query.lower().split()

    def fits(row: Row) -> bool:
        text = f"{row['subject']} {row['body']} {row['sender/recipient']}".lower()
        return low <= row["sent_datetime"][:10] <= high and all(word in text for word in words)

    found = [row for row in office.tables["emails"].values() if fits(row)]
    return _paged(sorted(found, key=lambda row: row["sent_datetime"], reverse=True), page)


def _send(office: WorkBench, recipient: str, subject: str, body: str) -> str:
    values = {
        "inbox/outbox": "outbox",
        "sender/recipient": _checked(office, "emails", "sender/recipient", recipient),
        "subject": subject,
        "sent_datetime": NOW,
        "body": body,
    }
    return f"{_append(office, 'emails', spec.EMAIL_FIELDS, values)} sent."


def _forward(office: WorkBench, email_id: str, recipient: str) -> str:
    row = _row(office, "emails", email_id)
    return _send(office, recipient, f"FW: {row['subject']}", row["body"])


def _reply(office: WorkBench, email_id: str, body: str) -> str:
    row = _row(office, "emails", email_id)
    return _send(office, row["sender/recipient"], row["subject"], body)


# Calendar


def _search_events(office: WorkBench, query: str = "", time_min: str = "", time_max: str = "", page: str = "1") -> str:
    low = _moment(time_min) if time_min else datetime.min
    high = _moment(time_max) + timedelta(days=len(time_max) <= 10) if time_max else datetime.max

    def fits(row: Row) -> bool:
        start = _moment(row["event_start"])
        text = f"{row['event_name']} {row['participant_email']}".lower()
        return low <= start + timedelta(minutes=int(row["duration"])) and start <= high and query.lower() in text

    found = [row for row in office.tables["calendar"].values() if fits(row)]
    return _paged(sorted(found, key=lambda row: row["event_start"]), page)


def _create(table: str, fields: tuple[str, ...]) -> Callable[..., str]:
    def create(office: WorkBench, **values: str) -> str:
        stored = {name: _checked(office, table, name, value) for name, value in values.items()}
        return f"{_append(office, table, fields, stored)} created."

    return create


# Analytics


def _per_day(value: Callable[[list[Row]], float], **wanted: str) -> Callable[..., str]:
    """A tool that answers with a figure for each day of a range on which there were visits."""

    def figures(office: WorkBench, time_min: str = "", time_max: str = "", traffic_source: str = "") -> str:
        low, high = _day(time_min) if time_min else "", _day(time_max) if time_max else "9999"
        if traffic_source and traffic_source not in spec.SOURCES:
            raise ToolError(f"traffic_source must be one of {', '.join(spec.SOURCES)}, not {quote(traffic_source)!r}.")
        conditions = wanted | ({"traffic_source": traffic_source} if traffic_source else {})
        days: dict[str, list[Row]] = {}
        for row in office.visits:
            if low <= row["date_of_visit"] <= high and _matches(row, conditions):
                days.setdefault(row["date_of_visit"], []).append(row)
        return json.dumps({day: value(days[day]) for day in sorted(days)})

    return figures


def _mean_duration(rows: list[Row]) -> float:
    return round(sum(int(row["session_duration_seconds"]) for row in rows) / len(rows), 2)


def _visitor(office: WorkBench, visitor_id: str) -> str:
    return _paged(row for row in office.visits if row["visitor_id"] == visitor_id)


def _plot(office: WorkBench, time_min: str, time_max: str, value_to_plot: str, plot_type: str) -> str:
    if value_to_plot not in spec.PLOT_VALUES:
        raise ToolError(f"value_to_plot must be one of {', '.join(spec.PLOT_VALUES)}, not {quote(value_to_plot)!r}.")
    if plot_type not in spec.PLOT_TYPES:
        raise ToolError(f"plot_type must be one of {', '.join(spec.PLOT_TYPES)}, not {quote(plot_type)!r}.")
    path = f"plots/{_day(time_min)}_{_day(time_max)}_{value_to_plot}_{plot_type}.png"
    _append(office, "plots", ("plot_id", "file_path"), {"file_path": path})
    return path


# Tasks and customers


def _search_tasks(office: WorkBench, page: str = "1", **wanted: str) -> str:
    return _paged((row for row in office.tables["tasks"].values() if _matches(row, wanted)), page)


def _search_customers(office: WorkBench, page: str = "1", **wanted: str) -> str:
    bounds = {name: _day(wanted.pop(name)) for name in list(wanted) if name.endswith(("_min", "_max"))}

    def fits(row: Row) -> bool:
        inside = (
            row[name[:-4]] >= bound if name.endswith("_min") else row[name[:-4]] <= bound
            for name, bound in bounds.items()
        )
        return _matches(row, wanted) and all(inside)

    return _paged((row for row in office.tables["customers"].values() if fits(row)), page)


def _find_address(office: WorkBench, name: str) -> str:
    return json.dumps([address for address in office.directory if name.lower() in address])


_HANDLERS: dict[str, Callable[..., str]] = {
    "company_directory_find_email_address": _find_address,
    "email_get_email_information_by_id": lambda office, email_id, field: _field(
        _row(office, "emails", email_id), field
    ),
    "email_search_emails": _search_emails,
    "email_send_email": _send,
    "email_delete_email": lambda office, email_id: _delete(office, "emails", email_id),
    "email_forward_email": _forward,
    "email_reply_email": _reply,
    "calendar_get_event_information_by_id": lambda office, event_id, field: _field(
        _row(office, "calendar", event_id), field
    ),
    "calendar_search_events": _search_events,
    "calendar_create_event": _create("calendar", spec.EVENT_FIELDS),
    "calendar_delete_event": lambda office, event_id: _delete(office, "calendar", event_id),
    "calendar_update_event": lambda office, event_id, field, new_value: _update(
        office, "calendar", event_id, field, new_value
    ),
    "analytics_get_visitor_information_by_id": _visitor,
    "analytics_create_plot": _plot,
    "analytics_total_visits_count": _per_day(len),
    "analytics_engaged_users_count": _per_day(len, user_engaged="True"),
    "analytics_traffic_source_count": _per_day(len),
    "analytics_get_average_session_duration": _per_day(_mean_duration),
    "project_management_get_task_information_by_id": lambda office, task_id, field: _field(
        _row(office, "tasks", task_id), field
    ),
    "project_management_search_tasks": _search_tasks,
    "project_management_create_task": _create("tasks", spec.TASK_FIELDS),
    "project_management_delete_task": lambda office, task_id: _delete(office, "tasks", task_id),
    "project_management_update_task": lambda office, task_id, field, new_value: _update(
        office, "tasks", task_id, field, new_value
    ),
    "customer_relationship_manager_search_customers": _search_customers,
    "customer_relationship_manager_update_customer": lambda office, customer_id, field, new_value: _update(
        office, "customers", customer_id, field, new_value
    ),
    "customer_relationship_manager_add_customer": _create("customers", spec.CUSTOMER_FIELDS),
    "customer_relationship_manager_delete_customer": lambda office, customer_id: _delete(
        office, "customers", customer_id
    ),
}
