"""Sources: layouts, splits, sampling, and the shared data with the counts of its SOURCE.txt files."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import httpx
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.data_recipes.adapters import ADAPTERS
from nanoalign.data_recipes.catalog import catalog
from nanoalign.data_recipes.conversation import Conversation, Message, ToolCall
from nanoalign.data_recipes.generators import in_test, reasoning_gym_names
from nanoalign.data_recipes.hub import hub_rows
from nanoalign.data_recipes.rows import from_row, to_row
from nanoalign.data_recipes.selection import load
from nanoalign.data_recipes.sources import describe_source

SHARED = Path(os.environ.get("NANOALIGN_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")
COUNTS = {  # from the SOURCE.txt beside each file: rows read, over all splits
    "gsm8k": 7473 + 1319, "math-answers": 7474, "aime": 975, "math-traces": 10, "ifeval": 541, "humaneval": 164,
    "oasst": 100, "self-instruct": 175, "user-instructions": 252, "short-instructions": 1100, "mt-bench": 80,
    "mt-bench-gpt4": 30, "glaive-demo": 300, "tool-reasoning": 50, "gym-rollouts": 150, "hh-harmless": 2312,
    "dpo-demo": 300, "politeness": 1100, "bfcl-simple": 400, "bfcl-live-simple": 258, "bfcl-multiple": 200,
    "bfcl-parallel": 200, "bfcl-multi-turn": 200, "workbench": 480, "workbench-replay": 286 + 102, "gym-workplace": 5,
    "mbpp": 427,
}  # fmt: skip


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def plain(number: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"{number}."}]
    }


@needs_shared
@pytest.mark.parametrize("name", COUNTS)
def test_shared_data_loads_whole(name: str) -> None:
    entry = catalog()[name]
    splits = ("train", "test") if len(entry.files) > 1 else ("test",) if "test" in entry.files else ("train",)
    rows = samples = 0
    for split in splits:
        try:
            report = load(name, None, split, SHARED).report  # type: ignore[arg-type]
        except DataError as error:
            pytest.skip(str(error)) if "is not under" in str(error) else pytest.fail(str(error))
        rows += report.rows
        samples += report.samples + sum(report.left_out.values())
        assert not report.bad
    assert rows == COUNTS[name] == sum((entry.rows or {}).values())
    if "all" in entry.files:
        try:
            samples += load(name, None, "test", SHARED).report.samples
        except DataError as error:
            assert "no samples in its test split" in str(error) and rows <= 10
    assert samples == rows


@needs_shared
def test_oasst_and_preferences_as_documented() -> None:
    trees = [json.loads(line) for line in (SHARED / "chat/oasst_en_100_tree.jsonl").read_text().splitlines()]

    def size(node: dict[str, Any]) -> int:
        return 1 + sum(size(reply) for reply in node["replies"])

    assert sum(size(tree["prompt"]) for tree in trees) == 1167
    for conversation in load("hh-harmless", 50, "train", SHARED).conversations:
        assert conversation.task and conversation.task["kind"] == "preference"
        assert conversation.task["rejected"] != conversation.messages[-1].content
    gsm = load("gsm8k", 20, "test", SHARED).conversations
    assert all(
        "<<" not in (c.messages[-1].reasoning or "<<") and c.task and c.task["answer"] in c.messages[-1].content
        for c in gsm
    )
    expected = load("bfcl-parallel", None, "train", SHARED).conversations
    for conversation in expected:
        assert conversation.task
        names = {tool["name"] for tool in conversation.tools}
        assert {call["name"] for call in conversation.task["calls"]} <= names
        assert '"dict"' not in json.dumps(conversation.tools)


def test_splits_are_disjoint_and_whole(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {i % 300}", "input": "", "output": str(i)} for i in range(600)]
    write_rows(tmp_path / "chat" / "rasbt_instruction_data.json", rows)
    train = load("short-instructions", None, "train", tmp_path).conversations
    test = load("short-instructions", None, "test", tmp_path).conversations
    assert len(train) + len(test) == 600 and 20 < len(test) < 120
    assert not {c.messages[0].content for c in train} & {c.messages[0].content for c in test}
    assert all(in_test(c, 0.1) for c in test)


def test_sampling_is_without_replacement_over_epochs(tmp_path: Path) -> None:
    name = f"file:{write_rows(tmp_path / 'rows.jsonl', [plain(i) for i in range(10)])}"
    few = load(name, 4, seed=1)
    assert len({c.id for c in few.conversations}) == 4
    many = load(name, 25, seed=1)
    ids = [c.id for c in many.conversations]
    assert sorted(Counter(ids).values()) == [2] * 5 + [3] * 5
    assert len(set(ids[:10])) == len(set(ids[10:20])) == 10 and ids[:10] != ids[10:20]
    assert (many.report.rows, many.report.taken, many.report.epochs) == (10, 25, 2.5)
    assert [c.id for c in load(name, 25, seed=1).conversations] == ids
    assert [c.id for c in load(name, 25, seed=2).conversations] != ids
    assert ids[:4] == [c.id for c in few.conversations]


def test_unknown_names_tell_the_nearest(tmp_path: Path) -> None:
    for name, near in (
        ("gsm9k", "did you mean `gsm8k`"),
        ("miniature:mth", "unknown miniature source `mth`; did you mean `math`"),
        ("reasoning-gym:chainsum", "did you mean `chain_sum`"),
        ("file:rows.jsonl#shargpt", "did you mean `sharegpt`"),
    ):
        with pytest.raises(ConfigError, match=near):
            describe_source(name, tmp_path)
    with pytest.raises(DataError, match=r"gsm8k/train.jsonl is not under .*openai/gsm8k"):
        describe_source("gsm8k", tmp_path)
    write_rows(tmp_path / "rows.jsonl", [plain(1)])
    with pytest.raises(DataError, match=r"did you mean `rows\.jsonl`"):
        describe_source(f"file:{tmp_path / 'row.jsonl'}")
    assert len(load(f"file:{tmp_path / 'rows.jsonl'}", split="test").conversations) == 1
    with pytest.raises(ConfigError, match="only test"):
        describe_source("mt-bench", tmp_path, "train")


def test_describe_imports_no_heavy_library() -> None:
    code = (
        "import sys; from nanoalign.data_recipes.sources import describe_source\n"
        "for name in ('miniature:math', 'reasoning-gym:chain_sum', 'nemotron-v2-math'): describe_source(name)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'reasoning_gym'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def testreasoning_gym_names_are_those_of_the_library() -> None:
    from reasoning_gym.factory import DATASETS

    assert reasoning_gym_names() == sorted(DATASETS)


def test_generators_split_by_prompt() -> None:
    train = load("reasoning-gym:chain_sum", 60, "train", seed=1).conversations
    test = load("reasoning-gym:chain_sum", 20, "test", seed=2).conversations
    assert len({c.messages[0].content for c in train}) == 60
    assert not {c.messages[0].content for c in train} & {c.messages[0].content for c in test}
    assert train[0].task and train[0].task["entry"]["answer"] == train[0].messages[1].content
    with pytest.raises(ConfigError, match="unlimited"):
        load("miniature:math", None)
    assert load("miniature:math", 5, seed=3).conversations == load("miniature:math", 5, seed=3).conversations


def test_a_row_survives_the_way_through_json_and_parquet(tmp_path: Path) -> None:
    tools = ({"name": "add", "parameters": {"type": "object", "properties": {"a": {"default": None}}}}, {"name": "b"})
    calls = (ToolCall("add", {"a": {"b": [1, None]}}), ToolCall("b", {}))
    conversation = Conversation(
        (
            Message("system", "s"),
            Message("user", "é 🙂"),
            Message("assistant", "", "hm\n", calls, reasoning_cut=True),
            Message("tool", "1"),
            Message("assistant", "x", ""),
        ),
        tools, "tools", "here", "MIT", "de", "7", {"kind": "math", "answer": "1"},
    )  # fmt: skip
    row = to_row(conversation)
    assert from_row(json.loads(json.dumps(row))) == conversation
    columns = {**row, "tools": json.dumps(row["tools"]), "task": json.dumps(row["task"])}
    for message in columns["messages"]:
        for call in message.get("tool_calls", []):
            call["arguments"] = json.dumps(call["arguments"])
    pq.write_table(pa.Table.from_pylist([columns]), tmp_path / "rows.parquet")
    [loaded] = load(f"file:{tmp_path / 'rows.parquet'}").conversations
    assert (loaded.messages, loaded.tools, loaded.task) == (conversation.messages, tools, conversation.task)


def test_arrow_puts_no_nulls_into_tool_schemas(tmp_path: Path) -> None:
    tools = [
        {"name": "a", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}},
        {"name": "b", "parameters": {"type": "object", "properties": {"y": {"type": "integer"}}}},
    ]
    pq.write_table(pa.Table.from_pylist([{**plain(1), "tools": tools}]), tmp_path / "rows.parquet")
    [conversation] = load(f"file:{tmp_path / 'rows.parquet'}").conversations
    assert list(conversation.tools) == tools


def adapted(adapter: str, row: dict[str, Any]) -> Conversation:
    [normal] = ADAPTERS[adapter](row)
    return from_row(json.loads(json.dumps(normal)))


def test_nemotron_post_training_from_a_mirror(tmp_path: Path) -> None:
    def row(content: str, reasoning: str) -> dict[str, Any]:
        messages = [{"role": "system", "content": ""}, {"role": "user", "content": content}]
        answer = {
            "role": "assistant",
            "content": "<think>\nhm\n</think>\n4" if reasoning == "on" else "<think></think>4",
        }
        return {
            "uuid": "u",
            "license": "cc-by-4.0",
            "category": "math",
            "reasoning": reasoning,
            "messages": [*messages, answer],
        }

    folder = tmp_path / "nvidia/Nemotron-Post-Training-Dataset-v2/data"
    folder.mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist([row("2+2?", "on"), row("3+1?", "off")]), folder / "math-00000-of-00001.parquet"
    )
    loaded = load("nemotron-v2-math", None, "train", tmp_path)
    by_prompt = {c.messages[0].content: c for c in loaded.conversations}
    assert by_prompt["2+2?"].messages[1] == Message("assistant", "4", "hm")
    assert by_prompt["3+1?"].messages[1] == Message("assistant", "4", "")
    assert by_prompt["2+2?"].licence == "cc-by-4.0" and describe_source("nemotron-v2-math", tmp_path)["found"]


def hub_like(folder: Path, count: int) -> None:
    """A data set as the hub holds it: Parquet files named after their splits."""
    messages = [
        [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"<think>\nhm\n</think>\n{n}"}]
        for n in range(count)
    ]
    rows = [{"messages": each, "reasoning": "on", "category": "math", "license": "cc-by-4.0"} for each in messages]
    (folder / "data").mkdir(parents=True)
    for part in range(2):
        table = pa.Table.from_pylist(rows[part::2])
        pq.write_table(table, folder / "data" / f"math-0000{part}-of-00002.parquet")
        pq.write_table(table.slice(0, 1), folder / "data" / f"chat-0000{part}-of-00002.parquet")


def test_an_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    def unreachable(*args: object, **named: object) -> None:
        raise httpx.ConnectError("no network")

    def load_dataset(*args: object, **named: object) -> list[dict[str, int]]:
        modes.append((datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE))
        return [{"a": 1}]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    assert list(hub_rows("some/set", split="train")) == [{"a": 1}]  # its cache
    assert modes == [(True, True)]
    assert before == (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)


def test_the_hub_is_streamed_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_like(tmp_path / "hub", 400)
    entry = catalog()["nemotron-v2-math"]
    monkeypatch.setitem(
        catalog(), "nemotron-v2-math", entry.model_copy(update={"hub": str(tmp_path / "hub"), "test_share": 0.1})
    )
    train, test = (load("nemotron-v2-math", None, split, tmp_path) for split in ("train", "test"))  # type: ignore[arg-type]
    assert train.report.rows == test.report.rows == 400 and train.report.samples + test.report.samples == 400
    assert 10 < test.report.samples < 100
    first = min(train.conversations, key=lambda c: int(c.messages[1].content))
    assert first.messages[1].reasoning == "hm" and first.licence == "cc-by-4.0" and first.origin.startswith("hub:")
    assert describe_source("nemotron-v2-math", tmp_path)["found"] is False


def test_a_hub_out_of_reach_names_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network\nfurther lines")

    def breaks_off(*_: Any, **__: Any) -> Any:
        yield {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
        raise OSError("connection reset")

    for broken, number, why in (
        (unreachable, 1, "ConnectionError: no network"),
        (breaks_off, 2, "OSError: connection reset"),
    ):
        monkeypatch.setattr(datasets, "load_dataset", broken)
        with pytest.raises(DataError) as error:
            load("nemotron-v2-math", None, "train", tmp_path)
        said = str(error.value)
        assert said.startswith(f"hub:nvidia/Nemotron-Post-Training-Dataset-v2/math:{number}: source nemotron-v2-math")
        assert (
            why in said
            and "nvidia/Nemotron-Post-Training-Dataset-v2/data/math-*.parquet" in said
            and str(tmp_path) in said
        )


@needs_shared
def test_bfcl_multi_turn_comes_with_its_functions() -> None:
    for conversation in load("bfcl-multi-turn", None, "train", SHARED).conversations:
        assert conversation.task and conversation.messages[-1].role == "user"
        names = {tool["name"]: set(tool["parameters"]["properties"]) for tool in conversation.tools}
        assert len(conversation.task["turns"]) == len(conversation.task["expected"])
        for call in (call for turn in conversation.task["expected"] for call in turn):
            assert set(call["arguments"]) <= names[call["name"]]


def test_preference_layouts() -> None:
    helpsteer = {
        "domain": "code",
        "context": [{"role": "user", "content": "q"}],
        "response1": "bad",
        "response2": "good",
    }
    chosen = adapted("helpsteer3", {**helpsteer, "overall_preference": 2})
    assert chosen.messages[-1].content == "good" and chosen.task == {"kind": "preference", "rejected": "bad"}
    assert adapted("helpsteer3", {**helpsteer, "overall_preference": -1}).messages[-1].content == "bad"
    pair = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": text}] for text in ("yes", "no")]
    feedback = adapted("ultrafeedback", {"prompt": "q", "chosen": pair[0], "rejected": pair[1], "prompt_id": "7"})
    assert (feedback.id, feedback.messages[-1].content) == ("7", "yes") and feedback.task == {
        "kind": "preference",
        "rejected": "no",
    }


def test_ties_are_left_out_and_counted(tmp_path: Path) -> None:
    row = {"context": [{"role": "user", "content": "q"}], "response1": "a", "response2": "b"}
    rows = [{**row, "overall_preference": score} for score in (0, 1, 0)]
    write_rows(tmp_path / "nvidia/HelpSteer3/preference/train.jsonl.gz", rows)
    report = load("helpsteer3", None, "train", tmp_path).report
    assert (report.rows, report.samples, dict(report.left_out)) == (3, 1, {"neither answer is preferred": 2})


def test_tool_layouts() -> None:
    toolace = adapted(
        "toolace",
        {
            "system": 'You can call: [{"name": "Get It", "description": "", "parameters": {"type": "dict"}}]. Go.',
            "conversations": [
                {"from": "user", "value": "q"},
                {"from": "assistant", "value": '[Get It(a="x, (y)", b=[1, 2]), Get It(c={"k": True})]'},
                {"from": "tool", "value": "[]"},
                {"from": "assistant", "value": "[done]"},
            ],
        },
    )
    assert toolace.messages[2].tool_calls == (
        ToolCall("Get It", {"a": "x, (y)", "b": [1, 2]}),
        ToolCall("Get It", {"c": {"k": True}}),
    )
    assert toolace.tools[0]["parameters"] == {"type": "object"} and toolace.messages[-1].content == "[done]"
    glaive = adapted(
        "glaive",
        {
            "system": 'SYSTEM: You are helpful. Use them if required -\n{"name": "f", "parameters": {}}\n',
            "chat": 'USER: q\n\nASSISTANT: <functioncall> {"name": "f", "arguments": \'{"a": "it\'s"}\'} '
            "<|endoftext|>\n\nFUNCTION RESPONSE: {}\n\nASSISTANT: done <|endoftext|>",
        },
    )
    assert [m.role for m in glaive.messages] == ["user", "assistant", "tool", "assistant"]
    assert glaive.messages[1].tool_calls == (ToolCall("f", {"a": "it's"}),)
    openai = adapted(
        "openai",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "hm",
                    "tool_calls": [{"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}],
                },
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        },
    )
    assert openai.messages[1] == Message("assistant", "", "hm", (ToolCall("f", {"a": 1}),))
    mbpp = adapted("mbpp", {"task_id": 2, "prompt": "Add.", "code": "x", "test_imports": [], "test_list": ["assert 1"]})
    assert mbpp.task == {"kind": "code", "tests": "assert 1"}


def test_every_catalog_entry_names_an_adapter() -> None:
    assert all(entry.adapter in ADAPTERS for entry in catalog().values())
    assert set(COUNTS) == {name for name, entry in catalog().items() if entry.rows}
