import copy
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.conversation import Answer, ToolCall
from nanoalign.data_recipes.workplace import workbench_tools as spec
from nanoalign.data_recipes.workplace.workbench import (
    LONGEST_RESULT,
    LONGEST_VALUE,
    MAX_ROWS,
    NOW,
    WorkBench,
    changes,
    same,
)
from nanoalign.data_recipes.workplace.workbench_data import load_office, load_tasks
from nanoalign.data_recipes.workplace.workbench_tools import TOOLS
from nanoalign.rollouts.environments import environment

DATA = Path(os.environ.get("NANOALIGN_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "workbench").is_dir(), reason=f"no WorkBench data under {DATA}")


@pytest.fixture(scope="module")
def start() -> WorkBench:
    return load_office(DATA)


@needs_data
def test_all_tables_and_tasks_load(start: WorkBench) -> None:
    assert {name: len(table) for name, table in start.tables.items()} == {
        "emails": 500, "calendar": 300, "tasks": 300, "customers": 200, "plots": 0,
    }  # fmt: skip
    assert len(start.visits) == 1000 and len(start.directory) == 20
    tasks = load_tasks(DATA)
    assert len(tasks) == 480 and len({task.id for task in tasks}) == 480
    assert sum(not task.calls for task in tasks) == 81
    assert 80 < sum(task.split == "test" for task in tasks) < 160
    sides: dict[tuple[str, str], str] = {}
    for task in tasks:
        assert sides.setdefault((task.request, str(task.calls)), task.split) == task.split


@needs_data
def test_the_tools_are_workbenchs() -> None:
    assert sum(not name.startswith("company_directory") for name in TOOLS) == 26
    for tool in TOOLS.values():
        assert set(tool["parameters"]["required"]) <= set(tool["parameters"]["properties"])


@needs_data
def test_each_reference_runs_and_equals_itself_and_side_effects_fail(start: WorkBench) -> None:
    no_change = 0
    for task in load_tasks(DATA):
        reference, again = start.copy(), start.copy()
        for office in (reference, again):
            for call in task.calls:
                assert not office.call(call.name, call.arguments).startswith("Error"), (task.id, call)
        assert same(reference, again)
        assert changes(start, reference) == changes(start, again)
        assert bool(changes(start, reference)) == (not same(reference, start))
        again.call("analytics_create_plot", _plot())
        assert not same(reference, again)
        assert len(changes(start, again)) == len(changes(start, reference)) + 1
        no_change += same(reference, start)
    assert no_change == 83  # 81 without calls, and two that ask for what is so already
    assert not start.tables["plots"], "a copy's calls changed the original"


def _plot() -> dict:
    return {"time_min": "2023-10-01", "time_max": "2023-10-02", "value_to_plot": "total_visits", "plot_type": "bar"}


@needs_data
def test_case_counts_in_status_list_name_and_board_only(start: WorkBench) -> None:
    loud, quiet = start.copy(), start.copy()
    name = "calendar_update_event"
    loud.call(name, {"event_id": "00000013", "field": "event_name", "new_value": "SYNC UP"})
    assert same(loud, quiet)
    row = loud.tables["tasks"]["00000149"]
    loud.tables["tasks"]["00000149"] = {**row, "list_name": row["list_name"].lower()}
    assert not same(loud, quiet)


@needs_data
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("email_burn", {}, "no tool"),
        ("email_delete_email", {}, "needs email_id"),
        ("email_delete_email", {"email_id": "1", "x": "2"}, "does not take x"),
        ("email_delete_email", {"email_id": ["1"]}, "texts"),
        ("email_delete_email", {"email_id": "99999999"}, "no row"),
        ("email_send_email", {"recipient": "raj", "subject": "s", "body": "b"}, "not an email address"),
        ("email_search_emails", {"date_min": "yesterday"}, "not a time"),
        ("email_search_emails", {"page": 0}, "page"),
        ("email_get_email_information_by_id", {"email_id": "00000373", "field": "colour"}, "field must be"),
        ("calendar_update_event", {"event_id": "00000013", "field": "event_id", "new_value": "1"}, "field must be"),
        ("calendar_update_event", {"event_id": "00000013", "field": "duration", "new_value": "long"}, "minutes"),
        ("project_management_update_task", {"task_id": "00000149", "field": "board", "new_value": "design"}, "board"),
        (
            "project_management_update_task",
            {"task_id": "00000149", "field": "assigned_to_email", "new_value": "x@atlas.com"},
            "directory",
        ),
        ("analytics_create_plot", {**_plot(), "plot_type": "pie"}, "plot_type"),
        ("analytics_traffic_source_count", {"traffic_source": "tv"}, "traffic_source"),
    ],
)
def test_wrong_calls_are_told_why_and_change_nothing(start: WorkBench, name: str, arguments: dict, said: str) -> None:
    office = start.copy()
    reply = office.call(name, arguments)
    assert reply.startswith("Error") and said in reply
    assert same(office, start)


