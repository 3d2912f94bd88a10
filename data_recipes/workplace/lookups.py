"""Look-ups that WorkBench's reference answers leave out: how a colleague without the answer would find the ids.

A reference says ``delete_email(email_id="00000479")``; the request says "my last email from nadia". The searches that
the request's own words suggest (people, dates, names of events and customers, quoted subjects, states) are tried on the
databases, and the most specific whose reply shows every id that the reference uses is kept.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import combinations

from nanoalign.data_recipes.conversation import ToolCall
from nanoalign.data_recipes.workplace import workbench_tools as spec
from nanoalign.data_recipes.workplace.workbench import NOW, WorkBench
from nanoalign.data_recipes.workplace.workbench_data import WorkBenchTask

MAX_PAGES = 2
_TODAY = datetime.fromisoformat(NOW)
_MONTHS = ("september", "october", "november", "december")
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SEARCH = {
    "email": "email_search_emails",
    "calendar": "calendar_search_events",
    "project_management": "project_management_search_tasks",
    "customer_relationship_manager": "customer_relationship_manager_search_customers",
}
_METRIC_TOOLS = {
    "total_visits": "analytics_total_visits_count",
    "session_duration_seconds": "analytics_get_average_session_duration",
    "user_engaged": "analytics_engaged_users_count",
}
_CONDITIONS = re.compile(r"\b(if|was|is|most|least|grew)\b", re.IGNORECASE)

Arguments = dict[str, str]


def lookups(task: WorkBenchTask, office: WorkBench) -> tuple[ToolCall, ...] | None:
    """The calls that come before the reference's, in order: addresses, then what shows the ids or decides a condition.
    None where no search that the request suggests shows them all."""
    addresses = sorted({str(value) for call in task.calls for value in call.arguments.values() if "@" in str(value)})
    found = [_call("company_directory_find_email_address", name=address.split(".")[0]) for address in addresses]
    if task.domain == "analytics":
        return (*found, *_conditions(task))
    ids = {str(value) for call in task.calls for name, value in call.arguments.items() if name.endswith("_id")}
    if not ids:
        return tuple(found)
    searches = [
        search for search in (_shown(task, office, wanted, ids) for wanted in _suggested(task, office)) if search
    ]
    return (*found, *min(searches, key=lambda search: search[0])[1]) if searches else None


def _call(tool: str, **arguments: str) -> ToolCall:
    return ToolCall(tool, arguments)


def _conditions(task: WorkBenchTask) -> Iterator[ToolCall]:
    """What a conditional plot depends on: the figures over its range, of all sources where one is to be chosen."""
    if not _CONDITIONS.search(task.request):
        return
    for call in task.calls:
        value, bounds = call.arguments["value_to_plot"], {key: call.arguments[key] for key in ("time_min", "time_max")}
        if value in _METRIC_TOOLS:
            yield _call(_METRIC_TOOLS[value], **bounds)
        elif "popular" in task.request:
            for source in spec.SOURCES:
                yield _call("analytics_traffic_source_count", **bounds, traffic_source=source)
        else:
            source = value.removeprefix("visits_").replace("_", " ")
            yield _call("analytics_traffic_source_count", **bounds, traffic_source=source)


def _shown(
    task: WorkBenchTask, office: WorkBench, wanted: Arguments, ids: set[str]
) -> tuple[int, list[ToolCall]] | None:
    """The calls that page through one search until all ids are seen, and how many rows there were to see."""
    tool, calls, rows = _SEARCH[task.domain], [], []
    key = {"email": "email_id", "calendar": "event_id", "project_management": "task_id"}.get(task.domain, "customer_id")
    for page in range(1, MAX_PAGES + 1):
        arguments = wanted | ({"page": str(page)} if page > 1 else {})
        reply = office.call(tool, arguments)
        if not reply.startswith("["):
            return None
        calls.append(ToolCall(tool, arguments))
        rows += [row[key] for row in json.loads(reply)]
        if ids <= set(rows):
            return len(rows), calls
    return None


def _suggested(task: WorkBenchTask, office: WorkBench) -> Iterator[Arguments]:
    """Searches by any of the constraints that the request names, those with most constraints first."""
    constraints = list(_DOMAINS[task.domain](task.request, office))
    for count in range(len(constraints), 0, -1):
        for chosen in combinations(constraints, count):
            merged: Arguments = {}
            for constraint in chosen:
                if merged.keys() & constraint.keys():
                    break
                merged |= constraint
            else:
                yield merged


def _people(request: str, office: WorkBench) -> list[str]:
    words = set(re.findall(r"[a-z]+", request.lower()))
    return [address for address in office.directory if address.split(".")[0] in words]


def _named(request: str, rows: Iterator[Mapping[str, str]], field: str) -> list[str]:
    """Values of a field that the request spells out, longest first."""
    values = {row[field] for row in rows if row[field].lower() in request.lower()}
    return sorted(values, key=lambda value: (-len(value), value))[:2]


def _dates(request: str) -> list[str]:
    """Days that the request names, as YYYY-MM-DD: "December 13", or the next Wednesday."""
    text = request.lower()
    days = [
        f"2023-{_MONTHS.index(month) + 9:02d}-{int(day):02d}"
        for month, day in re.findall(rf"({'|'.join(_MONTHS)}) (\d+)", text)
    ]
    for number, weekday in enumerate(_WEEKDAYS):
        if weekday in text:
            days.append(f"{_TODAY + timedelta(days=(number - _TODAY.weekday()) % 7 or 7):%Y-%m-%d}")
    return days


def _emails(request: str, office: WorkBench) -> Iterator[Arguments]:
    for subject in _named(request, iter(office.tables["emails"].values()), "subject"):
        yield {"query": subject}
        for address in _people(request, office):
            yield {"query": f"{address.split('.')[0]} {subject}"}
    for address in _people(request, office):
        yield {"query": address.split(".")[0]}
    if days := re.search(r"last (\d+) days", request):
        yield {"date_min": f"{_TODAY - timedelta(days=int(days[1])):%Y-%m-%d}"}
    if "last week" in request:
        yield {"date_min": f"{_TODAY - timedelta(days=_TODAY.weekday() + 7):%Y-%m-%d}"}


def _events(request: str, office: WorkBench) -> Iterator[Arguments]:
    for name in _named(request, iter(office.tables["calendar"].values()), "event_name"):
        yield {"query": name}
    for address in _people(request, office):
        yield {"query": address.split(".")[0]}
    for day in _dates(request):
        yield {"time_min": f"{day} 00:00:00", "time_max": f"{day} 23:59:59"}
    if re.search(r"\b(next|future|upcoming)\b", request, re.IGNORECASE):
        yield {"time_min": NOW}


def _tasks(request: str, office: WorkBench) -> Iterator[Arguments]:
    for address in _people(request, office):
        yield {"assigned_to_email": address}
    for list_name in spec.LISTS:
        if list_name.lower() in request.lower():
            yield {"list_name": list_name}
    if "started" in request:
        yield {"list_name": "Backlog"}


def _customers(request: str, office: WorkBench) -> Iterator[Arguments]:
    for name in _named(request, iter(office.tables["customers"].values()), "customer_name"):
        yield {"customer_name": name}
    for address in _people(request, office):
        yield {"assigned_to_email": address}
    for product in spec.PRODUCTS:
        if product.lower() in request.lower():
            yield {"product_interest": product}
    for status in spec.STATUSES:
        if status.lower() in request.lower():
            yield {"status": status}


_DOMAINS = {
    "email": _emails,
    "calendar": _events,
    "project_management": _tasks,
    "customer_relationship_manager": _customers,
}
