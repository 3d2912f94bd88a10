"""The miniature workplace's tasks: one to three reference calls in an :class:`~data_recipes.workplace.office.Office`.

Most tasks need a look-up whose id, day or hour goes into a later call; some need arithmetic on what was found, some
must distinguish two events with the same title. As in WorkBench, a task succeeds when the end state equals the
reference's; whatever was changed beyond that is a failure.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.conversation import Conversation, Message, ToolCall
from nanoalign.data_recipes.workplace.office import DAYS, HOURS, PARAMETERS, PEOPLE, TITLES, TOOLS, Event, Office

REQUESTS: dict[str, tuple[str, ...]] = {
    "add": (
        "Book {title} on {day} at {hour}.",
        "Put {title} in my calendar, {day} at {hour}.",
        "I need {title} on {day}, {hour} o'clock.",
        "Add {title} for {day} at {hour}, please.",
        "Can you plan {title} at {hour} on {day}?",
    ),
    "drop": (
        "Cancel {what}.",
        "Please drop {what}.",
        "I can't make {what}, take it out.",
        "Remove {what} from my calendar.",
        "Delete {what}, will you?",
    ),
    "move": (
        "Move {what} to {day}.",
        "Can you put {what} on {day} instead?",
        "Shift {what} to {day}, same hour.",
        "Reschedule {what} to {day}.",
        "I want {what} on {day}, not then.",
    ),
    "later": (
        "Start {what} {n} later.",
        "Push {what} back by {n}.",
        "Delay {what} by {n}.",
        "Make {what} {n} later, please.",
    ),
    "earlier": (
        "Start {what} {n} earlier.",
        "Bring {what} forward by {n}.",
        "Make {what} {n} earlier, please.",
        "I need {what} {n} sooner.",
    ),
    "tell": (
        "Tell {to} when {what} is.",
        "Mail {to} the time of {what}.",
        "{to} asks when {what} is. Answer by mail.",
        "Let {to} know when we have {what}.",
        "Write to {to} when {what} takes place.",
    ),
    "clear": (
        "Cancel everything on {day}.",
        "Clear my {day}.",
        "I am away on {day}, drop it all.",
        "Take all events off {day}.",
    ),
    "join": (
        "Put {what} on the same day as {other}.",
        "Move {what} to the day of {other}.",
        "I want {what} the day {other} is.",
        "Can {what} be on the day of {other}? Keep the hour.",
    ),
    "announce": (
        "Move {what} to {day} and tell {to}.",
        "Put {what} on {day} instead and mail {to} the new time.",
        "Shift {what} to {day}, then let {to} know.",
        "Reschedule {what} to {day}. {to} should hear of it.",
    ),
}


@dataclass(frozen=True)
class Step:
    """One reference call, and the thoughts that may lead to it."""

    thoughts: tuple[str, ...]
    call: ToolCall


@dataclass(frozen=True)
class OfficeTask:
    """A request to the office: what is asked, where it starts, and a right way through."""

    id: str
    kind: str
    split: str
    request: str
    office: Office
    steps: tuple[Step, ...]
    closing: str
    """The reference's last message."""

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(step.call for step in self.steps)

    def reference(self) -> Office:
        """The office after the reference calls."""
        office = self.office.copy()
        for call in self.calls:
            office.call(call.name, call.arguments)
        return office


@dataclass(frozen=True)
class _Draft:
    """What a kind of task decides: the slots of its request, the reference steps, the closing words."""

    slots: dict[str, Any]
    steps: tuple[Step, ...]
    closing: str


@dataclass(frozen=True)
class _Target:
    """An event, the words that single it out, the look-up that finds it, and the thought on seeing the reply."""

    id: str
    event: Event
    words: str
    find: Step
    seen: str


def _call(name: str, *values: Any) -> ToolCall:
    return ToolCall(name, dict(zip(PARAMETERS[name], values, strict=True)))


def _twins(office: Office, title: str) -> bool:
    return sum(event.title == title for event in office.events.values()) > 1