@needs_data
def test_what_the_tools_see_and_do(start: WorkBench) -> None:
    office = start.copy()
    assert "raj.patel@atlas.com" in office.call("company_directory_find_email_address", {"name": "Raj"})
    newest = office.call("email_search_emails", {"query": "NADIA"})
    assert newest.index("00000479") < 40
    second = office.call("email_search_emails", {"query": "NADIA", "page": 2})
    assert second != newest and "nadia" in second
    later = office.call("calendar_search_events", {"time_min": "2023-12-13 00:00:00", "time_max": "2023-12-13"})
    assert later.count("2023-12-13") == later.count("event_start")
    assert '"2023-11-29"' in office.call("analytics_total_visits_count", {"time_min": "2023-11-28"})
    assert office.call("email_forward_email", {"email_id": "00000479", "recipient": "Raj.Patel@atlas.com"})
    sent = list(office.tables["emails"].values())[-1]
    assert sent["sent_datetime"] == NOW and sent["inbox/outbox"] == "outbox" and sent["email_id"] == "00000500"
    assert sent["sender/recipient"] == "raj.patel@atlas.com"


@needs_data
def test_environment_episodes() -> None:
    workbench = environment("workbench", DATA)
    tasks = workbench.tasks("test")
    assert {task.split for task in tasks} == {"test"}
    for task in [*tasks[:30], *tasks[-30:]]:
        assert len(task.tools) < 10
        episode = workbench.start(task)
        for call in task.data["calls"]:
            episode.step(Answer("", tool_calls=(ToolCall(call["name"], call["arguments"]),)))
        episode.step(Answer("Done."))
        assert episode.success()
        idle = workbench.start(task)
        idle.step(Answer("Done."))
        assert not idle.success() or len(task.data["calls"]) <= 1
    assert len(environment("workbench-all-tools", DATA).tasks("test")[0].tools) == 27


def test_missing_and_damaged_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"emails\.csv"):
        load_office(tmp_path)
    queries = tmp_path / "workbench" / "queries"
    queries.mkdir(parents=True)
    (queries / "analytics.csv").write_text("query,answer,base_template\nhi,\"['rm -rf']\",t\n")
    with pytest.raises(DataError, match=r"analytics\.csv: task 0"):
        load_tasks(tmp_path)


ANN = "ann.lee@atlas.com"


def desk() -> WorkBench:
    """An office with a row or two in each table, for tests without the benchmark's data."""
    tables = {
        "emails": dict(zip(spec.EMAIL_FIELDS, ("00000001", "inbox", ANN, "Hi", "2023-11-01 10:00:00", "Text"))),
        "calendar": dict(zip(spec.EVENT_FIELDS, ("00000001", "Sync", ANN, "2023-12-01 10:00:00", "30"))),
        "tasks": dict(zip(spec.TASK_FIELDS, ("00000001", "Fix", ANN, "Backlog", "2023-12-01", "Design"))),
        "customers": dict(zip(spec.CUSTOMER_FIELDS, ("00000001", ANN, "Bo", "bo@x.org", "1", "2023-11-01", "Software",
                                                     "Won", "2023-12-01", "none"))),
    }  # fmt: skip
    visit = {"visitor_id": "1234", "date_of_visit": "2023-10-01", "session_duration_seconds": "5",
             "user_engaged": "True", "traffic_source": "direct"}  # fmt: skip
    return WorkBench({**{name: {"00000001": row} for name, row in tables.items()}, "plots": {}}, (visit,), (ANN,))


