"""Prepared sets: the same bytes whatever happens on the way, exact counts, and only needed work."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from common.errors import DataError
from common.files import sha256_file
from data_recipes import prepared
from data_recipes.chat import chat_format
from data_recipes.config import Mixture
from data_recipes.conversation import Conversation
from data_recipes.mixture import build
from data_recipes.prepared import Prepared, prepare, read_shard
from data_recipes.tokenize import encode_batch

CHAT = chat_format("chatml")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "PART", 20)


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


def examples(folder: Path) -> Counter[tuple[int, ...]]:
    return Counter(tuple(Prepared(folder)[i].input_ids) for i in range(len(Prepared(folder))))


def test_it_holds_what_the_mixture_holds(tmp_path: Path, gpt2_like: Any) -> None:
    one = write(tmp_path / "one.jsonl", 90, domain="math", licence="MIT")
    two = write(tmp_path / "two.jsonl", 30, domain="chat", licence="Apache-2.0")
    mixture = Mixture(sources={one: 50, two: 75, "miniature:chat": 5}, max_characters=120)
    data = prepare(mixture, CHAT, gpt2_like, tmp_path / "set", seed=3)
    built = build(mixture, seed=3)
    wanted = [example for each in encode_batch(built.conversations, CHAT, gpt2_like) for example in each]
    assert examples(tmp_path / "set") == Counter(tuple(example.input_ids) for example in wanted)
    assert data.index["tokens"] == sum(len(example.input_ids) for example in wanted)
    assert data.index["trained_tokens"] == sum(sum(example.loss_mask) for example in wanted)
    assert sum(sum(data[i].loss_mask) for i in range(len(data))) == data.index["trained_tokens"]
    assert data.index["report"]["dropped"] == built.report.as_dict()["dropped"]
    assert data.index["report"]["sources"] == built.report.as_dict()["sources"]
    assert Counter(data.facts(i)["domain"] for i in range(len(data))) == Counter(
        c.domain
        for c, each in zip(built.conversations, encode_batch(built.conversations, CHAT, gpt2_like))
        for _ in each
    )
    assert [data.facts(i)["source"] for i in range(20)] != sorted(data.facts(i)["source"] for i in range(20))
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
    wanted = [example for each in encode_batch(built.conversations, CHAT, gpt2_like) for example in each]
    assert examples(tmp_path / "set") == Counter(tuple(example.input_ids) for example in wanted)
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
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.arrow")}
    assert {name: stamp for name, stamp in before.items() if "one-jsonl" in name}.items() <= after.items()
    assert len([name for name in after if "one-jsonl" in name]) == 3 and len(after) == 6
    assert not {name for name in before if "two-jsonl" in name} & set(after)
    prepare(Mixture(sources={one: 60, two: 45}), CHAT, gpt2_like, tmp_path / "fresh")
    assert content(tmp_path / "fresh") == content(tmp_path / "set")


def halve(conversation: Conversation, rng: Random) -> tuple[Conversation | None, str | None]:
    return (conversation, None) if rng.random() < 0.5 else (None, "tails")


def test_transforms_are_counted_in_the_index(tmp_path: Path, gpt2_like: Any) -> None:
    mixture = Mixture(sources={write(tmp_path / "one.jsonl", 50): 100})
    data = prepare(mixture, CHAT, gpt2_like, tmp_path / "set", transforms={"halve": halve})
    assert 20 < len(data) < 80 and data.index["report"]["dropped"] == {"tails": 100 - len(data)}
    assert data.index["report"]["samples"] == len(data)
    assert max(examples(tmp_path / "set").values()) == 2


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
from data_recipes import prepared
from data_recipes.chat import chat_format
from data_recipes.config import Mixture
prepared.PART = 20
write_shard = prepared._write_shard
def slowly(*args, **more):
    write_shard(*args, **more)
    print("shard", flush=True)
    time.sleep(0.05)
prepared._write_shard = slowly
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
    assert 3 <= len(made) < 8 and not (tmp_path / "set" / "index.json").exists()
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], capture_output=True)
    assert made.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.arrow")}.items()
    prepare(Mixture(sources={name: 200}), CHAT, gpt2_like, tmp_path / "fresh")
    assert content(tmp_path / "fresh") == content(tmp_path / "set")
    shard = next((tmp_path / "set").glob("*.arrow"))
    assert read_shard(shard).num_rows >= 20 and np.load(tmp_path / "set" / "order.npy").shape == (200,)
