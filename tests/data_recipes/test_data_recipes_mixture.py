"""Mixtures, transforms, and what is shown of them."""

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.config import Mixture, SourceUse
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.duplicates import ExactDuplicates, NearDuplicates
from nanoalign.data_recipes.filters import Contamination
from nanoalign.data_recipes.selection import build
from nanoalign.data_recipes.transforms import apply

WORDS = [
    "river",
    "stone",
    "apple",
    "seven",
    "light",
    "cold",
    "paper",
    "green",
    "music",
    "table",
    "quiet",
    "window",
    "bread",
    "garden",
    "summer",
    "train",
]


def sample(question: str, answer: str = "yes", **more: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), **more)


def sentence(rng: Random, length: int = 60) -> list[str]:
    return [rng.choice(WORDS) + str(rng.randrange(50)) for _ in range(length)]


def rows_file(path: Path, count: int, **more: str) -> str:
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a" * (i + 1)}], **more}
        for i in range(count)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return f"file:{path}"


def test_a_mixture_takes_what_it_names_and_counts_the_rest(tmp_path: Path) -> None:
    free = rows_file(tmp_path / "free.jsonl", 20, licence="MIT", language="en")
    other = rows_file(tmp_path / "other.jsonl", 10, licence="CC-BY-NC-4.0", language="de")
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "user", "content": "q"}], "licence": "mit"}\noops\n')
    bad = f"file:{tmp_path / 'bad.jsonl'}"
    mixture = Mixture(sources={free: 30, bad: SourceUse(samples=1)}, on_bad_row="skip", allow_licences=["mit"])
    built = build(mixture, seed=3)
    assert built.report.samples == len(built.conversations) == 31
    assert built.report.dropped == {"bad row: bad JSON": 1}
    assert built.conversations == build(mixture, seed=3).conversations
    assert [c.id for c in built.conversations] != [c.id for c in build(mixture, seed=4).conversations]
    with pytest.raises(ValueError, match="no samples"):
        build(Mixture(sources={other: 5}, allow_licences=["MIT"]))
    both = Mixture(sources={free: 20, other: 5}, languages=["en", "de"], max_characters=7)
    report = build(both, seed=1).report
    assert report.dropped == {"longer than 7 characters": (20 - 4) + (10 - 4)}
    assert json.loads(json.dumps(report.as_dict()))["sources"][f"{free}:train"]["epochs"] == 5.0


def test_equal_rows_are_dropped_across_sources(tmp_path: Path) -> None:
    one, two = (rows_file(tmp_path / f"{name}.jsonl", 10) for name in "ab")
    with pytest.raises(ValueError, match=r"b.jsonl has no samples"):
        build(Mixture(sources={one: 10, two: 10}, deduplicate="exact"))
    report = build(Mixture(sources={one: 10, two: 10})).report
    assert report.samples == 20 and not report.dropped


def test_transforms_are_counted_and_independent_of_other_samples() -> None:
    def coin(conversation: Conversation, rng: Random) -> tuple[Conversation | None, str | None]:
        face = rng.random()
        if face < 0.3:
            return None, "tails"
        return (sample("changed"), "heads") if face < 0.6 else (conversation, None)

    samples = [sample(str(i)) for i in range(200)]
    kept, changed, dropped = apply(samples, [coin], 5)
    assert len(kept) + dropped["tails"] == 200
    assert changed["heads"] == sum(c.messages[0].content == "changed" for c in kept) > 20
    again, _, _ = apply([sample("another"), *samples[1:]], [coin], 5)
    assert again[-50:] == kept[-50:]


def test_exact_duplicates_differ_in_case_and_space_only() -> None:
    check = ExactDuplicates()
    samples = [sample("What is  it?"), sample("what is it?"), sample("what is it", "yes"), sample("What is it?", "no")]
    assert [check(each) for each in samples] == [None, "duplicate", None, None]


@given(st.lists(st.integers(0, 3000), max_size=4000), st.integers(4, 6))
@settings(max_examples=15, deadline=None)
def test_exact_duplicates_are_those_of_a_set(texts: list[int], repeat: int) -> None:
    """Over a thousand different samples, so that the table doubles more than once."""
    texts += range(0, 3000, repeat)
    check, seen = ExactDuplicates(), set()
    for text in texts:
        assert (check(sample(str(text))) is not None) == (text in seen)
        seen.add(text)


def test_near_duplicates_are_found_after_the_tables_doubled() -> None:
    rng = Random(1)
    check = NearDuplicates()
    originals = [sentence(rng, 40) for _ in range(1700)]
    assert not any(check(sample(" ".join(words))) for words in originals)
    assert all(check(sample(" ".join(["first", *words]))) for words in originals[::10])
    assert all(check(sample(" ".join(words))) for words in originals[::10])


