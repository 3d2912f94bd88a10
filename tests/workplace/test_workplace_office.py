import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.conversation import Answer, ToolCall
from nanoalign.data_recipes.workplace.office import (
    DAYS,
    HOURS,
    PARAMETERS,
    PEOPLE,
    TITLES,
    TOOLS,
    Event,
    Office,
    changes,
    same,
)
from nanoalign.data_recipes.workplace.office_tasks import KINDS, REQUESTS, demonstration, tasks
from nanoalign.rollouts.environments import environment


def office() -> Office:
    return Office({"e10": Event("demo", "Tue", 9), "e20": Event("yoga", "Tue", 12), "e30": Event("demo", "Fri", 8)})


def test_the_tools_schemas_stay_short() -> None:
    assert len(json.dumps(list(TOOLS))) < 360


@pytest.mark.parametrize(
    ("name", "arguments", "reply"),
    [
        ("find", {"q": "demo"}, "e10 demo Tue 9; e30 demo Fri 8"),
        ("find", {"q": "tue"}, "e10 demo Tue 9; e20 yoga Tue 12"),
        ("find", {"q": "dem"}, "none"),
        ("add", {"title": "lunch", "day": "Mon", "hour": 12}, "ok e11"),
        ("move", {"id": "e10", "day": "Wed", "hour": 9}, "ok"),
        ("drop", {"id": "e20"}, "ok"),
        ("mail", {"to": "Ann", "text": "demo Tue 9"}, "ok"),
        ("grow", {}, "error: no tool grow"),
        ("drop", {}, "error: drop needs id"),
        ("drop", {"id": "e20", "day": "Tue"}, "error: drop needs id"),
        ("drop", {"id": "e99"}, "error: no event e99"),
        ("drop", {"id": 20}, "error: bad id"),
        ("move", {"id": "e10", "day": "Sun", "hour": 9}, "error: bad day"),
        ("move", {"id": "e10", "day": "Mon", "hour": 18}, "error: bad hour"),
        ("move", {"id": "e10", "day": "Mon", "hour": "9"}, "error: bad hour"),
        ("move", {"id": "e10", "day": "Mon", "hour": True}, "error: bad hour"),
        ("mail", {"to": "Zoe", "text": "hi"}, "error: no person Zoe"),
        ("mail", {"to": "Ann", "text": ""}, "error: bad text"),
    ],
)
def test_replies(name: str, arguments: dict, reply: str) -> None:
    state = office()
    assert state.call(name, arguments) == reply
    changed = name != "find" and not reply.startswith("error")
    assert same(state, office()) is not changed


def test_state_equality_ignores_order_and_case_only() -> None:
    left, right = office(), office()
    left.mails = [("Ann", "Hi"), ("Bob", "x")]
    right.mails = [("Bob", "X"), ("ann", "hi")]
    right.events = dict(reversed(right.events.items()))
    assert same(left, right)
    right.mails.append(("Ann", "hi"))
    assert not same(left, right)


awkward = st.sampled_from(
    [
        *DAYS,
        *TITLES,
        *PEOPLE,
        *HOURS,
        "e10",
        "²",
        "9" * 5000,
        "<10**5000>",
        "\ud800",
        "x" * 10**5,
        float("nan"),
        None,
        True,
    ]
).map(lambda value: 10**5000 if value == "<10**5000>" else value)
any_value = st.recursive(
    awkward | st.integers() | st.text() | st.floats(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)
a_call = st.sampled_from([*PARAMETERS, "x", "\ud800" * 1000]).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.fixed_dictionaries(dict.fromkeys(PARAMETERS.get(name, ()), any_value))
        | st.dictionaries(st.text(), any_value),
    )
)


@settings(deadline=None)
@given(st.lists(a_call, max_size=4))
def test_whatever_is_called_the_office_answers_and_goes_on(made: list[tuple[str, dict]]) -> None:
    state = office()
    for name, arguments in made:
        before = state.copy()
        reply = state.call(name, arguments)
        assert len(reply.encode()) < 30_000
        assert not reply.startswith("error") or state == before
        assert not state.call("find", {"q": "yoga"}).startswith("error")
    assert same(state, state.copy())


def test_a_full_calendar_and_outbox_take_no_more() -> None:
    state = office()
    for _ in range(12_800):
        added = state.call("add", {"title": "x" * 200, "day": "Mon", "hour": 9})
        mailed = state.call("mail", {"to": "Ann", "text": "hi"})
    assert (added, mailed) == ("error: calendar full", "error: outbox full")
    assert state.call("find", {"q": "yoga"}) == "e20 yoga Tue 12" and len(state.call("find", {"q": "mon"})) < 30_000


