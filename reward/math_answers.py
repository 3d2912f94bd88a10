"""When two final math answers are the same: numbers, lists, words and units exactly, here; algebra elsewhere.

The conventions are in docs/verifiers.md, whose table is this module's test.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from nanoalign.reward.matching import perfect_matching
from nanoalign.reward.math_notation import (
    Text,
    bare,
    closing,
    measured,
    parse,
    quantity,
    split,
    squeezed,
    without_thousands,
)

LONGEST = 400
"""Characters: a longer answer does not count."""
MOST = 32
"""Elements of a list."""

Ask = Callable[[str, str], bool | None]
"""Whether algebra makes (gold, answer) equal; None: not known yet."""
Verdict = bool | str | None
"""As :func:`equal` gives, or ``OPEN``: another rule decides."""
OPEN = "open"

_BASED = re.compile(r"(-?) ?([0-9A-Za-z]+) ?_ ?\{? ?(\d+|[a-z]+) ?\}?")
_LETTER = re.compile(r"\(?([A-Z])\)?")
_OPTION = re.compile(
    r"\(?([A-Z])\)?[.:]?|\(([A-Z])\)[.:]? ([0-9a-zA-Z\\$(\[{.-].*)|([A-Z])[.:)] ([0-9a-zA-Z\\$(\[{.-].*)", re.DOTALL
)
_LABEL = re.compile(r"\(([A-Z])\) ?(?=.)")
_HEDGE = re.compile(r"(?<![a-zA-Z\\])[A-Z](?![a-zA-Z])|(?<![a-zA-Z\\])(?:or|and|not|no)(?![a-zA-Z])")
_VARIABLE = re.compile(r"((?:[a-zA-Z]|[A-Z]{2})(?:_\{?\w+\}?)?(?: ?\( ?[a-zA-Z] ?\))?) ?(?:=|\\in(?![a-zA-Z])) ?")
_RELATION = re.compile(r"[<>=≈≡∼≃]|\\(?:approx|neq?|leq?|geq?|lt|gt|sim|simeq|equiv|cong|in)(?![a-zA-Z])")
_ALMOST = re.compile(r"(?:\\approx|≈) ?")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_FUNCTIONS = re.compile(
    r"(?<![a-zA-Z])(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|max|min|gcd|lcm|pi)(?![a-zA-Z])"
)
_WORDS = re.compile(
    r"(?=[a-zA-Z]{3})[a-zA-Z]*[aeiouAEIOU]|[a-zA-Z]{4}|[A-Z]{2}|(?<![a-zA-Z])[Nn]o(?![a-zA-Z])|[%$:]|[^\x00-\x7f]"
)
_JOINED = re.compile(r" ?, ?(?:and|or) | (?:and|or) ")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
          "twelve": 12, "sixteen": 16}  # fmt: skip


def equal(gold: str, answer: str, ask: Ask) -> bool | None:
    """Whether ``answer`` equals ``gold``; None while ``ask`` does not know. A blank equals nothing."""
    if max(len(gold), len(answer)) > LONGEST:
        return False
    try:
        return _equal(parse(gold), parse(answer), ask)
    except RecursionError:  # hundreds of brackets in brackets
        return False


def _equal(gold: Text, answer: Text, ask: Ask) -> bool | None:
    if not gold.text or not answer.text:
        return False
    if squeezed(gold.text) == squeezed(answer.text):
        return True
    gold, answer = _without_variable(_without_almost(gold), answer)
    for compare in (_options, _bases, _chains, _lists, _relations, _numbers, _measures):
        decided = compare(gold, answer, ask)
        if decided != OPEN:
            return decided  # type: ignore[return-value]
    if _is_words(gold) or _is_words(answer):
        return _words(gold.text) == _words(answer.text) != ""
    return ask(without_thousands(gold.text), without_thousands(answer.text))


def _without_almost(gold: Text) -> Text:
    """A gold answer that is marked as rounded requires the rounded number."""
    found = _ALMOST.match(gold.text)
    return Text(bare(gold.text[found.end() :]), gold.worded) if found else gold


def _relations_in(text: str) -> list[str]:
    """Those of the text itself: ``k=1`` below a sum is none."""
    return _RELATION.findall(re.sub(r"_ ?\{[^{}]*\}", "", text))


def _without_variable(gold: Text, answer: Text) -> tuple[Text, Text]:
    """``x = 5`` matches ``5`` and vice versa; nothing is removed where both name a variable, unless it is the same."""
    ours, theirs = (_VARIABLE.match(each.text) for each in (gold, answer))
    lone = [bool(m) and len(_relations_in(each.text)) == 1 for m, each in ((ours, gold), (theirs, answer))]
    if all(lone) and ours and theirs and ours[1] != theirs[1]:
        return gold, answer
    if lone[0] and ours and (lone[1] or not _relations_in(answer.text)):
        gold = Text(bare(gold.text[ours.end() :]), gold.worded)
    if lone[1] and theirs and not _relations_in(gold.text):
        answer = Text(bare(answer.text[theirs.end() :]), answer.worded)
    return gold, answer


def _options(gold: Text, answer: Text, ask: Ask) -> Verdict:
    """Letters of multiple choice: ``C``, ``(C)``, ``(C) 5``, where no other is named. ``(C) 5`` answers 5, too."""
    if letter := _LETTER.fullmatch(gold.text):
        given = _OPTION.fullmatch(answer.text)
        if not given or _HEDGE.search(given[3] or given[5] or ""):
            return False
        return letter[1] == (given[1] or given[2] or given[4])
    if (label := _LABEL.match(answer.text)) and not _LABEL.match(gold.text):
        return _equal(gold, Text(bare(answer.text[label.end() :]), answer.worded), ask)
    return OPEN


def _bases(gold: Text, answer: Text, ask: Ask) -> Verdict:
    """``1011_2``: the same digits in the same base. A number without a base is in base ten."""
    parts = [_based(each.text) if re.search(r"\d ?_", each.text) else None for each in (gold, answer)]
    if not any(parts):
        return OPEN
    (ours, theirs), texts = parts, (gold.text, answer.text)
    if ours and theirs:
        return ours == theirs
    known, other = (ours, texts[1]) if ours else (theirs, texts[0])
    assert known is not None
    return known[2] == 10 and quantity(known[0] + known[1]) == quantity(other) is not None


def _based(text: str) -> tuple[str, str, int] | None:
    """Sign, digits and base."""
    found = _BASED.fullmatch(text)
    base = found and (_BASES.get(found[3]) or (int(found[3]) if re.fullmatch(r"[0-9]{1,3}", found[3]) else None))
    return (found[1], found[2].lstrip("0").casefold() or "0", base) if found and base else None


def _chains(gold: Text, answer: Text, ask: Ask) -> Verdict:
    """A gold answer of several equal numbers (``0.56 = 56\\%``) is matched by each of them."""
    links = re.split(r"=|\\approx|≈", gold.text)
    if len(links) < 2 or _relations_in(answer.text):
        return OPEN
    texts = [Text(bare(link), gold.worded) for link in links]
    if any(quantity(measured(each)[0]) is None for each in texts):
        return OPEN
    return any(_equal(each, answer, ask) for each in texts)


def _relations(gold: Text, answer: Text, ask: Ask) -> Verdict:
    """No relation is dropped: a chain such as ``41 = 42`` would otherwise pass by one of its links."""
    return OPEN if bool(_relations_in(gold.text)) == bool(_relations_in(answer.text)) else False


def _numbers(gold: Text, answer: Text, ask: Ask) -> Verdict:
    ours, theirs = quantity(gold.text), quantity(answer.text)
    return ours == theirs if ours is not None and theirs is not None else OPEN


def _measures(gold: Text, answer: Text, ask: Ask) -> Verdict:
    """A unit may be left out, or added, on one side; a percent sign may be left out where the gold answer has it, but
    never be added."""
    (ours, unit), (theirs, other_unit) = measured(gold), measured(answer)
    if not unit and not other_unit:
        return OPEN
    if (other_unit == "%" and unit != "%") or (unit and other_unit and unit != other_unit):
        return False
    return _equal(Text(ours), Text(theirs), ask)


@dataclass(frozen=True)
class _List:
    kind: str
    """Its brackets; "" for a bare list, ``cup`` for a union."""
    elements: tuple[Text, ...]

    def ordered(self) -> bool:
        """Sets, unions and bare lists of numbers are not; words and letters may be an order that was asked for."""
        if self.kind not in ("", r"\{\}", "cup"):
            return True
        names = [_LETTER.fullmatch(each.text) or re.fullmatch("[a-zA-Z]", each.text) for each in self.elements]
        worded = [_is_words(each) and quantity(measured(each)[0]) is None for each in self.elements]
        return self.kind == "" and all(bool(name) or word for name, word in zip(names, worded))

    def names(self) -> list[str]:
        """The variables that its elements name, sorted."""
        return sorted(found[1] for each in self.elements if (found := _VARIABLE.match(each.text)))


def _list(text: Text) -> _List | None:
    inner = text.text
    if inner == r"\emptyset":
        return _List(r"\{\}", ())
    parts = split(inner, r"\cup")
    if len(parts) > 1:
        return _List("cup", tuple(Text(part, text.worded) for part in parts))
    if found := re.fullmatch(r"\\begin\{([a-zA-Z]*)matrix\}(.*)\\end\{\1matrix\}", inner, re.DOTALL):
        rows = [row.split("&") for row in found[2].strip().removesuffix(r"\cr").split(r"\cr")]
        kind = f"{'|' if found[1] in ('v', 'V') else ''}matrix {len(rows)}x{'/'.join(str(len(row)) for row in rows)}"
        return _List(kind, tuple(Text(bare(each), text.worded) for row in rows for each in row))
    kind = ""
    if inner.startswith(r"\{") and inner.endswith(r"\}"):
        kind, inner = r"\{\}", inner[2:-2]
    elif inner[:1] in ("(", "[") and inner[-1:] in (")", "]") and closing(inner, 0) == len(inner) - 1:
        if len(split(inner[1:-1], ",")) > 1:
            kind, inner = inner[0] + inner[-1], inner[1:-1]
        elif inner[0] == "(" and inner[-1] == ")":
            lone = Text(bare(inner[1:-1]), text.worded)
            return _list(lone) or _List("", (lone,))
    if not kind:
        inner = without_thousands(_JOINED.sub(",", f" {inner} ").strip())
    parts = [each for part in split(inner, ",", ";") for each in _both_signs(part)]
    if kind != r"\{\}" and len(parts) < 2:
        return None
    return _List(kind, tuple(Text(part, text.worded) for part in parts if part or len(parts) > 1))


def _both_signs(text: str) -> list[str]:
    return [bare(text.replace(r"\pm", sign)) for sign in "+-"] if text.count(r"\pm") == 1 else [text]


def _lists(gold: Text, answer: Text, ask: Ask) -> Verdict:
    """Tuples, intervals and matrices in order; sets, unions and bare lists in any order."""
    ours, theirs = _list(gold), _list(answer)
    if ours is None and theirs is None:
        return OPEN
    if ours is None or theirs is None:
        lone = ours or theirs
        assert lone is not None
        if lone.kind or len(lone.elements) != 1:
            return False
        return _equal(*((lone.elements[0], answer) if ours else (gold, lone.elements[0])), ask)
    if len(ours.elements) != len(theirs.elements) or len(ours.elements) > MOST:
        return False
    if ours.kind != theirs.kind and {ours.kind, theirs.kind} != {"", r"\{\}"}:
        return False
    if ours.names() != theirs.names() and max(len(set(each.names())) for each in (ours, theirs)) > 1:
        return False  # x = 1, y = 2 is not 1, 2
    if ours.ordered() or (theirs.ordered() and theirs.kind == ""):
        return _all([_equal(a, b, ask) for a, b in zip(ours.elements, theirs.elements)])
    table = [[_equal(a, b, ask) for a in ours.elements] for b in theirs.elements]
    if perfect_matching([[place for place, fits in enumerate(row) if fits] for row in table]):
        return True
    if not perfect_matching([[place for place, fits in enumerate(row) if fits is not False] for row in table]):
        return False
    return None if any(fits is None for row in table for fits in row) else False


def _all(verdicts: list[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _is_words(text: Text) -> bool:
    """Whether something in it is not algebra: wrapped words, a name in capitals, letters that look like a word."""
    plain = _FUNCTIONS.sub(" ", _COMMAND.sub(" ", text.text))
    return text.worded or bool(_WORDS.search(plain))


def _words(text: str) -> str:
    """Words in one spelling: lower case, unless they are names in capitals or single letters."""
    words = re.sub(r" ?([^\w ]) ?", r"\1", text.strip()).split()
    return " ".join(word if word.isupper() or len(word) < 2 else word.casefold() for word in words)
