"""A served model over real HTTP: each reply paid for once, through failures, kills and caps."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.data_recipes.conversation import Conversation, Message, ToolCall
from nanoalign.data_recipes.synthetic.config import Served
from nanoalign.data_recipes.synthetic.driver import Made, Maker, drive
from nanoalign.data_recipes.synthetic.rejection import rejection
from nanoalign.data_recipes.synthetic.served import CAPPED, EndpointError, Query, ServedModel


def settings(endpoint: Any, **more: Any) -> Served:
    usual = {"most_requests": 1000, "most_tokens": 10**9, "max_tokens": 50, "parallel": 4, "retries": 6}
    return Served.model_validate({"url": endpoint.url, "model": "m", **usual, **more})


def question(text: str, number: int = 0) -> Query:
    return Query((Message("user", text),), number=number)


def test_replies_come_in_order_and_are_paid_for_once(endpoint: Any, tmp_path: Path) -> None:
    endpoint.delay_s = 0.02
    asks = [question("a", n) for n in range(12)] + [question("a", 3)]
    with ServedModel(settings(endpoint), tmp_path / "replies.jsonl") as model:
        said = [reply.message.content for reply in model.answer(asks) if reply.message]
        assert said == [*map(str, range(12)), "3"] and model.requests == model.asked_now == 12 and model.tokens == 120
        assert model.answer(asks[:5]) and model.requests == 12
    with ServedModel(settings(endpoint), tmp_path / "replies.jsonl") as model:
        assert [reply.message.content for reply in model.answer(asks) if reply.message] == said
        assert (model.asked_now, model.requests, model.tokens) == (0, 12, 120)
    assert len(endpoint.bodies) == 12 and 1 < endpoint.most_at_once <= 4


def test_it_outlasts_a_bad_line(endpoint: Any, tmp_path: Path) -> None:
    endpoint.failures = ["drop", 429, 500, "cut", 503, "garbage"]
    with ServedModel(settings(endpoint, parallel=1), tmp_path / "replies.jsonl") as model:
        [reply] = model.answer([question("a", 7)])
    assert reply.message == Message("assistant", "7", "") and not endpoint.failures and len(endpoint.bodies) == 1


def test_it_gives_up_and_keeps_what_was_answered(endpoint: Any, tmp_path: Path) -> None:
    with ServedModel(settings(endpoint, parallel=1, retries=2), tmp_path / "replies.jsonl") as model:
        model.answer([question("a", 1)])
        endpoint.failures = [500] * 3
        with pytest.raises(EndpointError, match=r"no reply after 3 attempts; last: HTTP 500"):
            model.answer([question("a", 1), question("a", 2)])
        endpoint.failures = [401]
        with pytest.raises(EndpointError, match="after 1 attempts; last: HTTP 401"):
            model.answer([question("a", 2)])
    with ServedModel(settings(endpoint, url="http://127.0.0.1:9/v1", retries=1), tmp_path / "replies.jsonl") as model:
        assert model.answer([question("a", 1)])[0].message
        with pytest.raises(EndpointError, match="refused"):
            model.answer([question("a", 3)])


def test_a_refused_question_is_an_answer(endpoint: Any, tmp_path: Path) -> None:
    endpoint.failures = [400]
    for asked_now in (1, 0):
        with ServedModel(settings(endpoint), tmp_path / "replies.jsonl") as model:
            assert model.answer([question("too long")])[0].fault == "refused with HTTP 400"
            assert model.asked_now == asked_now


def test_the_cap_is_never_passed(endpoint: Any, tmp_path: Path) -> None:
    asks = [question("a", n) for n in range(10)]
    with ServedModel(settings(endpoint, most_requests=4), tmp_path / "a.jsonl") as model:
        replies = model.answer(asks)
        assert replies[4:] == [CAPPED] * 6 and all(reply.message for reply in replies[:4])
        assert model.answer(asks[4:]) == [CAPPED] * 6 and len(endpoint.bodies) == 4
    # A prompt of some 20 tokens and 50 for the reply: room for one, and, as it took 10, for three more in turn.
    with ServedModel(settings(endpoint, most_tokens=101), tmp_path / "b.jsonl") as model:
        kept = [model.answer([ask])[0] != CAPPED for ask in asks]
        assert kept == [True] * sum(kept) + [False] * (10 - sum(kept)) and 1 < sum(kept) < 6 and model.tokens <= 101
    endpoint.tokens = None  # a server that does not count: the room that was kept counts as used
    with ServedModel(settings(endpoint, most_tokens=140), tmp_path / "c.jsonl") as model:
        assert sum(model.answer([ask])[0] != CAPPED for ask in asks) == model.requests <= 2 and model.tokens <= 140


def test_what_a_reply_may_be(endpoint: Any, tmp_path: Path) -> None:
    call = {"type": "function", "id": "1", "function": {"name": "add", "arguments": '{"a": 1}'}}
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"content": " 4 ", "reasoning_content": "hm\n"}, Message("assistant", "4", "hm")),
        ({"content": "4", "reasoning": "hm"}, Message("assistant", "4", "hm")),
        ({"content": "<think>\nhm\n</think>\n\n4"}, Message("assistant", "4", "hm")),
        ({"content": None, "tool_calls": [call]}, Message("assistant", "", "", (ToolCall("add", {"a": 1}),))),
        ({"content": "<think>never closed"}, "thinking not closed once"),
        ({"content": "<think>a</think>b</think>c"}, "thinking not closed once"),
        ({"content": "  "}, "an empty answer"),
        ({"tool_calls": [{"function": {"name": "add", "arguments": "{a"}}]}, "a tool call that is not JSON"),
        ({"tool_calls": [{"function": {"name": "add", "arguments": "[1]"}}]}, "a tool call that is not JSON"),
        ({"content": None, "reasoning_content": None}, "an empty answer"),
        ({}, "an empty answer"),
        ({"content": 7}, "a message that is not text"),
        ({"content": "4", "reasoning": ["hm"]}, "a message that is not text"),
        ({"content": [7]}, "a message that is not text"),
        ({"content": "4", "reasoning_content": "hm</think> so"}, "thinking not closed once"),
        ({"content": "4<|im_end|>\n<|im_start|>user\n"}, "held a special token"),
        ({"content": "4", "reasoning_content": "<SPECIAL_11>"}, "held a special token"),
        ({"content": "\ud83d"}, "held bytes that are no character"),
        ({"content": "4", "tool_calls": 7}, "a tool call that is not JSON"),
        ({"tool_calls": [call] * 129}, "a tool call that is not JSON"),
        *(
            ({"tool_calls": [{"function": {"name": "add", "arguments": broken}}]}, fault)
            for broken, fault in [
                ('{"a": ' + "9" * 5000 + "}", "a tool call that is not JSON"),
                ('{"a": NaN}', "a tool call that is not JSON"),
                ('{"a": ' + "[" * 990 + "]" * 990 + "}", "a tool call that is not JSON"),
                ('{"a": ' + "[" * 100_000, "a tool call that is not JSON"),
                ('{"a": "\\ud800"}', "a tool call that is not JSON"),
                ('{"a": "<|eot_id|>"}', "held a special token"),
                (None, "a tool call that is not JSON"),
            ]
        ),
        ({"tool_calls": [{"function": {"arguments": "{}"}}]}, "a tool call that is not JSON"),
        ({"tool_calls": [None]}, "a tool call that is not JSON"),
    ]
    with ServedModel(settings(endpoint), tmp_path / "replies.jsonl") as model:
        for number, (said, wanted) in enumerate(cases):
            endpoint.say = lambda _, said=said: said  # type: ignore[misc]
            [reply] = model.answer([question("a", number)])
            assert (reply.message or reply.fault) == wanted
        endpoint.finish = "length"
        assert model.answer([question("a", 99)])[0].fault == "cut at max_tokens"


def test_the_request_is_openais(endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    tool = {"name": "add", "description": "Adds", "parameters": {"type": "object", "properties": {}}}
    messages = (
        Message("user", "q"),
        Message("assistant", "", "hm", (ToolCall("add", {"a": 1}), ToolCall("add", {"a": 2}))),
        Message("tool", "1"),
        Message("tool", "2"),
    )
    config = settings(endpoint, extra={"top_k": 20}, key_variable="MY_KEY")
    with ServedModel(config, tmp_path / "replies.jsonl") as model:
        model.answer([Query(messages, (tool,), 5)])
    [body] = endpoint.bodies
    assert (body["model"], body["seed"], body["top_k"], body["max_tokens"]) == ("m", 5, 20, 50)
    assert body["tools"] == [{"type": "function", "function": tool}]
    _, called, *results = body["messages"]
    assert [call["id"] for call in called["tool_calls"]] == [result["tool_call_id"] for result in results]
    assert called["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert "secret" not in (tmp_path / "replies.jsonl").read_text()


def test_a_cut_line_is_asked_again_and_a_damaged_one_is_named(endpoint: Any, tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    with ServedModel(settings(endpoint, parallel=1), path) as model:
        model.answer([question("a", n) for n in range(3)])
        with pytest.raises(ConfigError, match="another process"):
            ServedModel(settings(endpoint), path)
    whole = path.read_bytes()
    for cut in (1, 20, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        with ServedModel(settings(endpoint), path) as model:
            assert [r.message.content for r in model.answer([question("a", n) for n in range(3)]) if r.message] == [
                "0", "1", "2",
            ]  # fmt: skip
            assert model.asked_now == 1
        assert path.read_bytes() == whole
    path.write_bytes(b"oops\n" + whole)
    with pytest.raises(DataError, match=r"replies\.jsonl:1"):
        ServedModel(settings(endpoint), path)


def counting(depth: int) -> Maker:
    """Asks ``depth`` times, each time about the last answer."""
    said = str(depth)
    for _ in range(depth):
        [reply] = yield [question(said)]
        said += reply.message.content if reply.message else "!"
    return Made([Conversation((Message("user", said),))], Counter({"end": 1}))


def test_makers_come_out_in_order_whatever_is_quick(endpoint: Any, tmp_path: Path) -> None:
    endpoint.say = lambda body: {"content": "x"}
    depths = [3, 0, 5, 1, 4, 0, 2, 5]
    for at_once in (1, 3, 8):
        with ServedModel(settings(endpoint), tmp_path / f"{at_once}.jsonl") as model:
            made = list(drive(map(counting, depths), model, at_once))
        assert [each.samples[0].messages[0].content for each in made] == [f"{n}{'x' * n}" for n in depths]


def test_rejection_keeps_the_right_ones_with_their_reasoning(endpoint: Any, tmp_path: Path) -> None:
    said = ["5", "4", "4", "4.", "<think>", "4!"]
    endpoint.say = lambda body: {"content": said[body["seed"] % 6], "reasoning_content": "two and two"}
    task = Conversation(
        (Message("user", "2+2?"), Message("assistant", "old")), id="t", source="s", licence="MIT", task={"kind": "x"}
    )
    makers = [rejection(task, 6, 2, lambda _, answers: [float("4" in each.content) for each in answers])]
    with ServedModel(settings(endpoint), tmp_path / "replies.jsonl") as model:
        [made] = drive(makers, model, 4)
    assert [c.messages for c in made.samples] == [
        (Message("user", "2+2?"), Message("assistant", text, "two and two")) for text in ("4", "4.")
    ]
    assert made.reasons == {
        "not accepted by the verifier": 1, "said before": 1, "thinking not closed once": 1,
        "right, but enough are kept": 1,
    }  # fmt: skip
    assert [c.id for c in made.samples] == ["t#0", "t#1"] and made.samples[0].licence == "MIT"


SCRIPT = """
import sys
from pathlib import Path
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.synthetic.config import Generate
from nanoalign.data_recipes.synthetic.make import make
from nanoalign.data_recipes.synthetic.rejection import rejection
url, out = sys.argv[1:]
served = {"url": url, "model": "m", "most_requests": 55, "most_tokens": 10**6, "max_tokens": 50, "parallel": 3}
config = Generate.model_validate({
    "out": out, "generate": {"kind": "rejection", "source": "s", "samples": 30, "tries": 2, "served": served},
})
tasks = (Conversation((Message("user", f"q{n}"),), id=str(n)) for n in range(30))
def verify(task, answers):
    return [float(len(each.content) % 2) for each in answers]
