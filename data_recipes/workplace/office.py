"""The miniature office: one person's calendar and outbox behind five short tools.

Small enough for a model of a few million parameters and a vocabulary of 2k tokens: everything is ASCII, names are one
word, results a few characters.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from nanoalign.data_recipes.workplace.quoting import is_unicode, quote

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri")
HOURS = range(8, 18)
TITLES = (
    "budget", "demo", "lunch", "yoga", "review", "standup", "hiring", "retro",
    "sales", "launch", "design", "training", "board", "travel", "press",
)  # fmt: skip
PEOPLE = ("Ann", "Bob", "Cid", "Dee", "Eli", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo")
PARAMETERS: dict[str, tuple[str, ...]] = {
    "find": ("q",),
    "add": ("title", "day", "hour"),
    "move": ("id", "day", "hour"),
    "drop": ("id",),
    "mail": ("to", "text"),
}
TOOLS: tuple[Mapping[str, Any], ...] = tuple(
    {"name": name, "parameters": {"properties": {key: {} for key in keys}}} for name, keys in PARAMETERS.items()
)
"""Valid JSON schemas, as short as can be (359 characters): a description would cost more tokens than it teaches."""
LONGEST_TEXT = 200
"""Characters of a title or a mail; the tasks' own have some 20."""
MAX_EVENTS = 100
MAX_MAILS = 100


@dataclass(frozen=True)
class Event:
    title: str
    day: str
    hour: int

    def __str__(self) -> str:
        return f"{self.title} {self.day} {self.hour}"


@dataclass
class Office:
    """The state: events by id, and what was mailed as (to, text)."""

    events: dict[str, Event]
    mails: list[tuple[str, str]] = field(default_factory=list)

    def copy(self) -> "Office":
        return Office(dict(self.events), list(self.mails))

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Runs one tool call and answers with a short text, whatever the arguments; a wrong call changes nothing and
        says why."""
        if name not in PARAMETERS:
            return f"error: no tool {quote(name)}"
        if set(arguments) != set(PARAMETERS[name]):
            return f"error: {name} needs {', '.join(PARAMETERS[name])}"
        wrong = self._wrong(arguments)
        return f"error: {wrong}" if wrong else getattr(self, f"_{name}")(**arguments)

    def _wrong(self, arguments: Mapping[str, Any]) -> str | None:
        for key, value in arguments.items():
            if key == "hour":
                if type(value) is not int or value not in HOURS:
                    return "bad hour"
            elif not isinstance(value, str) or not value or len(value) > LONGEST_TEXT or not is_unicode(value):
                return f"bad {key}"
            elif key == "day" and value not in DAYS:
                return "bad day"
            elif key == "to" and value not in PEOPLE:
                return f"no person {value}"
            elif key == "id" and value not in self.events:
                return f"no event {value}"
        return None

    def _find(self, q: str) -> str:
        found = [f"{id} {event}" for id, event in self.events.items() if q.lower() in str(event).lower().split()]
        return "; ".join(found) or "none"

    def _add(self, title: str, day: str, hour: int) -> str:
        if len(self.events) >= MAX_EVENTS:
            return "error: calendar full"
        id = next(f"e{n}" for n in count(10) if f"e{n}" not in self.events)
        self.events[id] = Event(title, day, hour)
        return f"ok {id}"

    def _move(self, id: str, day: str, hour: int) -> str:
        self.events[id] = replace(self.events[id], day=day, hour=hour)
        return "ok"

    def _drop(self, id: str) -> str:
        del self.events[id]
        return "ok"

    def _mail(self, to: str, text: str) -> str:
        if len(self.mails) >= MAX_MAILS:
            return "error: outbox full"
        self.mails.append((to, text))
        return "ok"


def same(left: Office, right: Office) -> bool:
    """State equality: the same events under the same ids and the same mails, in any order; case does not count."""

    def normal(office: Office) -> tuple[Any, ...]:
        events = sorted((id, str(event).lower()) for id, event in office.events.items())
        return events, sorted((to.lower(), text.lower()) for to, text in office.mails)

    return normal(left) == normal(right)


def changes(before: Office, after: Office) -> frozenset[tuple[Any, ...]]:
    """Events that are new, other or gone, and mails that were sent; case does not count."""
    old, new = ({id: str(event).lower() for id, event in office.events.items()} for office in (before, after))
    events = {(id, new.get(id)) for id in old.keys() | new.keys() if old.get(id) != new.get(id)}
    mails = Counter((to.lower(), text.lower()) for to, text in after.mails)
    mails.subtract((to.lower(), text.lower()) for to, text in before.mails)
    return frozenset(events) | {(*mail, number) for mail, count in mails.items() for number in range(count)}
