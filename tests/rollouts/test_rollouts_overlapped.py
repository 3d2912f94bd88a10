"""Episodes of several turns: prompts as sampled, limits, and overlap on engines that take questions at any time."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.conversation import Answer, Message
from nanoalign.data_recipes.miniature.tokenizer import train_tokenizer
from nanoalign.rl.episodes import rows_of
from nanoalign.rollouts.base import Completion, Mode, Request, Sampling
from nanoalign.rollouts.environments.base import Task
from nanoalign.rollouts.episodes import EpisodeRecord, Limits, begin

NANO, QWEN, PLAIN = "nemotron-nano-v2", "qwen3", "chatml"
ON, OFF = Mode(True), Mode(False)


def tokenizer_of(name: str) -> Any:
    chat = chat_format(name)
    special = [*chat.special_tokens, *chat.stop, "<think>", "</think>"]
    return train_tokenizer(["say some words", "go on and on"] * 50, list(dict.fromkeys(special)), chat.stop[0], 300)


TOKENIZERS = {name: tokenizer_of(name) for name in (NANO, QWEN, PLAIN)}


def spelled(name: str, text: str, forced: int = 0, finish: Any = "stop") -> Completion:
    """A completion in a spelling of its own: the text letter by letter, which no tokenizer would give back."""
    tokenizer, chat = TOKENIZERS[name], chat_format(name)
    pieces, rest = [], text
    marks = ("<think>", "</think>")
    while rest:
        mark = next((each for each in marks if rest.startswith(each)), rest[0])
        pieces.append(mark)
        rest = rest[len(mark) :]
    ids = [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False)]
    ids += [tokenizer.convert_tokens_to_ids(chat.stop[0])] if finish == "stop" else []
    return Completion(tuple(ids), (-1.0,) * len(ids), tuple(n < forced for n in range(len(ids))), finish)


@dataclass
class Talk:
    """A tool answers each of the first ``length`` messages."""

    length: int
    before: Callable[[int], None] = lambda turn: None
    heard: list[str] = field(default_factory=list)

    def step(self, answer: Answer) -> Sequence[Message]:
        self.before(len(self.heard))
        self.heard.append(answer.content)
        return [Message("tool", f"go on {len(self.heard)}")] if len(self.heard) <= self.length else []

    def success(self) -> bool:
        return True  # though only what ended by itself can be one


class Talks:
    name = "talks"

    def __init__(self, length: int, before: Callable[[str, int], None] = lambda task, turn: None) -> None:
        self.length, self.before = length, before

    def tasks(self, split: str) -> list[Task]:
        return [Task(f"t{n}", (Message("user", f"say {n}"),), (), split, {}) for n in range(6)]

    def start(self, task: Task) -> Talk:
        return Talk(self.length, lambda turn: self.before(task.id, turn))


class Lockstep:
    """An engine that writes what it is told to."""

    max_length: int | None = None

    def __init__(self, write: Callable[[Request], Completion]) -> None:
        self.write, self.asked = write, []

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        assert requests, "a question of nothing"
        self.asked += requests
        return [self.write(request) for request in requests]


class AtAnyTime(Lockstep):
    """The same, each answer as a future."""

    def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        futures: list[Future[Completion]] = [Future() for _ in requests]
        for future, answer in zip(futures, self.generate(requests), strict=True):
            future.set_result(answer)
        return futures


def played(
    name: str, engine: Any, talks: Talks, limits: Limits, mode: Mode = OFF, **sampling: Any
) -> list[EpisodeRecord]:
    asked = Sampling(**{"max_tokens": 50, "thinking_budget": mode.budget, **sampling})
    attempts = [(task, 0) for task in talks.tasks("train")]
    return begin(
        engine, talks, attempts, lambda place, turn: (mode, asked), chat_format(name), TOKENIZERS[name], limits
    )()


ENGINES = pytest.mark.parametrize("engine", [Lockstep, AtAnyTime])


@ENGINES
@pytest.mark.parametrize(
    ("name", "mode", "text"),
    [(PLAIN, OFF, "say words"), (QWEN, ON, "<think>\ngo on\n</think>\n\nsay words")],
)
def test_prompts_hold_the_tokens_as_sampled(engine: Any, name: str, mode: Mode, text: str) -> None:
    written = spelled(name, text)
    assert list(written.token_ids) != TOKENIZERS[name].encode(text + "<|im_end|>", add_special_tokens=False)
    for record in played(name, engine(lambda request: written), Talks(2), Limits(6), mode):
        assert record.ended == "done" and record.success and len(record.turns) == 3
        for earlier, later in zip(record.turns, record.turns[1:]):
            so_far = (*earlier.prompt_ids, *written.token_ids)
            assert later.prompt_ids[: len(so_far)] == so_far
            between = TOKENIZERS[name].decode(later.prompt_ids[len(so_far) :])
            assert "<tool_response>\ngo on" in between and between.startswith("\n<|im_start|>user")
        [row] = rows_of(record.turns)
        assert sum(row.trained) == 3 * len(written.token_ids)


@ENGINES
@pytest.mark.parametrize(
    ("name", "mode", "text"),
    [(NANO, ON, "go on\n</think>\nsay words\n"), (NANO, OFF, "\nsay words"), (PLAIN, OFF, "  say  "),
     (PLAIN, ON, "go on</think>say"), (QWEN, ON, "<think>go on</think>say"), (QWEN, OFF, "say")],
)  # fmt: skip
def test_where_history_is_rewritten_a_new_row_begins(engine: Any, name: str, mode: Mode, text: str) -> None:
    written = spelled(name, text)
    chat, tokenizer = chat_format(name), TOKENIZERS[name]
    for record in played(name, engine(lambda request: written), Talks(2), Limits(6), mode):
        rows = rows_of(record.turns)
        assert len(rows) == len(record.turns) == 3
        assert all(sum(row.trained) == len(row.trained) == len(written.token_ids) for row in rows)
        places = [place for place, message in enumerate(record.messages) if message.role == "assistant"]
        for place, turn in zip(places, record.turns, strict=True):
            rendered = chat.prompt(record.messages[:place], (), thinking=mode.thinking)
            assert list(turn.prompt_ids) == tokenizer.encode(rendered, add_special_tokens=False)


@given(st.text(max_size=12), st.booleans(), st.sampled_from([NANO, QWEN, PLAIN]))
def test_a_prompt_reads_as_the_conversation_so_far(text: str, thinking: bool, name: str) -> None:
    """Whatever is written, a turn's prompt has the text that the format renders; only its tokens may be the model's."""
    text = text.encode("utf-8", "ignore").decode()
    written = spelled(name, f"x</think>{text}" if thinking else text)
    tokenizer, chat = TOKENIZERS[name], chat_format(name)
    [record] = played(name, Lockstep(lambda request: written), Talks(1), Limits(6), Mode(thinking))[:1]
    places = [place for place, message in enumerate(record.messages) if message.role == "assistant"]
    for place, turn in zip(places, record.turns, strict=True):
        rendered = chat.prompt(record.messages[:place], (), thinking=thinking)
        assert tokenizer.decode(turn.prompt_ids, skip_special_tokens=False) == rendered
    trained = sum(sum(row.trained) for row in rows_of(record.turns))
    assert trained == len(written.token_ids) * len(record.turns)


@ENGINES
def test_limits_hold_exactly(engine: Any) -> None:
    words = spelled(PLAIN, "say")  # four tokens
    asked = engine(lambda request: words)
    for record in played(PLAIN, asked, Talks(99), Limits(turns=3)):
        assert (record.ended, len(record.turns), record.success) == ("turns", 3, False)
    assert len(asked.asked) == 3 * 6

    def within(request: Request) -> Completion:
        left = request.sampling.max_tokens
        return words if left >= 4 else Completion(words.token_ids[:left], (-1.0,) * left, (False,) * left, "length")

    for tokens, ended, turns in ((8, "tokens", 2), (10, "length", 3), (3, "length", 1)):
        asked = engine(within)
        for record in played(PLAIN, asked, Talks(99), Limits(turns=9, tokens=tokens), max_tokens=6):
            assert (record.ended, len(record.turns), record.tokens) == (ended, turns, tokens)
            assert not record.success
        given_ = sorted({request.sampling.max_tokens for request in asked.asked})
        assert given_ == sorted({min(6, tokens - 4 * turn) for turn in range(turns)})


@ENGINES
def test_a_budget_of_the_episode_is_shared_by_its_turns(engine: Any) -> None:
    """Thinking tokens, the close included, are taken off; a turn's budget is never below 0, which closes at once."""
    written = spelled(QWEN, "<think>\ngo\n</think>\n\nsay")
    thought = 5  # a line end, two letters, a line end, the close; <think> is not thought yet
    asked = engine(lambda request: written)
    played(QWEN, asked, Talks(2), Limits(9, budget_per_episode=True), Mode(True, 8))
    budgets = sorted(request.sampling.thinking_budget for request in asked.asked)
    assert budgets == sorted(6 * [8, 8 - thought, 0]), budgets
    asked = engine(lambda request: written)
    played(QWEN, asked, Talks(2), Limits(9), Mode(True, 8))
    assert {request.sampling.thinking_budget for request in asked.asked} == {8}
    asked = engine(lambda request: written)
    played(QWEN, asked, Talks(2), Limits(9, budget_per_episode=True), ON)
    assert {request.sampling.thinking_budget for request in asked.asked} == {None}


