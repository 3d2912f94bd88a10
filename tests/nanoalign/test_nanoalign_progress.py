"""What a run shows of itself: others' words as they are, and nothing that a terminal would obey."""

from io import StringIO

import pytest
from rich.console import Console

from nanoalign.progress import display

HOSTILE = "[red]x[/] [/nothing]\x1b]0;title\x07\x1b[2J\x9b5n"


@pytest.mark.parametrize("terminal", [True, False])
def test_others_words_are_no_markup_and_hold_no_controls(terminal: bool) -> None:
    told = StringIO()
    console = Console(file=told, force_terminal=terminal, width=200, no_color=True, color_system=None)
    shown = display(console)
    shown.start("first", "sft", 1, 2, HOSTILE)
    shown.row({"time": 0.0, "step": 1, "total_steps": 1, "phase": HOSTILE, "loss": 0.5})
    shown.note(HOSTILE)
    if terminal:
        shown._progress.refresh()  # type: ignore[attr-defined]
    shown.close()
    assert told.getvalue().count("[red]x[/] [/nothing]") >= 2
    assert "title" not in told.getvalue() and "\x07" not in told.getvalue() and "\x1b[2J" not in told.getvalue()