def _target(office: Office, rng: random.Random) -> _Target:
    id, event = rng.choice(list(office.events.items()))
    twins = _twins(office, event.title)
    words = rng.choice((f"{event.title} on {event.day}", f"{event.day}'s {event.title}")) if twins else event.title
    thoughts = (f"I need the id of {words}.", f"First find {words}.", f"Where is {words}?")
    seen = f"The one on {event.day} is {id}." if twins else f"It is {id}."
    return _Target(id, event, words, Step(thoughts, _call("find", event.title)), seen)


def _draw_office(rng: random.Random) -> Office:
    """Four to six events; in half of the offices one title occurs on two days."""
    titles = rng.sample(TITLES, rng.randint(4, 5))
    days = rng.choices(DAYS, k=len(titles))
    if rng.random() < 0.5:
        titles.append(titles[0])
        days.append(_other_day(days[0], rng))
    events = [Event(title, day, rng.choice(HOURS)) for title, day in zip(titles, days)]
    rng.shuffle(events)
    return Office({f"e{id}": event for id, event in zip(rng.sample(range(10, 100), len(events)), events)})


def _other_day(day: str, rng: random.Random) -> str:
    return rng.choice([other for other in DAYS if other != day])


def _add(office: Office, rng: random.Random) -> _Draft:
    event = Event(rng.choice(TITLES), rng.choice(DAYS), rng.choice(HOURS))
    thoughts = ("This is new, so I add it.", f"I add {event.title}, no need to look.", "One call is enough.")
    step = Step(thoughts, _call("add", event.title, event.day, event.hour))
    return _Draft({"title": event.title, "day": event.day, "hour": event.hour}, (step,), f"Added {event}.")


def _drop(office: Office, rng: random.Random) -> _Draft:
    target = _target(office, rng)
    drop = Step((f"{target.seen} Drop it.", f"{target.seen} Now it can go."), _call("drop", target.id))
    return _Draft({"what": target.words}, (target.find, drop), f"Dropped {target.event}.")


def _move(office: Office, rng: random.Random) -> _Draft:
    target = _target(office, rng)
    event = replace(target.event, day=_other_day(target.event.day, rng))
    thoughts = (f"{target.seen} Hour {event.hour} stays.", f"{target.seen} Still at {event.hour}, but on {event.day}.")
    move = Step(thoughts, _call("move", target.id, event.day, event.hour))
    return _Draft({"what": target.words, "day": event.day}, (target.find, move), f"Moved, now {event}.")


def _shift(office: Office, rng: random.Random, sign: int) -> _Draft | None:
    target = _target(office, rng)
    n, old = rng.randint(1, 4), target.event.hour
    event = replace(target.event, hour=old + sign * n)
    if event.hour not in HOURS:
        return None
    thoughts = (f"{target.seen} {old} {'+' if sign > 0 else '-'} {n} = {event.hour}.",)
    move = Step(thoughts, _call("move", target.id, event.day, event.hour))
    slots = {"what": target.words, "n": f"{n} hour{'s' if n > 1 else ''}"}
    return _Draft(slots, (target.find, move), f"Moved, now {event}.")


def _later(office: Office, rng: random.Random) -> _Draft | None:
    return _shift(office, rng, 1)


def _earlier(office: Office, rng: random.Random) -> _Draft | None:
    return _shift(office, rng, -1)


def _tell(office: Office, rng: random.Random) -> _Draft:
    target, to = _target(office, rng), rng.choice(PEOPLE)
    thoughts = (f"{target.seen} Mail {to} that.", f"{target.seen} Now {to} can know.")
    mail = Step(thoughts, _call("mail", to, str(target.event)))
    return _Draft({"what": target.words, "to": to}, (target.find, mail), f"Told {to}: {target.event}.")


def _clear(office: Office, rng: random.Random) -> _Draft | None:
    day = rng.choice(DAYS)
    ids = [id for id, event in office.events.items() if event.day == day]
    if not 1 <= len(ids) <= 2:
        return None
    find = Step((f"What is on {day}?", f"I look at {day} first."), _call("find", day))
    drops = [Step((f"Drop {id}.", f"{id} can go."), _call("drop", id)) for id in ids]
    return _Draft({"day": day}, (find, *drops), f"{day} is free.")