def test_a_slow_episode_holds_no_other_up() -> None:
    """The step of one task waits until all others are over."""
    others_over, over = threading.Event(), []
    lock = threading.Lock()

    def before(task: str, turn: int) -> None:
        if task == "t0" and turn == 0:
            assert others_over.wait(30)
        with lock:
            if turn == 3:
                over.append(task)
            if len(over) == 5:
                others_over.set()

    records = played(PLAIN, AtAnyTime(lambda request: spelled(PLAIN, "say")), Talks(3, before), Limits(9))
    assert over[-1] == "t0" and sorted(over) == [f"t{n}" for n in range(6)]
    assert [record.task.id for record in records] == [f"t{n}" for n in range(6)]
    assert all(record.success for record in records)


def test_both_ways_of_asking_give_the_same_records() -> None:
    def write(request: Request) -> Completion:
        return spelled(NANO, "go</think>say" + "y" * (sum(request.prompt_ids) % 5), forced=sum(request.prompt_ids) % 2)

    first, second = (
        played(NANO, engine(write), Talks(3), Limits(3, tokens=40), ON) for engine in (Lockstep, AtAnyTime)
    )
    assert first == second


@pytest.mark.parametrize("turn", [0, 1])
def test_what_a_step_raises_ends_the_wait(turn: int) -> None:
    """At once, though another episode's step still waits; nothing is asked after it."""
    never = threading.Event()

    def before(task: str, at: int) -> None:
        if task == "t1" and at == turn:
            raise KeyError("no stock")
        if task == "t0" and at == turn:
            never.wait(30)

    asked = AtAnyTime(lambda request: spelled(PLAIN, "say"))
    with pytest.raises(KeyError, match="no stock"):
        played(PLAIN, asked, Talks(3, before), Limits(9))
    never.set()