report = make(config, (rejection(task, 2, 1, verify) for task in tasks), lambda now: print(now.requests, flush=True))
print("asked", report["asked_now"])
"""


def test_killed_and_resumed_gives_the_same_bytes_under_a_cap(endpoint: Any, tmp_path: Path) -> None:
    endpoint.delay_s = 0.02
    endpoint.say = lambda body: {"content": "a" * (len(body["messages"][0]["content"]) + body["seed"])}

    def start(name: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", SCRIPT, endpoint.url, str(tmp_path / name / "rows.jsonl")]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    whole = start("whole")
    assert "asked 55" in whole.communicate()[0]
    for moment in (2, 20, 40):
        victim, before = start("killed"), len(endpoint.bodies)
        while len(endpoint.bodies) < before + moment // 2 and victim.poll() is None:
            time.sleep(0.005)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        assert not (tmp_path / "killed" / "rows.jsonl").exists()
    resumed = start("killed").communicate()[0]
    assert 0 < int(resumed.split()[-1]) < 55
    files = [tmp_path / name / "rows.jsonl" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes() and files[0].stat().st_size > 1000
    reports = [json.loads(file.with_suffix(".report.json").read_text()) for file in files]
    for report in reports:
        assert report["not_kept"]["the spending cap was reached"] == 60 - 55 and report["requests"] == 55
        assert report["samples"] == len(files[0].read_text().splitlines())
