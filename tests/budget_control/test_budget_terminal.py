"""The terminal chat with a real tiny model, and its display with tokens written by hand."""

import io
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tiny_models import tiny_llama, tiny_tokenizer

from nanoalign.budget_control.client import ServerError, Token
from nanoalign.budget_control.rule import BudgetRule
from nanoalign.budget_control.terminal import Session, Writer, converse, local_writer, settled
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import ConfigError
from nanoalign.common.printable import printable
from nanoalign.data_recipes.chat.nemotron import NemotronNanoV2

TOKENIZER = tiny_tokenizer()
TOKENS = ThinkingTokens.from_tokenizer(TOKENIZER)
CHAT = NemotronNanoV2()


def talk(
    lines: Sequence[str], write: Writer, session: Session | None = None, max_tokens: int = 30
) -> tuple[str, Session]:
    session = session or Session(grace=4)
    screen = io.StringIO()
    given: Iterator[str] = iter(lines)

    def read_line() -> str:
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    console = Console(file=screen, width=100)
    converse(session, write, CHAT, TOKENS, TOKENIZER, 30, console, read_line)
    return screen.getvalue(), session


def says(text: str, requests: list[tuple[str, int | None]] | None = None) -> Writer:
    """A model that says ``text`` as far as the rule lets it."""

    def write(prompt: Sequence[int], rule: BudgetRule, max_tokens: int, emit: Callable[[Token], None]) -> None:
        if requests is not None:
            requests.append((TOKENIZER.decode(prompt), rule.budget))
        state = rule.start(prompt)
        drawn = [*TOKENIZER.encode(text), 0]
        while drawn:
            due = rule.forced(state)
            id = drawn.pop(0) if due is None else due
            thinking, finish = rule.thinking(state), "stop" if id == 0 else None
            state = rule.advance(state, id)
            emit(Token(TOKENS.texts[id], id, due is not None, thinking, finish))  # type: ignore[arg-type]

    return write


def test_thinking_is_folded_into_a_count_and_the_answer_is_shown() -> None:
    shown, session = talk(["What?"], says("hm, so it goes.\n</think>\n\nIt is naïve 🙂 42."))
    count = len(TOKENIZER.encode("hm, so it goes.\n</think>"))
    assert f"[thought {count} tokens]\nIt is naïve 🙂 42.\n" in shown and "so it goes" not in shown
    assert [message.content for message in session.messages] == ["What?", "It is naïve 🙂 42."]
    assert session.messages[1].reasoning == "hm, so it goes."


def test_a_budget_shows_itself_and_show_unfolds() -> None:
    shown, _ = talk(["/budget 3", "/show", "What?"], says("hm, so it goes on and on.\n\nIt is 42."))
    assert "at most 3 tokens" in shown and "hm, " in shown
    count = 3 + 4 + len(TOKENS.close_ids)
    assert f"[thought {count}/3 tokens, closed by the budget]" in shown


def test_modes_and_budgets_switch_between_messages() -> None:
    requests: list[tuple[str, int | None]] = []
    lines = ["one", "/no_think", "two", "/think", "/budget 9", "three", "/budget off", "/new", "four /no_think"]
    _, session = talk(lines, says("ok", requests))
    assert [budget for _, budget in requests] == [None, None, 9, None]
    assert [prompt.endswith("<think>\n") for prompt, _ in requests] == [True, False, True, True]
    assert "one" in requests[2][0] and "three" not in requests[3][0] and len(session.messages) == 2


def test_signals_in_a_message_count_until_a_mode_is_chosen() -> None:
    requests: list[tuple[str, int | None]] = []
    talk(["four /no_think"], says("ok", requests))
    assert requests[0][0].endswith("<think></think>")


