"""One selection: what is taken, in which order, from one pass and with little in memory."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.data_recipes import selection, sources
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.readers import BadRow
from nanoalign.data_recipes.rows import name_of
from nanoalign.data_recipes.selection import build, load, select
from nanoalign.data_recipes.sources import LoadReport, read


def sample(text: str) -> Conversation:
    return Conversation((Message("user", text), Message("assistant", "yes")), domain="math" if "1" in text else "chat")


def write(path: Path, count: int) -> str:
    rows = ({"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]}
            for i in range(count))  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"file:{path}"


def drawn_by_hand(rows: dict[str, list[Conversation]], wanted: dict[str, int], seed: int) -> list[Conversation]:
    """What a mixture without filters and caps is: written down the simple way, with everything in memory."""
    mixed: list[Conversation] = []
    for name, items in rows.items():
        rng, again = Random(f"{seed}/{name}/train"), Random(f"{seed}/{name}/train/again")
        keys = [rng.random() for _ in items]
        first = [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)][: wanted[name]]
        taken = list(first)
        while missing := wanted[name] - len(taken):
            taken += again.sample(first[:missing], len(first[:missing]))
        mixed += taken
    Random(f"{seed}/mixture").shuffle(mixed)
    return mixed


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 25), st.integers(1, 70)), min_size=1, max_size=3), st.integers(0, 3))
def test_it_draws_as_is_written_down_by_hand(sizes: list[tuple[int, int]], seed: int) -> None:
    rows = {f"file:{n}": [sample(f"{n} {i}") for i in range(count)] for n, (count, _) in enumerate(sizes)}
    wanted = {f"file:{n}": samples for n, (_, samples) in enumerate(sizes)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "read", lambda name, *_: iter(rows[name]))
        assert build(Mixture(sources=wanted), seed=seed).conversations == drawn_by_hand(rows, wanted, seed)
        capped, report = select(Mixture(sources=wanted, domain_caps={"math": 3}), None, seed, None)
    places = np.concatenate([each.places for each in capped.values()])
    assert sorted(places.tolist()) == list(range(report.samples))
    assert report.dropped.total() + report.samples == sum(wanted.values())


@pytest.mark.parametrize("name", ["file", "miniature:math"])
def test_what_is_held_is_what_a_second_read_finds(tmp_path: Path, name: str) -> None:
    name = write(tmp_path / "rows.jsonl", 60) if name == "file" else name
    mixture = Mixture(sources={name: 90}, deduplicate="exact", max_characters=120, on_bad_row="skip")
    held, _ = select(mixture, None, 4, None, hold=True)
    bare, _ = select(mixture, None, 4, None)
    assert not bare[name].held and held[name].held
    for field in ("positions", "digests", "sizes", "copies", "places"):
        assert np.array_equal(getattr(held[name], field), getattr(bare[name], field))
    items = list(read(name, 90, "train", None, 4, LoadReport(name, "train")))
    assert [items[position] for position in bare[name].positions] == held[name].held
    assert [name_of(each)[0] for each in held[name].held] == bare[name].digests.tolist()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many conversations are in memory when each is read."""
    alive: Any = weakref.WeakSet()
    counts: list[int] = []
    original = selection.read

    def watched(*args: Any, **more: Any) -> Iterator[Conversation | BadRow]:
        for number, item in enumerate(original(*args, **more)):
            alive.add(_Tag(number, item))
            counts.append(len(alive))
            yield item

    monkeypatch.setattr(selection, "read", watched)
    return counts


class _Tag:
    """Lives as long as its conversation (which is compared by value, so is no key itself)."""

    def __init__(self, number: int, item: Any) -> None:
        object.__setattr__(item, "tag", self)


def test_no_more_is_in_memory_than_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(tmp_path / "rows.jsonl", 500)
    counts = counted(monkeypatch)
    assert len(load(name, 7).conversations) == 7
    assert len(counts) == 500 and max(counts) <= 7 + 3
    counts.clear()
    select(Mixture(sources={name: 400}), None, 0, None)
    assert len(counts) == 500 and max(counts) <= 3


def test_a_source_is_read_once_and_a_filter_sees_a_sample_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading again would generate again, download again, and take every sample for a duplicate of itself."""
    made: list[str] = []
    generate = sources.generate

    def watched(name: str, *args: Any) -> Any:
        made.append(name)
        return generate(name, *args)

    monkeypatch.setattr(sources, "generate", watched)
    counts = counted(monkeypatch)
    mixture = Mixture(sources={write(tmp_path / "rows.jsonl", 30): 45, "miniature:math": 8}, deduplicate="exact")
    built = build(mixture, seed=1)
    assert made == ["miniature:math"] and len(counts) == 38
    assert built.report.samples + built.report.dropped["duplicate"] == 45 + 8
