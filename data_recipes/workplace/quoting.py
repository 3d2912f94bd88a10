"""A model's input to a simulated office: any JSON value, taken as a short text or not at all."""

from typing import Any


def short_text(value: Any, longest: int) -> str | None:
    """A text, number or truth value as text of at most ``longest`` characters that can be encoded; else None."""
    if isinstance(value, int) and abs(value) >= 10**longest:  # str() raises from 4,300 digits on
        return None
    text = str(value) if isinstance(value, str | int | float) else None
    return text if text is not None and len(text) <= longest and is_unicode(text) else None


def quote(text: str, longest: int = 80) -> str:
    """Text to quote in an error: shortened, and encodable."""
    short = text if len(text) <= longest else text[:longest] + "..."
    return short.encode("utf-8", "replace").decode()


def is_unicode(text: str) -> bool:
    """Holds no half of a surrogate pair, as JSON's escapes can write it: such a text has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