def _join(office: Office, rng: random.Random) -> _Draft | None:
    target, other = _target(office, rng), _target(office, rng)
    if target.event.day == other.event.day or _twins(office, other.event.title):
        return None
    event = replace(target.event, day=other.event.day)
    find = Step(tuple(f"{target.seen} {thought}" for thought in other.find.thoughts), other.find.call)
    thoughts = (f"{other.words} is on {event.day}. Move {target.id}, hour {event.hour}.",)
    move = Step(thoughts, _call("move", target.id, event.day, event.hour))
    return _Draft({"what": target.words, "other": other.words}, (target.find, find, move), f"Moved, now {event}.")


def _announce(office: Office, rng: random.Random) -> _Draft:
    draft, to = _move(office, rng), rng.choice(PEOPLE)
    arguments = draft.steps[-1].call.arguments
    event = replace(office.events[arguments["id"]], day=arguments["day"])
    mail = Step((f"Moved. Now mail {to}.", f"{to} must know."), _call("mail", to, str(event)))
    return _Draft({**draft.slots, "to": to}, (*draft.steps, mail), f"Moved and told {to}: {event}.")


KINDS: dict[str, tuple[int, Callable[[Office, random.Random], _Draft | None]]] = {
    "add": (2, _add),
    "drop": (2, _drop),
    "move": (3, _move),
    "later": (2, _later),
    "earlier": (2, _earlier),
    "tell": (3, _tell),
    "clear": (2, _clear),
    "join": (2, _join),
    "announce": (3, _announce),
}
"""Kind of task to its weight in the draw and its maker; a maker answers None where an office does not fit."""


def _draw(rng: random.Random) -> OfficeTask:
    kind = rng.choices(list(KINDS), weights=[weight for weight, _ in KINDS.values()])[0]
    draft = None
    while draft is None:
        office = _draw_office(rng)
        draft = KINDS[kind][1](office, rng)
    request = rng.choice(REQUESTS[kind]).format(**draft.slots)
    request = request[0].upper() + request[1:]
    essence = f"{kind} {draft.slots} {[step.call for step in draft.steps]} {draft.closing}"
    digest = hashlib.sha256(essence.encode()).hexdigest()
    split = "test" if int(digest[:8], 16) % 5 == 0 else "train"
    return OfficeTask(f"office-{kind}-{digest[8:20]}", kind, split, request, office, draft.steps, draft.closing)


def tasks(split: str, n: int, seed: int) -> list[OfficeTask]:
    """``n`` tasks of ``split`` (train or test), a function of the seed.

    What a task is about (kind, words of the request, ids, days and hours found) decides its split by a hash, one in
    five is test: whatever the seeds, no test instance is ever a training instance, in any paraphrase.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"split must be train or test, not {split!r}")
    rng = random.Random(f"office {seed}")
    drawn: list[OfficeTask] = []
    while len(drawn) < n:
        task = _draw(rng)
        if task.split == split:
            drawn.append(task)
    return drawn


def demonstration(task: OfficeTask, rng: random.Random) -> Conversation:
    """The reference run as a conversation: a short thought before each call, the tools' replies, a closing message."""
    office = task.office.copy()
    messages = [Message("user", task.request)]
    for step in task.steps:
        messages.append(Message("assistant", "", reasoning=rng.choice(step.thoughts), tool_calls=(step.call,)))
        messages.append(Message("tool", office.call(step.call.name, step.call.arguments)))
    thought = rng.choice(("All done.", "That was it.", "Done, I report."))
    messages.append(Message("assistant", task.closing, reasoning=thought))
    return Conversation(
        messages=tuple(messages),
        tools=TOOLS,
        domain="tools",
        source="miniature-workplace",
        licence="Apache-2.0",
        id=task.id,
        task={"kind": "tools", "calls": expected(task.calls[:1])},
    )


def expected(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Calls as the JSON of a ``tools`` task (see reward/tools.py)."""
    return [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
