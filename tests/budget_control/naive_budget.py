"""The budget rule once more, written from DESIGN section 6 alone: slow, on texts, with nothing of the real one."""

from collections.abc import Iterator, Sequence

OPEN, CLOSE = "<think>", "</think>"


def _look(text: str) -> tuple[bool, str]:
    """Whether a text ends inside thinking, and how much of the next tag it ends with."""
    inside, rest = False, text
    while (tag := CLOSE if inside else OPEN) in rest:
        rest = rest.split(tag, 1)[1]
        inside = not inside
    begun = next((tag[:n] for n in range(len(tag) - 1, 0, -1) if rest.endswith(tag[:n])), "")
    return inside, begun


def enforce(
    pieces: Sequence[str],
    close_ids: Sequence[int],
    stop_ids: Sequence[int],
    prompt: Sequence[int],
    drawn: Iterator[int],
    budget: int | None,
    grace: int,
) -> tuple[list[int], list[bool]]:
    """The tokens written for a stream of drawn tokens, and which of them were not drawn. Ends with a stop token or with
    the stream. A drawn token is used up even where another is written."""
    text = "".join(pieces[token] for token in prompt)
    written: list[int] = []
    forced: list[bool] = []
    used, pending = 0, []  # type: ignore[var-annotated]
    for token in drawn:
        inside, begun = _look(text)
        rest_of_close = list(close_ids)
        for count in range(1, len(close_ids)):
            if begun and "".join(pieces[i] for i in close_ids[:count]).lstrip() == begun:
                rest_of_close = list(close_ids[count:])
        substitute = None
        if inside and budget is not None:
            line_end = written and "\n" in pieces[written[-1]] and pieces[written[-1]].split("\n")[-1].strip() == ""
            if pending:
                substitute = pending.pop(0)
            elif budget == 0 or used >= budget + grace or (used >= budget and line_end):
                substitute, *pending = rest_of_close
            elif token in stop_ids:
                substitute = rest_of_close[0]
        written.append(token if substitute is None else substitute)
        forced.append(substitute is not None)
        text += pieces[written[-1]]
        used += inside
        if not _look(text)[0]:
            pending = []
        if written[-1] in stop_ids:
            break
    return written, forced