@pytest.mark.parametrize(("edits", "recall"), [(1, 1.0), (2, 1.0), (3, 0.95), (4, 0.6)])
def test_near_duplicates_are_found_at_the_stated_recall(edits: int, recall: float) -> None:
    """Of 120 words, 1, 2, 3 or 4 are others: a Jaccard similarity of about 0.95, 0.91, 0.86 or 0.82 of word triples."""
    rng = Random(0)
    originals = [sentence(rng, 120) for _ in range(150)]
    check = NearDuplicates(threshold=0.8)
    assert not any(check(sample(" ".join(words))) for words in originals)
    edited = []
    for words in originals:
        copy = list(words)
        for place in rng.sample(range(len(copy)), edits):
            copy[place] = "edited"
        edited.append(sample(" ".join(copy)))
    assert sum(check(each) is not None for each in edited) >= recall * len(edited)
    assert not any(check(sample(" ".join(sentence(rng, 120)))) for _ in range(100))


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 40), st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**32))
def test_every_planted_prompt_is_found(length: int, before: int, after: int, seed: int) -> None:
    rng = Random(seed)
    prompt = sentence(rng, length)
    check = Contamination([sample(" ".join(prompt), source="bench", id="7")])
    start = rng.randrange(max(1, length - 12))
    planted = prompt[start : start + 13] if length > 13 else prompt
    text = " , ".join([*sentence(rng, before), *planted, *sentence(rng, after)]).upper()
    assert check(sample("q", text)) == "holds a prompt of bench"
    assert [name for _, name in check.hits] == ["bench 7"]
    assert check(sample("q", " ".join(planted[1:] if length > 13 else planted[:-1]))) is None
    assert check(sample("q", " ".join(reversed(prompt)))) is None


def test_decontamination_in_a_mixture(tmp_path: Path) -> None:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    question = "If a train of seven cars leaves at nine, how many wheels does it have in the end?"
    row = json.dumps({"question": question, "answer": "Four each.\n#### 28"})
    (folder / "test.jsonl").write_text(row)
    texts = [*("What is it?" for _ in range(5)), f"Hm: {question}"]
    rows = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "28"}]} for t in texts]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    mixture = Mixture(sources={f"file:{tmp_path / 'rows.jsonl'}": 5}, decontaminate=["gsm8k"])
    report = build(mixture, tmp_path).report
    assert report.dropped == {"holds a prompt of gsm8k": 1} and report.samples == 5
    assert report.contamination == [(f"{tmp_path / 'rows.jsonl'}:6", "gsm8k test.jsonl:1")]


def test_quality_flags_in_a_mixture(tmp_path: Path) -> None:
    texts = ["I'm sorry, but I can't do that.", "Paris.", "`</think>` Rome.", "Bonn."]
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": t}]} for t in texts]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    wanted: Any = {"refusal": "drop", "unclosed thinking": "count"}
    report = build(Mixture(sources={f"file:{tmp_path / 'rows.jsonl'}": 3}, quality=wanted)).report
    assert report.dropped == {"quality: refusal": 1} and report.samples == 3
    assert report.as_dict()["flagged"] == {"refusal": 1, "unclosed thinking": 1}


def test_caps_leave_out_repetitions_first(tmp_path: Path) -> None:
    one = rows_file(tmp_path / "one.jsonl", 10, domain="math")
    two = rows_file(tmp_path / "two.jsonl", 10, domain="chat")
    mixture = Mixture(sources={one: 25, two: 10}, domain_caps={"math": 12, "code": 3, "chat": 4})
    built = build(mixture, seed=2)
    assert built.report.dropped == {"domain math is capped": 13, "domain chat is capped": 6}
    assert built.report.samples == len(built.conversations) == 16
    kept = Counter(c.id for c in built.conversations if c.domain == "math")
    assert sorted(kept.values()) == [1] * 8 + [2] * 2
    assert built.conversations == build(mixture, seed=2).conversations
    chosen = {
        tuple(sorted(c.id for c in build(mixture, seed=seed).conversations if c.domain == "chat")) for seed in range(6)
    }
    assert {len(ids) for ids in chosen} == {4} and len(chosen) > 1


@pytest.mark.parametrize("place", ["question", "answer", "reasoning", "call", "tool"])
def test_special_tokens_in_text_are_bad_rows(place: str, tmp_path: Path) -> None:
    token = "<SPECIAL_12>"
    answer: dict[str, Any] = {"role": "assistant", "content": "4", "reasoning_content": "hm"}
    row: dict[str, Any] = {"messages": [{"role": "user", "content": "2+2?"}, answer], "tools": [{"name": "add"}]}
    rows = [json.dumps(row)]
    match place:
        case "question":
            row["messages"][0]["content"] += token
        case "answer":
            answer["content"] += token
        case "reasoning":
            answer["reasoning_content"] += token
        case "call":
            answer["tool_calls"] = [{"name": "add", "arguments": {"a": [token]}}]
        case "tool":
            row["tools"][0]["description"] = token
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, json.dumps(row)]))
    name, chat = f"file:{tmp_path / 'rows.jsonl'}", chat_format("nemotron-nano-v2")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: special token: .* <SPECIAL_12>"):
        build(Mixture(sources={name: 1}), chat=chat)
    built = build(Mixture(sources={name: 1}, on_bad_row="skip"), chat=chat)
    assert built.report.dropped == {"bad row: special token": 1} and built.conversations[0].messages[1].content == "4"
    assert not build(Mixture(sources={name: 2}), chat=chat_format("chatml")).report.dropped
