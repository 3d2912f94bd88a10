"""Text for a terminal: what others wrote (a model, a data row, another process) made safe, "did you mean", numbers."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

from nanoalign.common.errors import ConfigError

# An escape sequence is removed completely, so that its parameters do not remain as text. A string that a terminal
# swallows (title, link, clipboard) is removed with its body only where it is closed: an unclosed one must not hide what
# follows it. Bodies hold no control character, so each scan ends at the next one and the total stays linear.
_SEQUENCE = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x00-\x08\x0a-\x1f\x7f-\x9f]*(?:\x07|\x9c|\x1b\\)"  # OSC, DCS, SOS, PM, APC
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor, screen, reports
    r"|\x1b[ -/]*[0-~]?"  # sequences of two characters, character sets; a lone ESC
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # what is left of C0 and C1; tab and newline stay
)
# Lone surrogates cannot be encoded; bidi overrides and isolates show a reader another order than the one that is there.
_REPLACED = re.compile("[\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` without control sequences; linear in the text's length, never raises, idempotent.

    Escape sequences and control characters are removed (newline and tab stay); lone surrogates and bidi controls become
    U+FFFD. Text that comes in pieces loses its control characters too, but of a sequence cut in two the body stays as
    text.
    """
    return _REPLACED.sub("\ufffd", _SEQUENCE.sub("", text))


def nearest(word: str, known: Iterable[str]) -> str:
    """What to add to "unknown ...": ``; did you mean `x`?``, or the known words where none is near (12 at most)."""
    words = sorted(str(name) for name in known)
    close = get_close_matches(word.lower(), [name.lower() for name in words], n=1, cutoff=0.5)
    if close:
        return f"; did you mean `{next(name for name in words if name.lower() == close[0])}`?"
    more = f" and {len(words) - 12} more" if len(words) > 12 else ""
    return f"; known: {', '.join(words[:12])}{more}" if words else "; there are none"


def known(what: str, name: str, names: Iterable[str]) -> str:
    """``name``, if it is one of ``names``. Raises ConfigError with the nearest otherwise."""
    if name not in names:
        raise ConfigError(f"unknown {what} `{name}`{nearest(name, names)}")
    return name


def counted(number: int, one: str, *verbs: str) -> str:
    """``1 shape``, ``2 shapes``; with two verbs ``1 shape fits``, ``2 shapes fit``."""
    text = f"{number:,} {one}{'' if number == 1 else 's'}"
    return f"{text} {verbs[number != 1]}" if verbs else text


def tokens(text: str) -> int | None:
    """A number of tokens, ``131072`` or ``128k``; None where it is none."""
    found = re.fullmatch(r"([1-9]\d{0,8})([kK])?", text.strip().replace(",", ""))
    return int(found[1]) * (1024 if found[2] else 1) if found else None
