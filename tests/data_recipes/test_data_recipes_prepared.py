"""Prepared sets: the same bytes whatever happens on the way, exact counts, and only needed work."""

import copy
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from nanoalign.budget_control.transforms import teaching
from nanoalign.common.errors import DataError
from nanoalign.common.files import sha256_file
from nanoalign.data_recipes import prepared, shards
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.chat.chatml import ChatML
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.prepared import Prepared, prepare
from nanoalign.data_recipes.selection import build
from nanoalign.data_recipes.tokenize import Example, encode_batch
from nanoalign.data_recipes.transforms import Teaching, Transform

CHAT = chat_format("chatml")
STRIPPED = Teaching(partial(teaching, 0.5, None, None), {"strip_reasoning": 0.5})


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PART", 20)


def write(path: Path, count: int, **more: str) -> str:
    def row(number: int) -> dict[str, Any]:
        messages = [
            {"role": "user", "content": f"{path.stem} {number}"},
            {"role": "assistant", "content": "y" * (number % 7 + 1)},
        ]
        return {"messages": messages, **more}

    path.write_text("\n".join(json.dumps(row(number)) for number in range(count)))
    return f"file:{path}"


def content(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def encoded(conversations: list[Conversation], tokenizer: Any) -> list[Example]:
    return [example for each in encode_batch(conversations, CHAT, tokenizer) for example in each]


def test_it_holds_what_the_mixture_holds(tmp_path: Path, gpt2_like: Any) -> None:
    one = write(tmp_path / "one.jsonl", 90, domain="math", licence="MIT")
    two = write(tmp_path / "two.jsonl", 30, domain="chat", licence="Apache-2.0")
    mixture = Mixture(sources={one: 50, two: 75, "miniature:chat": 5}, max_characters=120)
    data = prepare(mixture, CHAT, gpt2_like, tmp_path / "set", seed=3)
    built = build(mixture, seed=3)
    wanted = encoded(built.conversations, gpt2_like)
    assert list(data) == wanted
    assert data.index["tokens"] == sum(len(example.input_ids) for example in wanted)
    assert data.index["trained_tokens"] == sum(sum(example.loss_mask) for example in wanted)
    assert sum(sum(data[i].loss_mask) for i in range(len(data))) == data.index["trained_tokens"]
    assert data.index["report"]["dropped"] == built.report.as_dict()["dropped"]
    assert data.index["report"]["sources"] == built.report.as_dict()["sources"]
    origins = [each.origin.rpartition("/")[2] for each in built.conversations]
    assert [data.metadata(i)["row"] for i in range(len(data))] == origins
    assert [data.index["domains"][n] for n in data.column("domain")] == [c.domain for c in built.conversations]
    assert data.column("sample").tolist() == list(range(len(wanted)))
    assert data.column("length").tolist() == [len(example.input_ids) for example in wanted]
    card = (tmp_path / "set" / "README.md").read_text()
    assert f"{data.index['tokens']:,} tokens" in card and "| MIT |" in card and "## Left out" in card


def test_caps_and_special_tokens_are_those_of_the_mixture(tmp_path: Path, gpt2_like: Any) -> None:
    one = write(tmp_path / "one.jsonl", 30, domain="math")
    two = write(tmp_path / "two.jsonl", 30, domain="chat")
    with (tmp_path / "two.jsonl").open("a") as file:
        messages = [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "y"}]
        file.write("\n" + json.dumps({"messages": messages}))
    wanted: Any = {"refusal": "drop", "truncated": "count"}
    mixture = Mixture(
        sources={one: 70, two: 40}, domain_caps={"math": 45, "chat": 33}, quality=wanted, on_bad_row="skip"
    )
    data = prepare(mixture, CHAT, gpt2_like, tmp_path / "set", seed=3)
    built = build(mixture, seed=3, chat=CHAT)
    assert list(data) == encoded(built.conversations, gpt2_like)
    assert data.index["report"]["dropped"] == built.report.as_dict()["dropped"] == {
        "bad row: special token": 1, "domain math is capped": 25, "domain chat is capped": 7,
    }  # fmt: skip
    assert data.index["report"]["samples"] == len(data) == 45 + 33


def test_datasets_reads_the_shards(tmp_path: Path, gpt2_like: Any) -> None:
    from datasets import Dataset

    name = write(tmp_path / "one.jsonl", 30)
    data = prepare(Mixture(sources={name: 30}), CHAT, gpt2_like, tmp_path / "set")
    read = [Dataset.from_file(str(tmp_path / "set" / shard["file"])) for shard in data.index["shards"]]
    assert [len(each) for each in read] == [20, 10]
    assert sum(len(row["input_ids"]) for each in read for row in each) == data.index["tokens"]


