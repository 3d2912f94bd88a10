import os
from pathlib import Path

import pytest

from nanoalign.data_recipes.chat.answers import as_answer
from nanoalign.data_recipes.conversation import ToolCall
from nanoalign.data_recipes.workplace.lookups import lookups
from nanoalign.data_recipes.workplace.replay import trajectories
from nanoalign.data_recipes.workplace.workbench import same
from nanoalign.data_recipes.workplace.workbench_data import WorkBenchTask, load_office, load_tasks
from nanoalign.rollouts.environments import environment

DATA = Path(os.environ.get("NANOALIGN_DATA", Path(__file__).parents[3] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not (DATA / "workbench").is_dir(), reason=f"no WorkBench data under {DATA}")


def test_most_tasks_can_be_told_with_their_look_ups() -> None:
    with_calls = [task for task in load_tasks(DATA) if task.calls]
    told = trajectories(DATA, "train") + trajectories(DATA, "test")
    assert len(told) >= 0.95 * len(with_calls)
    assert len({conversation.id for conversation in told}) == len(told)


def test_every_id_and_address_was_seen_before_it_is_used() -> None:
    for conversation in trajectories(DATA, "train"):
        seen = ""
        for message in conversation.messages:
            for call in message.tool_calls:
                for name, value in call.arguments.items():
                    if name.endswith("_id") or (name == "recipient" and "@" in value):
                        assert value in seen, (conversation.id, value)
            seen += message.content


def test_trajectories_succeed_in_the_environment_without_an_error() -> None:
    workbench = environment("workbench", DATA)
    tasks = {task.id: task for task in workbench.tasks("train")}
    for conversation in trajectories(DATA, "train"):
        assert not any(m.content.startswith("Error") for m in conversation.messages if m.role == "tool")
        names = {tool["name"] for tool in conversation.tools}
        episode = workbench.start(tasks[conversation.id])
        said = list(tasks[conversation.id].prompt)
        for message in conversation.messages:
            assert {call.name for call in message.tool_calls} <= names
            if message.role == "assistant":
                said += [message, *episode.step(as_answer(message))]
        assert episode.success() and said == list(conversation.messages)


def test_look_ups_change_nothing_and_follow_the_request() -> None:
    office = load_office(DATA)
    delete = ToolCall("email_delete_email", {"email_id": "00000479"})
    task = WorkBenchTask("t", "email", "train", "Delete my last email from nadia", (delete,))
    found = lookups(task, office)
    assert found == (ToolCall("email_search_emails", {"query": "nadia"}),)
    assert same(office, load_office(DATA))
    assert lookups(WorkBenchTask("t", "email", "train", "Delete it", (delete,)), office) is None
    plot = ToolCall("analytics_create_plot", {"time_min": "2023-11-01", "time_max": "2023-11-02",
                                              "value_to_plot": "visits_direct", "plot_type": "line"})  # fmt: skip
    popular = WorkBenchTask("t", "analytics", "train", "Plot the most popular traffic source", (plot,))
    assert len(lookups(popular, office) or ()) == 4
