"""What RULER's tasks are made of: words, keys, essays, documents with questions.

Where the data root has a `ruler` folder with the generator's own files they are taken: ``PaulGrahamEssays.json``
(``{"text": ...}``), ``squad.json`` (SQuAD 2.0's dev set) and ``hotpotqa.json`` (HotpotQA's distractor dev set).
Otherwise texts are written here from a small grammar, the same everywhere; a task says which (``RulerTask.texts``).
"""

import json
import random
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from nanoalign.common.errors import DataError

NOISE = (
    "Rain runs down the window.", "The kettle is on the stove.", "A dog sleeps by the door.",
    "We walk to the sea and back.", "Then the day is over.",
)  # fmt: skip
"""What a haystack of noise repeats."""
SYNTHETIC = "synthetic"
Document = str
Asked = tuple[str, tuple[str, ...], list[Document]]
"""A question of a data set, its answers, and the documents that it comes with."""
Question = tuple[str, tuple[str, ...], list[Document], Callable[[int], Document]]
"""A question, its answers, the documents that hold them, and any number of others."""


@cache
def words() -> tuple[str, ...]:
    """3,600 English words of four to ten letters, no two of one stem (taken from GSM8K's and others' questions)."""
    return tuple(Path(__file__).with_name("words.txt").read_text(encoding="ascii").split())


def key_words(generator: random.Random) -> list[str]:
    """All words in random order."""
    return generator.sample(words(), len(words()))


def two_words(generator: random.Random) -> str:
    return "-".join(generator.sample(words(), 2))


def number(generator: random.Random) -> str:
    return str(generator.randrange(1_000_000, 10_000_000))


def identifier(generator: random.Random) -> str:
    return str(uuid.UUID(int=generator.getrandbits(128), version=4))


@dataclass(frozen=True)
class Texts:
    """The texts that tasks are made of."""

    essay: tuple[str, ...]
    """Sentences."""
    sources: dict[str, str] = field(default_factory=dict)
    """Of essay, qa_1 and qa_2: a file's name; absent where they are written here."""
    rows: dict[str, list[Asked]] = field(default_factory=dict)
    """qa_1 and qa_2: questions with answers and their documents."""
    pool: dict[str, list[Document]] = field(default_factory=dict)

    def name_for(self, kind: str) -> str:
        return self.sources.get(kind if kind.startswith("qa") else "essay", SYNTHETIC)

    def question(self, kind: str, generator: random.Random) -> Question:
        """A question, and other documents without end: those of the set in random order, over again where all are
        taken."""
        if kind not in self.rows:
            return _written(kind, generator)
        text, answers, needed = self.rows[kind][generator.randrange(len(self.rows[kind]))]
        others = [document for document in generator.sample(self.pool[kind], len(self.pool[kind]))
                  if document not in needed]  # fmt: skip
        return text, answers, needed, lambda place: others[place % len(others)]


@cache
def load_texts(data_root: Path | None) -> Texts:
    """The texts under a data root, and our own where it has none.

    Raises:
        DataError: a file is there and not what it should be.
    """
    folder = None if data_root is None else data_root / "ruler"
    sources: dict[str, str] = {}

    def read(key: str, name: str, reader: Callable[[Any], Any]) -> Any:
        if folder is None or not (folder / name).is_file():
            return None
        try:
            found = reader(json.loads((folder / name).read_text(encoding="utf-8")))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{folder / name}: not RULER's {key}: {type(error).__name__}: {error}") from None
        if not found:
            raise DataError(f"{folder / name}: empty")
        sources[key] = name
        return found

    essay = read("essay", "PaulGrahamEssays.json", _sentences) or _essay()
    asked: dict[str, list[Asked] | None] = {
        "qa_1": read("qa_1", "squad.json", _squad), "qa_2": read("qa_2", "hotpotqa.json", _hotpot),
    }  # fmt: skip
    rows = {key: found for key, found in asked.items() if found}
    pool = {
        key: list(dict.fromkeys(document for _, _, needed in found for document in needed))
        for key, found in rows.items()
    }
    return Texts(essay, sources, rows, pool)


def _sentences(read: Any) -> tuple[str, ...]:
    return tuple(part for part in re.split(r"(?<=[.!?])\s+", " ".join(read["text"].split())) if part)


def _squad(read: Any) -> list[Asked]:
    return [
        (asked["question"], tuple(dict.fromkeys(answer["text"] for answer in asked["answers"])), [part["context"]])
        for article in read["data"] for part in article["paragraphs"] for asked in part["qas"]
        if not asked.get("is_impossible") and asked["answers"]
    ]  # fmt: skip


