"""Makers of synthetic samples: what they ask, what they keep, and why they keep nothing else."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoalign.data_recipes.chat import CHAT_FORMATS, chat_format
from nanoalign.data_recipes.conversation import Conversation, Message, ToolCall
from nanoalign.data_recipes.selection import load
from nanoalign.data_recipes.synthetic import make
from nanoalign.data_recipes.synthetic.config import Generate
from nanoalign.data_recipes.synthetic.driver import Made, Maker
from nanoalign.data_recipes.synthetic.long_context import across, contexts
from nanoalign.data_recipes.synthetic.rejection import rejection
from nanoalign.data_recipes.synthetic.served import Query, Reply, _openai, _reply
from nanoalign.data_recipes.synthetic.trajectories import trajectory
from nanoalign.data_recipes.synthetic.translation import hidden, restored, translation
from nanoalign.data_recipes.workplace.office import TOOLS, Event, Office

Model = Callable[[Query], Message | str]


def run(maker: Maker, model: Model) -> Made:
    """Plays one maker alone against a model in this process; text is a fault."""
    try:
        asks = next(maker)
        while True:
            said = [model(ask) for ask in asks]
            asks = maker.send([Reply(each) if isinstance(each, Message) else Reply(None, each) for each in said])
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def answer(text: str, *calls: ToolCall) -> Message:
    return Message("assistant", text, "hm", calls)


class Desk:
    """An episode at the miniature office's desk; solved when the event is gone."""

    def __init__(self) -> None:
        self.messages = [Message("user", "Cancel yoga.")]
        self.office = Office({"e10": Event("yoga", "Mon", 8)})

    def step(self, said: Message) -> Sequence[Message]:
        results = [Message("tool", self.office.call(call.name, call.arguments)) for call in said.tool_calls]
        self.messages += [said, *results]
        return results

    def success(self) -> bool:
        return not self.office.events


TASK = Conversation((Message("user", "Cancel yoga."),), TOOLS, "tools", "trajectories:office", "MIT", id="7")


