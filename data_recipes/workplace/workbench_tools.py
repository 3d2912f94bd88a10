"""What WorkBench's tools are called and take, as JSON schemas. Names follow ``<database>_<verb>_<noun>``."""

from collections.abc import Mapping
from typing import Any

BOARDS = ("Back end", "Front end", "Design")
LISTS = ("Backlog", "In Progress", "In Review", "Completed")
STATUSES = ("Qualified", "Won", "Lost", "Lead", "Proposal")
PRODUCTS = ("Software", "Hardware", "Services", "Consulting", "Training")
SOURCES = ("direct", "referral", "search engine", "social media")
PLOT_TYPES = ("bar", "line", "scatter", "histogram")
PLOT_VALUES = (
    "total_visits",
    "session_duration_seconds",
    "user_engaged",
    *(f"visits_{source.replace(' ', '_')}" for source in SOURCES),
)
EVENT_FIELDS = ("event_id", "event_name", "participant_email", "event_start", "duration")
EMAIL_FIELDS = ("email_id", "inbox/outbox", "sender/recipient", "subject", "sent_datetime", "body")
TASK_FIELDS = ("task_id", "task_name", "assigned_to_email", "list_name", "due_date", "board")
CUSTOMER_FIELDS = (
    "customer_id", "assigned_to_email", "customer_name", "customer_email", "customer_phone", "last_contact_date",
    "product_interest", "status", "follow_up_by", "notes",
)  # fmt: skip

DATE, TIME = "YYYY-MM-DD", "YYYY-MM-DD HH:MM:SS"
_PAGE = {"page": "page of results, from 1 (five a page)"}
_RANGE = {"time_min": f"first day, {DATE}", "time_max": f"last day, {DATE}"}


def _one_of(values: tuple[str, ...]) -> str:
    return f"one of: {', '.join(values)}"


_SPECIFICATION: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "company_directory_find_email_address": ("Email addresses that contain a name", {"name": "name or part of it"}, {}),
    "email_get_email_information_by_id": (
        "One field of an email",
        {"email_id": "8 digits", "field": _one_of(EMAIL_FIELDS)},
        {},
    ),
    "email_search_emails": (
        "Emails that hold all words of the query in subject, body or sender, newest first",
        {},
        {"query": "words", "date_min": f"first day, {DATE}", "date_max": f"last day, {DATE}", **_PAGE},
    ),
    "email_send_email": ("Sends an email", {"recipient": "email address", "subject": "subject", "body": "text"}, {}),
    "email_delete_email": ("Deletes an email", {"email_id": "8 digits"}, {}),
    "email_forward_email": ("Forwards an email", {"email_id": "8 digits", "recipient": "email address"}, {}),
    "email_reply_email": ("Replies to an email", {"email_id": "8 digits", "body": "text"}, {}),
    "calendar_get_event_information_by_id": (
        "One field of an event",
        {"event_id": "8 digits", "field": _one_of(EVENT_FIELDS)},
        {},
    ),
    "calendar_search_events": (
        "Events that hold the query in name or participant, earliest first",
        {},
        {"query": "text", "time_min": f"not ended before, {TIME}", "time_max": f"not started after, {TIME}", **_PAGE},
    ),
    "calendar_create_event": (
        "Creates an event",
        {
            "event_name": "name",
            "participant_email": "email address",
            "event_start": f"start, {TIME}",
            "duration": "minutes",
        },
        {},
    ),
    "calendar_delete_event": ("Deletes an event", {"event_id": "8 digits"}, {}),
    "calendar_update_event": (
        "Sets one field of an event",
        {"event_id": "8 digits", "field": _one_of(EVENT_FIELDS[1:]), "new_value": "new value"},
        {},
    ),
    "analytics_get_visitor_information_by_id": ("All visits of a visitor", {"visitor_id": "4 digits"}, {}),
    "analytics_create_plot": (
        "Plots a value over a time range",
        {**_RANGE, "value_to_plot": _one_of(PLOT_VALUES), "plot_type": _one_of(PLOT_TYPES)},
        {},
    ),
    "analytics_total_visits_count": ("Visits per day", {}, _RANGE),
    "analytics_engaged_users_count": ("Engaged users per day", {}, _RANGE),
    "analytics_traffic_source_count": (
        "Visits per day from a traffic source",
        {},
        {**_RANGE, "traffic_source": _one_of(SOURCES)},
    ),
    "analytics_get_average_session_duration": ("Mean seconds of a session per day", {}, _RANGE),
    "project_management_get_task_information_by_id": (
        "One field of a task",
        {"task_id": "8 digits", "field": _one_of(TASK_FIELDS)},
        {},
    ),
    "project_management_search_tasks": (
        "Tasks that match all given fields",
        {},
        {
            "task_name": "name or part of it",
            "assigned_to_email": "email address",
            "list_name": _one_of(LISTS),
            "due_date": DATE,
            "board": _one_of(BOARDS),
            **_PAGE,
        },
    ),
    "project_management_create_task": (
        "Creates a task",
        {
            "task_name": "name",
            "assigned_to_email": "email address",
            "list_name": _one_of(LISTS),
            "due_date": DATE,
            "board": _one_of(BOARDS),
        },
        {},
    ),
    "project_management_delete_task": ("Deletes a task", {"task_id": "8 digits"}, {}),
    "project_management_update_task": (
        "Sets one field of a task",
        {"task_id": "8 digits", "field": _one_of(TASK_FIELDS[1:]), "new_value": "new value"},
        {},
    ),
    "customer_relationship_manager_search_customers": (
        "Customers that match all given fields",
        {},
        {
            "customer_name": "name or part of it",
            "customer_email": "email address or part of it",
            "product_interest": _one_of(PRODUCTS),
            "status": _one_of(STATUSES),
            "assigned_to_email": "email address",
            "last_contact_date_min": DATE,
            "last_contact_date_max": DATE,
            "follow_up_by_min": DATE,
            "follow_up_by_max": DATE,
            **_PAGE,
        },
    ),
    "customer_relationship_manager_update_customer": (
        "Sets one field of a customer",
        {"customer_id": "8 digits", "field": _one_of(CUSTOMER_FIELDS[1:]), "new_value": "new value"},
        {},
    ),
    "customer_relationship_manager_add_customer": (
        "Adds a customer",
        {"customer_name": "name", "assigned_to_email": "email address", "status": _one_of(STATUSES)},
        {
            "customer_email": "email address",
            "customer_phone": "phone number",
            "last_contact_date": DATE,
            "product_interest": _one_of(PRODUCTS),
            "notes": "text",
            "follow_up_by": DATE,
        },
    ),
    "customer_relationship_manager_delete_customer": ("Deletes a customer", {"customer_id": "8 digits"}, {}),
}
"""Name to (description, required parameters, optional parameters)."""

REQUIRED = {name: frozenset(required) for name, (_, required, _) in _SPECIFICATION.items()}
ALLOWED = {name: frozenset((*required, *optional)) for name, (_, required, optional) in _SPECIFICATION.items()}


def _schema(name: str) -> Mapping[str, Any]:
    description, required, optional = _SPECIFICATION[name]
    properties = {
        key: {"type": "integer" if key == "page" else "string", "description": text}
        for key, text in (required | optional).items()
    }
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"name": name, "description": description, "parameters": parameters}


TOOLS: dict[str, Mapping[str, Any]] = {name: _schema(name) for name in _SPECIFICATION}
"""26 tools on the five databases, and the company directory, by name."""