@pytest.mark.parametrize("lost", [ConnectionError("the server is gone"), None])
def test_what_the_engine_raises_ends_the_wait(lost: Exception | None) -> None:
    """So does an engine that is closed: it cancels what is waited for."""

    class Lost(AtAnyTime):
        def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
            futures = super().submit(requests)
            if len(self.asked) > 6:
                futures[0] = Future()
                futures[0].set_exception(lost) if lost else futures[0].cancel()
            return futures

    with pytest.raises(ConnectionError if lost else CancelledError):
        played(PLAIN, Lost(lambda request: spelled(PLAIN, "say")), Talks(3), Limits(9))


@ENGINES
def test_what_is_over_is_asked_no_more(engine: Any) -> None:
    """A turn that is cut or malformed, or for which the engine has no room."""
    cut = engine(lambda request: spelled(PLAIN, "say", finish="length"))
    assert {record.ended for record in played(PLAIN, cut, Talks(3), Limits(9))} == {"length"}
    assert len(cut.asked) == 6
    full = engine(lambda request: spelled(PLAIN, "say"))
    full.max_length = 110
    records = played(PLAIN, full, Talks(30), Limits(40))
    assert {record.ended for record in records} == {"room"}
    last = max(len(request.prompt_ids) for request in full.asked)
    assert last + 50 <= 110
    empty = engine(lambda request: Completion((), (), (), "stop"))
    records = played(PLAIN, empty, Talks(1), Limits(9))
    assert all(len(record.turns) == 2 and record.tokens == 2 for record in records)
    assert all(not any(row.trained) for record in records for row in rows_of(record.turns))
