"""What is shown on a terminal holds nothing that the terminal would obey."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.printable import printable

PIECES = st.sampled_from(
    [
        "\x1b",
        "\x1b[",
        "\x1b]",
        "\x1bP",
        "\x1b\\",
        "\x9b",
        "\x9d",
        "\x9c",
        "\x07",
        "\r",
        "\n",
        "\t",
        "0;1m",
        "]52;c;",
        "a",
        "é",
        "\ud800",
    ]
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b2Jcleared", "cleared"),
        ("\x1b]0;a new title\x07after", "after"),
        ("\x1b]52;c;Y2xpcA==\x1b\\after", "after"),  # the clipboard
        ("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]unclosed, and the rest", "unclosed, and the rest"),
        ("\x1bP1$r0m\x1b\\after", "after"),
        ("\x1bcreset", "reset"),
        ("\x1b(0charset", "charset"),
        ("over\rwritten\x08\x08", "overwritten"),
        ("a\r\nb", "a\nb"),
        ("\x85next\x00null\x7fdelete", "nextnulldelete"),
        ("access\u202egnp.exe", "access\ufffdgnp.exe"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("שלום عربي 日本語 👩‍🔬", "שלום عربي 日本語 👩‍🔬"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.lists(PIECES | st.text(max_size=3)).map("".join))
def test_nothing_is_left_to_obey(text: str) -> None:
    shown = printable(text)
    assert not any(
        unicodedata.category(character) in ("Cc", "Cs") for character in shown.replace("\n", "").replace("\t", "")
    )
    assert printable(shown) == shown
    shown.encode()


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf"])))
def test_ordinary_text_is_kept(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("piece", ["\x1b]", "\x9d", "\x1b[0", "\x1b", "\x1b]x\x1b"])
@pytest.mark.timeout(20)
def test_a_long_text_is_no_burden(piece: str) -> None:
    printable(piece * 300_000)
