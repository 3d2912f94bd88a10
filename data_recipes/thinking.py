"""Thinking tags in an assistant's text: one rule for every layout.

- A text that begins with ``<think>...</think>`` is split: the text in between is the reasoning. The close is the first
  ``</think>``, as it is to every parser of completions.
- Tags in Markdown code of the answer (in backticks, in a fenced block) speak about tags, and stay.
- Everything else is refused: a tag alone, a second block, a block in addition to reasoning in its own field, and a text
that
  begins with another format's thinking mark. Trained as it is, it would teach answers that think without being asked
  to. User, tool and system texts are never examined.
"""

import re

from nanoalign.data_recipes.files import RowError

OPEN, CLOSE = "<think>", "</think>"
_BARE = re.compile(r"<\s?/?\s?think\s?/?\s?>", re.IGNORECASE)
_CODE = re.compile(r"^[ \t]*(`{3,8}|~{3,8}).*?^[ \t]*\1|(`{1,3})[^`\n]+\2", re.DOTALL | re.MULTILINE)
_FOREIGN = re.compile(
    r"\s*(<thinking>|<thought>|<seed:think>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|channel\|>)",
    re.IGNORECASE,
)


def split_thinking(content: str, reasoning: str | None, where: str) -> tuple[str, str | None]:
    """The answer and the reasoning of an assistant's ``content`` with the ``reasoning`` of its own field (None or "":
    none there). Raises RowError, which begins with ``where``, as the module's text says."""
    if content.lstrip().startswith(OPEN):
        if reasoning:
            raise _fault(where, "its reasoning is in its own field and in <think> tags too; keep one of them")
        thought, close, answer = content.lstrip().removeprefix(OPEN).partition(CLOSE)
        if not close:
            raise _fault(where, "<think> is never closed; close it, or leave out an answer that was cut")
        content, reasoning = answer.strip(), thought.strip()
    if reasoning and (CLOSE in reasoning or _outside_code(reasoning)):
        raise _fault(where, "its reasoning holds thinking tags itself; take them out")
    if tag := _outside_code(content):
        raise _fault(where, _advice(tag))
    if foreign := _FOREIGN.match(content):
        raise _fault(where, f"it begins with {foreign[1]}, another format's mark; write <think>...</think> or a field")
    return content, reasoning


def _outside_code(text: str) -> str | None:
    """The first thinking tag of a text outside Markdown code."""
    found = _BARE.search(text) and _BARE.search(_CODE.sub("", text))  # few texts hold any, and code is slow to find
    return found[0] if found else None


def _advice(tag: str) -> str:
    if "/" in tag:
        where = f"{tag} appears where no thinking is open; begin the text with <think> if what precedes it is reasoning"
    else:
        where = f"{tag} appears after the beginning; only one block, at the very beginning, is read as reasoning"
    return f"{where} (or write reasoning_content), and put a tag that the answer speaks of in backticks"


def _fault(where: str, reason: str) -> RowError:
    return RowError("thinking tags", f"{where}: {reason}")