SEARCHES = (
    "email_search_emails",
    "calendar_search_events",
    "project_management_search_tasks",
    "customer_relationship_manager_search_customers",
)
RANGE = {"query": "s", "time_min": "2023-01-01", "time_max": "2023-12-31"}
EVENT = {"event_name": "n", "participant_email": ANN, "event_start": "2023-12-01 10:00:00", "duration": 30}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {"page": page}) for name in SEARCHES for page in ("²", "9" * 5000, 10**5000, "٣", -1, 0, "1.0", True)),
        *((name, {"page": float(page)}) for name in SEARCHES for page in ("nan", "inf", "-inf", "1e300")),
        ("calendar_search_events", {"time_max": "9999-12-31"}),
        ("calendar_search_events", {"time_max": "9999-12-31 23:59:59"}),
        ("calendar_create_event", {**EVENT, "event_start": "9999-12-31 23:59:59"}),
        ("calendar_create_event", {**EVENT, "duration": "9" * 20}),
        ("calendar_create_event", {**EVENT, "duration": "²"}),
        ("calendar_create_event", {**EVENT, "duration": -30}),
        ("calendar_create_event", {**EVENT, "event_name": "\ud800"}),
        ("calendar_create_event", {**EVENT, "event_name": "n" * (LONGEST_VALUE + 1)}),
        ("calendar_create_event", {**EVENT, "event_name": {"a": [1]}}),
        ("calendar_update_event", {"event_id": "00000001", "field": "duration", "new_value": "9" * 20}),
        ("calendar_update_event", {"event_id": "00000001", "field": "event_start", "new_value": "9999-12-31"}),
        ("\ud800" * 10**6, {}),
        ("email_delete_email", {"email_id": "00000001", "x" * 10**6: 1, "\ud800": 2}),
    ],
)
def test_what_no_calendar_or_page_can_hold_is_told(name: str, arguments: dict[str, Any]) -> None:
    office = desk()
    reply = office.call(name, arguments)
    assert reply.startswith("Error") and len(reply.encode()) < 500
    assert office == desk()


def test_the_far_ends_of_the_calendar_are_searched() -> None:
    office = desk()
    late = {**EVENT, "event_start": "9998-12-31 23:59:59", "duration": 99_999}
    assert office.call("calendar_create_event", late).endswith("created.")
    everything = {"time_min": "0001-01-01", "time_max": "9998-12-31"}
    assert office.call("calendar_search_events", everything).count("event_id") == 2
    assert office.call("email_search_emails", {"date_min": "0500-01-01"}).count("email_id") == 1


def test_a_full_table_takes_no_more_and_long_rows_are_not_shown() -> None:
    office = desk()
    mail = {"recipient": ANN, "subject": "s" * LONGEST_VALUE, "body": "\u0007" * LONGEST_VALUE}
    replies = [office.call("email_send_email", mail) for _ in range(MAX_ROWS)]
    assert replies[0].endswith("sent.") and replies[-1].startswith("Error")
    assert office.call("email_search_emails", {}) == "Error: the result is too long to show."
    assert office.call("email_search_emails", {"query": "hi"}).startswith("[")


awkward = st.sampled_from(
    ["00000001", "1234", ANN, "2023-12-01", "2023-12-01 10:00:00", "9999-12-31", "9999-12-31 23:59:59", "0001-01-01",
     "²", "9" * 20, "9" * 5000, "<10**5000>", -1, 0, 30, 1e308, float("nan"), float("-inf"), True, None, "",
     "\ud800", "\x00", "x" * 100_000, [], {}, *spec.BOARDS, *spec.LISTS, *spec.STATUSES, *spec.SOURCES,
     *spec.PLOT_TYPES, *spec.PLOT_VALUES, *spec.EMAIL_FIELDS, *spec.EVENT_FIELDS, *spec.CUSTOMER_FIELDS]
).map(lambda value: 10**5000 if value == "<10**5000>" else value)  # fmt: skip
json_values = st.recursive(
    awkward | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)


@st.composite
def a_call(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    name = draw(st.sampled_from(sorted(TOOLS)))
    optional = dict.fromkeys(sorted(spec.ALLOWED[name] - spec.REQUIRED[name]), json_values)
    required = dict.fromkeys(sorted(spec.REQUIRED[name]), awkward | json_values)
    arguments = draw(st.fixed_dictionaries(required, optional=optional))
    return name, arguments | draw(st.just({}) | st.dictionaries(st.text(), json_values, max_size=1))


@settings(deadline=None)
@given(st.lists(a_call(), max_size=4))
def test_whatever_is_called_the_office_answers_and_goes_on(made: list[tuple[str, dict[str, Any]]]) -> None:
    office = desk()
    for name, arguments in made:
        before = copy.deepcopy(office.tables)
        reply = office.call(name, arguments)
        assert len(reply) <= LONGEST_RESULT and reply.encode()
        assert not reply.startswith("Error") or office.tables == before
        for search in SEARCHES:
            assert office.call(search, {}).startswith(("[", "Nothing found", "Error: the result is too long"))
        assert office.call("calendar_search_events", RANGE).startswith(("[", "Nothing found", "Error: the result"))
    assert same(office, office.copy())