def test_wrong_commands_and_failing_servers_do_not_end_the_chat() -> None:
    def fails(prompt: Sequence[int], rule: BudgetRule, max_tokens: int, emit: Callable[[Token], None]) -> None:
        raise ServerError("the connection failed")

    shown, session = talk(["/budget -3", "/bugdet 3", "hello", "/quit", "never read"], fails)
    assert shown.count("is not a command") == 2 and "error: the connection failed" in shown
    assert session.messages == []


def test_interrupting_an_answer_keeps_what_was_said() -> None:
    def stops(prompt: Sequence[int], rule: BudgetRule, max_tokens: int, emit: Callable[[Token], None]) -> None:
        for id in TOKENIZER.encode("</think>It is"):
            emit(Token(TOKENS.texts[id], id))
        raise KeyboardInterrupt

    shown, session = talk(["hello"], stops)
    assert "[stopped]" in shown and session.messages[-1].content.endswith("It is")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_local_model_streams_under_its_budget(temperature: float) -> None:
    write = local_writer(tiny_llama(len(TOKENIZER)), TOKENS, temperature)
    tokens: list[Token] = []
    rule = BudgetRule(TOKENS, 5, grace=3)
    write(TOKENIZER.encode("<think>\n"), rule, 30, tokens.append)
    thought = [token for token in tokens if token.thinking]
    assert 5 <= len(thought) <= rule.longest_thinking or thought[-1].text.endswith(">")
    assert any(token.forced for token in thought) and not any(token.forced for token in tokens[len(thought) :])
    shown, _ = talk(["hello"], write, Session(budget=5, grace=3))
    assert "/5 tokens" in shown


BELL, TITLE = "\x07", "\x1b]0;owned\x07"


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    said = f"so{TITLE} it\x1b[2J goes.\n</think>\n\nIt\r is\x1b[31m 42{TITLE}.\x9b1A\n"
    said += "It is\x1b]8;;http://x\x1b\\ so.\x1b[1"
    for command in ("/show", "/think"):
        shown, session = talk([command, "What?"], says(said))
        assert "It is 42.\nIt is so." in shown and not set(shown) & {"\x1b", BELL, "\r", "\x9b"}
        assert "owned" not in shown and "http" not in shown
    assert session.messages[1].content.startswith("It\r is\x1b[31m 42"), "the conversation keeps what was said"


def test_an_error_of_a_server_is_made_safe_too() -> None:
    def fails(prompt: Sequence[int], rule: BudgetRule, max_tokens: int, emit: Callable[[Token], None]) -> None:
        raise ServerError(f"HTTP 500{TITLE}")

    assert "error: HTTP 500\n" in talk(["hello"], fails)[0]


PIECES = st.lists(
    st.sampled_from(
        [
            "\x1b",
            "\x1b[",
            "\x1b]",
            "\x1bP",
            "\x1b\\",
            "\x9b",
            "\x9d",
            "\x9c",
            BELL,
            "\r",
            "\n",
            "\t",
            "0;1m",
            " ",
            "a",
            "é",
            "\\",
        ]
    )
)


@given(PIECES)
def test_text_in_pieces_is_shown_as_the_whole_would_be(pieces: list[str]) -> None:
    text, shown = "", ""
    for piece in pieces:
        text += piece
        now = printable(text[: settled(text)])
        assert now.startswith(shown)
        shown = now
    assert printable(text).startswith(shown)


def test_an_empty_answer_and_a_broken_character_end_the_display_well() -> None:
    assert "[thought" not in talk(["/no_think", "What?"], says(""))[0]
    broken = TOKENIZER.encode("</think>ok 🙂")[:-1]

    def breaks(prompt: Sequence[int], rule: BudgetRule, max_tokens: int, emit: Callable[[Token], None]) -> None:
        for id in broken:
            emit(Token(TOKENS.texts[id], id))

    assert "ok \ufffd\n" in talk(["What?"], breaks)[0]


def test_what_is_no_message() -> None:
    session = Session()
    assert session.command("hello /think") is None and session.command("") is None
    with pytest.raises(ConfigError, match="'/budget many' is not a command"):
        session.command("/budget many")