def _hotpot(read: Any) -> list[Asked]:
    return [
        (row["question"], (row["answer"],), [f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]])
        for row in read
    ]


_PEOPLE = ("a teacher", "the baker", "my neighbour", "an old sailor", "the gardener", "a young doctor", "the librarian",
           "a painter", "her brother", "the postman", "a farmer", "their daughter")  # fmt: skip
_DOES = ("writes about", "asks for", "forgets", "looks after", "has learned to mend", "sells", "dreams of", "collects",
         "carries", "never speaks of", "would rather keep", "is proud of")  # fmt: skip
_THINGS = ("the old bridge", "a box of letters", "three small boats", "the orchard", "a broken clock", "winter apples",
           "the map of the valley", "an unfinished song", "the garden wall", "a pair of boots", "the long road home",
           "yellow lamps")  # fmt: skip
_WHEN = ("in spring", "after supper", "on quiet days", "when it rains", "before the market opens", "at the end of June",
         "as long as anyone remembers", "without saying why", "since the harvest", "every other week")  # fmt: skip
_THOUGHTS = (
    "Nobody minds.", "It takes more patience than it seems.", "What is done slowly is seldom done twice.",
    "There are worse habits.", "People say that it was different once.", "Much depends on the weather.",
    "The rest is a matter of taste.", "Still, the work goes on.",
)  # fmt: skip
_SHAPES = (
    "{Who} {does} {thing} {when}.", "{When}, {who} {does} {thing}, and {who2} {does2} {thing2}.", "{thought}",
    "{Who} {does} {thing}, but {who2} {does2} {thing2} {when}.", "They say that {who} {does} {thing} {when}.",
    "If {who} {does} {thing}, then {who2} surely {does2} {thing2}.",
)  # fmt: skip


@cache
def _essay() -> tuple[str, ...]:
    """8,000 sentences (about 100,000 tokens) of no meaning."""
    generator = random.Random("essay")
    made = []
    for _ in range(8_000):
        who, who2 = generator.sample(_PEOPLE, 2)
        does, does2 = generator.sample(_DOES, 2)
        thing, thing2 = generator.sample(_THINGS, 2)
        when = generator.choice(_WHEN)
        made.append(generator.choice(_SHAPES).format(
            who=who, Who=_capital(who), who2=who2, does=does, does2=does2, thing=thing, thing2=thing2, when=when,
            When=_capital(when), thought=generator.choice(_THOUGHTS),
        ))  # fmt: skip
    return tuple(made)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


_TRADES = ("violin maker", "geologist", "judge", "cook", "engineer", "poet", "surveyor", "beekeeper", "actor", "weaver")


def _written(kind: str, generator: random.Random) -> Question:
    """Documents on people and towns that do not exist. qa_1 asks for a fact of one; qa_2 for a fact of the town where
    a person was born, which two documents tell."""
    taken: set[str] = set()

    def name() -> str:
        while True:
            made = "".join(generator.choice(("ba", "do", "fe", "gul", "hi", "ka", "lor", "mi", "nes", "or", "pa", "ri",
                                             "sel", "tu", "va", "wen", "yo", "zan")) for _ in range(3))  # fmt: skip
            if made not in taken:
                taken.add(made)
                return made.capitalize()

    def person() -> tuple[str, str, str, str]:
        who, town, year = f"{name()} {name()}", name(), generator.randrange(1700, 1950)
        trade = generator.choice(_TRADES)
        text = (
            f"{who}\n{who} was a {trade}, born in {town} in {year}. {_capital(generator.choice(_PEOPLE))} of the time "
            f"said that {who} {generator.choice(_DOES)} {generator.choice(_THINGS)}. {generator.choice(_THOUGHTS)}"
        )
        return who, town, str(year), text

    def place(town: str) -> tuple[str, str]:
        river = name()
        return river, (
            f"{town}\n{town} is a town of {generator.randrange(2, 90)},000 people on the river {river}. Its market is "
            f"held {generator.choice(_WHEN)}. {generator.choice(_THOUGHTS)}"
        )

    who, town, year, about = person()
    river, town_text = place(town)
    others: list[Document] = []

    def other(number: int) -> Document:
        while len(others) <= number:
            _, somewhere, _, text = person()
            others.extend((text, place(somewhere)[1]))
        return others[number]

    if kind == "qa_1":
        return f"In which year was {who} born?", (year,), [about], other
    return f"On which river is the town where {who} was born?", (river,), [about, town_text], other