def test_two_workers_write_what_one_writes(tmp_path: Path, gpt2_like: Any) -> None:
    mixture = Mixture(sources={write(tmp_path / "one.jsonl", 70): 100})
    prepare(mixture, CHAT, gpt2_like, tmp_path / "a")
    prepare(mixture, CHAT, gpt2_like, tmp_path / "b", workers=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_changed_weight_redoes_only_its_source(tmp_path: Path, gpt2_like: Any) -> None:
    one, two = write(tmp_path / "one.jsonl", 60), write(tmp_path / "two.jsonl", 60)
    prepare(Mixture(sources={one: 60, two: 30}), CHAT, gpt2_like, tmp_path / "set")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.arrow")}
    prepare(Mixture(sources={one: 60, two: 45}), CHAT, gpt2_like, tmp_path / "set")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*-*.arrow")}
    assert {name: stamp for name, stamp in before.items() if "one-jsonl" in name}.items() <= after.items()
    assert len([name for name in after if "one-jsonl" in name]) == 3 and len(after) == 6
    assert not {name for name in before if "two-jsonl" in name} & set(after)
    prepare(Mixture(sources={one: 60, two: 45}), CHAT, gpt2_like, tmp_path / "fresh")
    assert content(tmp_path / "fresh") == content(tmp_path / "set")


def halve(conversation: Conversation, rng: Random) -> tuple[Conversation | None, str | None]:
    return (conversation, None) if rng.random() < 0.5 else (None, "tails")


def shout(conversation: Conversation, rng: Random) -> tuple[Conversation | None, str | None]:
    *before, answer = conversation.messages
    return replace(conversation, messages=(*before, replace(answer, content="Y" * rng.randrange(1, 5)))), "shouted"


def coins() -> list[Transform]:
    return [halve, shout]


COINS = Teaching(coins, {"coins": 1})


def test_samples_are_taught_as_the_mixture_is_and_counted(tmp_path: Path, gpt2_like: Any) -> None:
    mixture = Mixture(sources={write(tmp_path / "one.jsonl", 50): 120, "miniature:chat": 5})
    data = prepare(mixture, CHAT, gpt2_like, tmp_path / "set", seed=2, teaching=COINS)
    built = build(mixture, seed=2, transforms=coins())
    assert list(data) == encoded(built.conversations, gpt2_like) and 40 < len(data) < 90
    assert data.index["report"] == json.loads(json.dumps(built.report.as_dict()))
    messages = [each.messages for each in built.conversations]
    said = dict(zip(data.column("sample").tolist(), data.column("said").tolist()))
    assert [*said] == list(range(len(messages)))
    assert [[*said.values()].index(each) for each in said.values()] == [messages.index(each) for each in messages]


def test_two_workers_teach_what_one_teaches(tmp_path: Path, gpt2_like: Any) -> None:
    mixture = Mixture(sources={write(tmp_path / "one.jsonl", 70): 100, "miniature:chat": 30})
    prepare(mixture, CHAT, gpt2_like, tmp_path / "a", teaching=STRIPPED)
    prepare(mixture, CHAT, gpt2_like, tmp_path / "b", teaching=STRIPPED, workers=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_whole_set_is_used_as_it_is(tmp_path: Path, gpt2_like: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = Mixture(sources={write(tmp_path / "one.jsonl", 30): 30})
    prepare(mixture, CHAT, gpt2_like, tmp_path / "set")

    def refused(*args: Any) -> None:
        raise AssertionError("the sources were read again")

    monkeypatch.setattr(prepared, "select", refused)
    assert len(prepare(mixture, CHAT, gpt2_like, tmp_path / "set")) == 30
    with pytest.raises(AssertionError):
        prepare(mixture, CHAT, gpt2_like, tmp_path / "set", seed=1)


def change_code(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, path: Path) -> dict[str, Any]:
    monkeypatch.setattr(prepared, "source_hash", lambda room: "another")
    return {}


def change_tokenizer(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, path: Path) -> dict[str, Any]:
    other = copy.deepcopy(tokenizer.backend_tokenizer)
    other.add_tokens(["yy"])
    return {"tokenizer": other}


def change_chat(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, path: Path) -> dict[str, Any]:
    return {"chat": ChatML("another", "You are another")}


def change_teaching(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, path: Path) -> dict[str, Any]:
    return {"teaching": Teaching(coins, {"coins": 2})}


def change_data(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, path: Path) -> dict[str, Any]:
    path.write_text(path.read_text().replace("y", "z"))
    return {}


@pytest.mark.parametrize("change", [change_code, change_tokenizer, change_chat, change_teaching, change_data])
def test_a_set_made_otherwise_is_never_used(
    tmp_path: Path, gpt2_like: Any, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    mixture = Mixture(sources={write(tmp_path / "one.jsonl", 30): 30})
    given = {"chat": CHAT, "tokenizer": gpt2_like, "teaching": COINS}
    prepare(mixture, folder=tmp_path / "set", **given)
    before = content(tmp_path / "set")
    given |= change(monkeypatch, gpt2_like, tmp_path / "one.jsonl")
    prepare(mixture, folder=tmp_path / "set", **given)
    prepare(mixture, folder=tmp_path / "fresh", **given)
    after = content(tmp_path / "set")
    assert after == content(tmp_path / "fresh")
    assert {name for name in before if name.startswith("one-")}.isdisjoint(after)


def test_teaching_that_draws_by_place_is_drawn_anew_where_places_change(tmp_path: Path, gpt2_like: Any) -> None:
    """And only there: a set without teaching keeps the parts of the other source (see above)."""
    one, two = write(tmp_path / "one.jsonl", 60), write(tmp_path / "two.jsonl", 60)
    prepare(Mixture(sources={one: 60, two: 30}), CHAT, gpt2_like, tmp_path / "set", teaching=COINS)
    prepare(Mixture(sources={one: 60, two: 45}), CHAT, gpt2_like, tmp_path / "set", teaching=COINS)
    prepare(Mixture(sources={one: 60, two: 45}), CHAT, gpt2_like, tmp_path / "fresh", teaching=COINS)
    assert content(tmp_path / "fresh") == content(tmp_path / "set")


def test_large_rows_make_small_parts(tmp_path: Path, gpt2_like: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROW", 100)  # 2,000 bytes a part
    monkeypatch.chdir(tmp_path)  # a row holds its source's name, whose length counts
    name = write(Path("one.jsonl"), 100, licence="x" * 400)
    data = prepare(Mixture(sources={name: 100}), CHAT, gpt2_like, tmp_path / "set")
    assert {shard["examples"] for shard in data.index["shards"]} <= {3, 4}
    assert list(data) == encoded(build(Mixture(sources={name: 100})).conversations, gpt2_like)


def test_bad_rows_stop_it_before_anything_is_written(tmp_path: Path, gpt2_like: Any) -> None:
    name = write(tmp_path / "one.jsonl", 30)
    with (tmp_path / "one.jsonl").open("a") as file:
        file.write("\noops\n")
    with pytest.raises(DataError, match=r"one\.jsonl:31: bad JSON"):
        prepare(Mixture(sources={name: 10}), CHAT, gpt2_like, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    data = prepare(Mixture(sources={name: 10}, on_bad_row="skip"), CHAT, gpt2_like, tmp_path / "set")
    assert data.index["report"]["dropped"] == {"bad row: bad JSON": 1} and len(data) == 10


def test_what_is_not_whole_is_refused(tmp_path: Path, gpt2_like: Any) -> None:
    with pytest.raises(DataError, match="no prepared set"):
        Prepared(tmp_path)
    data = prepare(Mixture(sources={write(tmp_path / "one.jsonl", 5): 5}), CHAT, gpt2_like, tmp_path / "set")
    (tmp_path / "set" / data.index["shards"][0]["file"]).unlink()
    with pytest.raises(DataError, match="lacks one"):
        Prepared(tmp_path / "set")


SCRIPT = """
import sys
import time
from pathlib import Path
from tokenizers import Tokenizer
from nanoalign.budget_control.transforms import teaching
from nanoalign.data_recipes import prepared, shards
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.config import Mixture
shards.PART = 20
write_shard = prepared.write_shard
def slowly(*args, **more):
    write_shard(*args, **more)
    print("shard", flush=True)
    time.sleep(0.05)
prepared.write_shard = slowly
folder = Path(sys.argv[1])
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
mixture = Mixture(sources={f"file:{folder / 'one.jsonl'}": 200})
prepared.prepare(mixture, chat_format("chatml"), tokenizer, folder / "set")
"""


def test_killed_and_resumed_gives_the_same_bytes(tmp_path: Path, gpt2_like: Any) -> None:
    name = write(tmp_path / "one.jsonl", 160)
    gpt2_like.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for _ in range(3):
        assert process.stdout.readline() == "shard\n"
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.arrow")}
    assert 3 <= len(made) < 10 and not (tmp_path / "set" / "index.json").exists()
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], capture_output=True)
    assert made.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.arrow")}.items()
    prepare(Mixture(sources={name: 200}), CHAT, gpt2_like, tmp_path / "fresh")
    assert content(tmp_path / "fresh") == content(tmp_path / "set")
    assert len(Prepared(tmp_path / "set")) == 200