def test_tasks_follow_the_seed_and_the_splits_never_meet() -> None:
    train, test = tasks("train", 1500, 3), tasks("test", 500, 4)
    assert train[:50] == tasks("train", 50, 3)
    assert not {task.id for task in train} & {task.id for task in test}
    facts = {(task.kind, str(task.calls), task.closing) for task in train}
    assert not facts & {(task.kind, str(task.calls), task.closing) for task in test}
    assert {task.kind for task in test} == set(KINDS) == set(REQUESTS)
    with pytest.raises(ConfigError, match="split"):
        tasks("dev", 1, 0)


def test_every_request_has_four_phrasings() -> None:
    assert all(len(phrasings) >= 4 for phrasings in REQUESTS.values())


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_a_reference_changes_the_office_without_an_error(seed: int) -> None:
    for task in tasks("train", 3, seed):
        conversation = demonstration(task, random.Random(seed))
        texts = [message.content for message in conversation.messages]
        assert not any(text.startswith("error") for text in texts)
        assert not same(task.office, task.reference())
        assert 1 <= len(task.calls) <= 3
        assert all(m.reasoning and m.reasoning.isascii() for m in conversation.messages if m.role == "assistant")
        assert all(event.title in TITLES and event.hour in HOURS for event in task.reference().events.values())
        assert all(to in PEOPLE for to, _ in task.reference().mails)


def test_what_a_reference_needs_is_in_the_request_or_in_a_reply() -> None:
    for task in tasks("test", 300, 5):
        if task.kind in ("later", "earlier"):
            continue
        known = task.request
        office = task.office.copy()
        for call in task.calls:
            for value in call.arguments.values():
                assert all(word in known for word in str(value).split()), task
            known += " " + office.call(call.name, call.arguments)


def test_episodes_succeed_by_reference_and_fail_by_side_effect() -> None:
    workplace = environment("miniature-workplace", None)
    train, test = workplace.tasks("train"), workplace.tasks("test")
    assert len(test) > 900 and len(train) > 5000
    assert not {task.id for task in train} & {task.id for task in test}
    for task in test[:100]:
        calls = [ToolCall(call["name"], call["arguments"]) for call in task.data["calls"]]
        good, extra, short, unfinished = (workplace.start(task) for _ in range(4))
        for call in calls:
            for episode in (good, extra, unfinished):
                (result,) = episode.step(Answer("", tool_calls=(call,)))
                assert result.role == "tool"
        extra.step(Answer("", tool_calls=(ToolCall("mail", {"to": "Ann", "text": "by the way"}),)))
        for episode in (good, extra, short):
            assert not episode.step(Answer("Done."))
        assert good.success()
        assert not extra.success() and not short.success() and not unfinished.success()
        with pytest.raises(RuntimeError, match="over"):
            good.step(Answer("More."))


def test_an_unknown_environment_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="miniature-workplace"):
        environment("miniature-workspace", None)
    with pytest.raises(ConfigError, match="data-root"):
        environment("workbench", None)


calls = st.lists(
    st.one_of(
        st.builds(lambda id, hour: ("move", {"id": id, "day": "Mon", "hour": hour}), st.sampled_from(["e10", "e20"]),
                  st.integers(8, 9)),
        st.builds(lambda id: ("drop", {"id": id}), st.sampled_from(["e20", "e30"])),
        st.builds(lambda title: ("add", {"title": title, "day": "Fri", "hour": 9}), st.sampled_from(["a", "A", "b"])),
        st.builds(lambda to: ("mail", {"to": to, "text": "hi"}), st.sampled_from(PEOPLE[:2])),
    ),
    max_size=4,
)  # fmt: skip


@given(ours=calls, wanted=calls)
def test_changes_are_equal_where_the_states_are(
    ours: list[tuple[str, dict[str, object]]], wanted: list[tuple[str, dict[str, object]]]
) -> None:
    left, right = office(), office()
    for state, asked in ((left, ours), (right, wanted)):
        for name, arguments in asked:
            state.call(name, arguments)
    assert (changes(office(), left) == changes(office(), right)) == same(left, right)
    assert not changes(left, left.copy())


def test_credit_is_the_share_of_what_changed_as_it_should() -> None:
    workplace = environment("miniature-workplace", None)
    task = next(each for each in workplace.tasks("train") if len(each.data["calls"]) > 1)
    wanted = [ToolCall(call["name"], call["arguments"]) for call in task.data["calls"]]
    half, whole, idle = (workplace.start(task) for _ in range(3))
    whole.step(Answer("", tool_calls=tuple(wanted)))
    half.step(Answer("", tool_calls=(ToolCall("mail", {"to": "Ann", "text": "unasked"}), *wanted)))
    assert whole.credit() == 1 and idle.credit() == 0
    assert 0 < half.credit() < 1