def test_a_trajectory_is_kept_at_its_first_success() -> None:
    def model(ask: Query) -> Message | str:
        """Wrong at first, then cut, then lost in look-ups, then right."""
        turn = sum(message.role == "assistant" for message in ask.messages)
        if ask.number == 40:
            return answer("Done.")
        if ask.number == 41:
            return "cut at max_tokens"
        if ask.number == 42 or turn == 0:
            return answer("", ToolCall("find", {"q": "yoga"}))
        assert ask.messages[-1].content == ("e10 yoga Mon 8" if turn == 1 else "ok")
        return answer("", ToolCall("drop", {"id": "e10"})) if turn == 1 else answer("Yoga is off.")

    made = run(trajectory(TASK, Desk, tries=8, turns=4, seed=5), model)
    assert made.reasons == {"the end state is another one": 1, "cut at max_tokens": 1, "too many turns": 1}
    [sample] = made.samples
    assert [m.role for m in sample.messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert sample.messages[1].reasoning == "hm" and (sample.tools, sample.licence, sample.id) == (TOOLS, "MIT", "7")


def test_a_success_with_an_unknown_tool_is_not_kept() -> None:
    def model(ask: Query) -> Message:
        turn = sum(message.role == "assistant" for message in ask.messages)
        calls = [ToolCall("dorp", {}), ToolCall("drop", {"id": "e10"})]
        return answer("", calls[turn]) if turn < 2 else answer("Done.")

    made = run(trajectory(TASK, Desk, tries=2, turns=4), model)
    assert made.reasons == {"unknown tool": 2} and not made.samples


def document(number: int, length: int = 10) -> Conversation:
    return Conversation((Message("user", f"fact{number} " + "x" * length),), id=str(number))


def exact(task: Conversation, answers: Sequence[Message]) -> list[float]:
    assert task.task and task.task["kind"] == "exact"
    return [float(each.content.endswith(f"Answer: {task.task['answer']}")) for each in answers]


BASE = Conversation((), domain="long context", source="long_context", licence="MIT", id="0")


def test_a_question_across_documents_needs_both() -> None:
    documents = [document(n) for n in range(6)]
    needs = ["fact0", "fact1"]

    def model(ask: Query) -> Message | str:
        text = ask.messages[-1].content
        if "Reply with JSON" in text:
            assert "fact0" in text and "fact1" in text and "fact2" not in text
            return answer('```json\n{"question": "Which?", "answer": "both"}\n```')
        known = all(fact in text for fact in needs) and ask.number % 3 != 0
        return answer("Answer: both" if known else "Answer: unknown")

    made = run(across(BASE, documents, 3, exact, seed=1), model)
    [sample] = made.samples
    prompt, said = sample.messages
    assert all(f"fact{n} " in prompt.content for n in range(6)) and "Which?" in prompt.content
    assert [prompt.content.index(f"fact{n} ") for n in range(6)] != sorted(
        prompt.content.index(f"fact{n} ") for n in range(6)
    )
    assert (said.reasoning, sample.task) == ("hm", {"kind": "exact", "answer": "both"})
    assert made.reasons == {"another answer": 1}
    needs = ["fact1"]
    assert run(across(BASE, documents, 3, exact, seed=1), model).reasons == {"one document is enough": 1}
    for said_instead in (
        "no JSON",
        '{"question": "", "answer": "a"}',
        json.dumps({"question": "a", "answer": "b" * 101}),
    ):
        failed = run(across(BASE, documents, 3, exact), lambda _, text=said_instead: answer(text))  # type: ignore[misc]
        assert failed.reasons == {"no question with a short answer": 1} and not failed.samples
    assert run(across(BASE, documents[:1], 3, exact), model).reasons == {"no two documents fit": 1}


@given(st.integers(0, 40), st.integers(2, 8), st.integers(0, 500), st.integers(0, 9))
def test_contexts_fit(count: int, most: int, characters: int, seed: int) -> None:
    documents = [document(n, 13 * n % 60) for n in range(count)]
    drawn = list(contexts(documents, 5, most, characters, seed))
    assert len(drawn) == 5 and drawn == list(contexts(documents, 5, most, characters, seed))
    for chosen in drawn:
        assert len(chosen) <= most and len({each.id for each in chosen}) == len(chosen)
        assert sum(len(each.messages[0].content) for each in chosen) <= characters


TEXTS = st.lists(
    st.sampled_from(
        [
            "word",
            " ",
            "\n",
            "$x^2$",
            "`code`",
            "```\nblock\n```",
            "\\boxed{1+\\frac{a}{b}}",
            "$5 and $6",
            "<b>",
            "⟦1⟧",
            "§",
        ]
    )
).map("".join)


@given(TEXTS)
def test_what_is_hidden_comes_back(text: str) -> None:
    masked, parts = hidden(text)
    assert restored(masked, parts) == text
    if parts:
        assert restored(masked.replace("⟦1⟧", "", 1), parts) is None
        assert restored(masked + "⟦1⟧", parts) is None


GERMAN = (
    "Das ist die Antwort auf die Frage, und sie ist nicht so schwer, wie man mit dem ersten Blick auf sie denkt: {}."
)


def test_a_translation_keeps_formulas_calls_and_results() -> None:
    call = ToolCall("find", {"q": "yoga"})
    sample = Conversation(
        (
            Message("user", "What is $2+2$, please?"),
            Message("assistant", "", "I look it up.", (call,)),
            Message("tool", "four"),
            Message("assistant", "It is \\boxed{4}.", ""),
        ),
        TOOLS, "math", "s", "MIT", "en", "1", {"kind": "math", "answer": "4"},
    )  # fmt: skip

    def model(ask: Query) -> Message | str:
        text = ask.messages[0].content
        assert "German" in text and "2+2" not in text and "four" not in text
        if ask.number % 4 == 0 and "It is" in text:
            return answer(GERMAN.format("fertig"))  # without its mark
        if ask.number % 4 == 0 and "look" in text:
            return answer(
                "This is the answer to the question and it is not as hard as it was before, to be honest with you."
            )
        return answer("-----\n" + GERMAN.format("⟦1⟧" if "⟦1⟧" in text else "so") + "\n-----")

    made = run(translation(sample, "de", tries=4, seed=2), model)
    assert made.reasons == {"a formula or code was lost": 1, "not German": 1}
    [german] = made.samples
    assert [m.content for m in german.messages] == [GERMAN.format("$2+2$"), "", "four", GERMAN.format("\\boxed{4}")]
    assert german.messages[1] == Message("assistant", "", GERMAN.format("so"), (call,))
    assert (german.language, german.task, german.messages[3].reasoning) == ("de", sample.task, "")
    assert not run(translation(sample, "de", tries=1, seed=0), model).samples


def test_answers_that_hang_on_the_language_are_not_translated() -> None:
    sample = Conversation((Message("user", "q"), Message("assistant", "a")), task={"kind": "instruction"})
    made = run(translation(sample, "fr", 2), lambda ask: answer("non"))
    assert made.reasons == {"tasks of kind instruction are not translated": 1} and not made.samples


PIECES = st.sampled_from(
    ["4", " ", "\n", "<think>", "</think>", "<|im_end|>", "<SPECIAL_11>", "\ud800", "\u2028", "\x85", "\x00", "⟦1⟧",
     "⟦٣⟧", "⟦" + "9" * 5000 + "⟧", "{", "}",
     '{"question": "q", "answer": "a"}', '{"question": ' + "[" * 2000, "-----\n",
     "Das ist die Antwort auf die Frage und es ist nicht so schwer, wie man mit dem ersten Blick auf sie denkt."]
)  # fmt: skip
SAID = st.lists(PIECES, max_size=4).map("".join) | st.text()
ARGUMENTS = st.sampled_from(
    ['{"q": "yoga"}', '{"id": "e10"}', "", "{", "[1]", '{"a": NaN}', '{"a": ' + "9" * 5000 + "}", '{"a": "\\ud800"}',
     '{"a": ' + "[" * 980 + "]" * 980 + "}", "[" * 2000, '{"title": "<|im_end|>", "day": "Mon", "hour": 9}', None, 7,
     {"a": 1}]
)  # fmt: skip
CALLS = st.fixed_dictionaries({"function": st.fixed_dictionaries(
    {}, optional={"name": st.sampled_from(["find", "drop", "x", "", None, 7]), "arguments": ARGUMENTS})})  # fmt: skip
REPLIES = st.fixed_dictionaries(
    {},
    optional={
        "content": SAID | st.sampled_from([None, 7, [], ["a"], [{"type": "text", "text": "a"}], {"a": 1}]),
        "reasoning_content": SAID | st.sampled_from([None, 7, []]),
        "tool_calls": st.lists(CALLS | st.none() | st.just([]), max_size=3) | st.sampled_from([None, 7, "a", {}]),
    },
)


class Said:
    """A served model that says what it is told to, read as replies of an endpoint are."""

    requests = tokens = asked_now = 0

    def __init__(self, said: list[dict[str, Any]]) -> None:
        self.said = cycle(said)

    def __enter__(self) -> "Said":
        return self

    def __exit__(self, *_: object) -> None: ...

    def answer(self, asks: Sequence[Query]) -> list[Reply]:
        bodies = [json.dumps({"message": next(self.said), "finish": "stop"}) for _ in asks]
        kept = [body.encode(errors="backslashreplace") for body in bodies]
        for ask in asks:
            json.dumps(_openai(ask.messages), ensure_ascii=False).encode()
        return [_reply(json.loads(each)) for each in kept]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(REPLIES, min_size=1, max_size=4))
def test_whatever_a_model_replies_the_written_file_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[dict[str, Any]]
) -> None:
    task = Conversation((Message("user", "2+2?"), Message("assistant", "4")), TOOLS, id="t", task={"kind": "math"})
    prose = replace(task, messages=(Message("user", "What is $2+2$?"), Message("assistant", "Four.", "Two twice.")))

    def right(_: Conversation, answers: Sequence[Message]) -> list[float]:
        return [1.0 for _ in answers]

    makers = [
        rejection(task, 3, 2, right),
        trajectory(TASK, Desk, 2, 3),
        across(BASE, [document(0), document(1)], 2, lambda _, answers: [float(len(answers[0].content) % 2)]),
        translation(prose, "de", 2),
    ]
    served = {"url": "http://x", "model": "m", "most_requests": 1, "most_tokens": 1}
    out = tmp_path / "rows.jsonl"
    config = {"kind": "rejection", "source": "s", "samples": 1, "served": served}
    monkeypatch.setattr(make, "ServedModel", lambda *_: Said(said))
    report = make.make(Generate.model_validate({"out": str(out), "generate": config}), makers)
    assert report["started_from"] == 4
    assert sum(report["not_kept"].values()) + report["samples"] > 0
    if report["samples"]:
        for chat in map(chat_format, CHAT_FORMATS):
            assert len(load(f"file:{out}", chat=chat).conversations) == report["samples"]
