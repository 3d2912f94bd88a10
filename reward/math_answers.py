"""When two final answers of mathematics are the same: numbers, lists, words and units here, exactly; algebra by others.

The conventions are on docs/verifiers.md, whose table is this module's test. Nothing that carries meaning is removed
before answers are compared: only white space, LaTeX's spacing and sizes, and the wrappers of words.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from reward.matching import perfect_matching

LONGEST = 400
"""Characters: a longer answer is no answer."""
MOST = 32
"""Elements of a list."""
LARGEST_EXPONENT = 400

Ask = Callable[[str, str], bool | None]
"""Whether algebra makes (gold, answer) equal; None: not known yet."""

_SPELLINGS = (
    *((letter, plain) for letter, plain in zip("−–×⋅·∅∞％°≤≥≠", ("-", "-", "*", "*", "*", r"\emptyset", r"\infty", "%",
                                                                r"^\circ", r"\leq", r"\geq", r"\neq"))),
    (r"\varnothing", r"\emptyset"), (r"\%", "%"), ("{,}", ","), (r"\le ", r"\leq "), (r"\ge ", r"\geq "),
)  # fmt: skip
_NO_SPACE = re.compile(r"\\!|\\(?:left|right|displaystyle|limits|big|Big|bigg|Bigg)(?![a-zA-Z])")
_SPACE = re.compile(r"\\[,;: ]|\\q?quad(?![a-zA-Z])|~|\s+")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_SHORT_FRACTION = re.compile(r"\\frac ?(\{[^{}]*\}|\d|[a-zA-Z]) ?(\{[^{}]*\}|\d|[a-zA-Z])")
_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|mathrm|mathbf|mathit|operatorname) ?\{([^{}]*)\}")

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)"
_FRAC = r"\\frac\{ ?(-? ?\d+) ?\}\{ ?(-? ?\d+) ?\}"
_QUANTITY = re.compile(
    rf"(?P<sign>[-+]?) ?(?P<currency>(?:\\?\$)?) ?(?:"
    rf"(?:(?P<whole>\d+) ?)?{_FRAC}"
    rf"|(?P<mixed>\d+) (?P<over>\d+) ?/ ?(?P<under>\d+)"
    rf"|(?P<plain>{_PLAIN})(?: ?/ ?(?P<divisor>{_PLAIN}))?"
    rf"(?:[eE](?P<e>[-+]?\d+)| ?(?:\*|\\times|\\cdot) ?10 ?\^ ?\{{? ?(?P<power>[-+]?\d+) ?\}}?)?"
    rf") ?(?P<unit>.*)"
)
_BASED = re.compile(r"(-?) ?([0-9A-Za-z]+) ?_ ?\{? ?(\d+|[a-z]+) ?\}?")
_UNIT = re.compile(r"[a-zA-Z$][a-zA-Z. /*]*(?: ?\^ ?\{?[23]\}?)?")
_OPTION = re.compile(r"\(?([A-Z])\)?[.:]?|\(([A-Z])\) .*|([A-Z])[.:)] .*", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Z])\)?")
_VARIABLE = re.compile(r"([a-zA-Z](?:_\{?\w+\}?)?(?: ?\( ?[a-zA-Z] ?\))?) ?= ?")
_RELATION = re.compile(r"[<>=≈≡∼≃]|\\(?:approx|neq?|leq?|geq?|lt|gt|sim|simeq|equiv|cong)(?![a-zA-Z])")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_FUNCTIONS = re.compile(r"sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|max|min|gcd|lcm|pi")
_JOINED = re.compile(r" ?, ?(?:and|or) | (?:and|or) ")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
          "twelve": 12, "sixteen": 16}  # fmt: skip
_OPEN, _CLOSE = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}
_NOT_UNITS = {"or", "and", "not", "is", "to", "no", "than", "if", "but"}
_UNITS = {
    "degree": r"^\circ", "deg": r"^\circ", "percent": "%", "minute": "min", "hour": "h", "hr": "h", "second": "s",
    "sec": "s", "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "kilometer": "km", "inch": "in",
    "inche": "in", "foot": "ft", "feet": "ft", "dollar": "$", "usd": "$", "mile per hour": "mph",
}  # fmt: skip


def equal(gold: str, answer: str, ask: Ask) -> bool | None:
    """Whether ``answer`` says what ``gold`` says; None while ``ask`` does not know. Blank is equal to nothing."""
    if max(len(gold), len(answer)) > LONGEST:
        return False
    try:
        return _equal(_read(gold), _read(answer), ask)
    except RecursionError:  # hundreds of brackets in brackets
        return False


@dataclass(frozen=True)
class _Text:
    """An answer in one spelling; ``worded`` where a part of it was wrapped as words, which is no algebra."""

    text: str
    worded: bool = False


def _read(text: str) -> _Text:
    for spelling, plain in _SPELLINGS:
        text = text.replace(spelling, plain)
    text = _SPACE.sub(" ", _NO_SPACE.sub("", text.replace(r"\\", r"\cr ")))
    text = _FRACTION.sub(lambda _: r"\frac", text)
    text = _SHORT_FRACTION.sub(lambda m: rf"\frac{{{m[1].strip('{}')}}}{{{m[2].strip('{}')}}}", text)
    text, worded = _WRAPPED.subn(r"\1", text)
    text = re.sub(r"(?<!\\)\$", "", text) if text.count("$") != 1 else text  # one alone is a price
    return _Text(_bare(re.sub(r" +", " ", text)), worded > 0)


def _bare(text: str) -> str:
    """Without white space and full stops at its ends, and without braces around all of it."""
    text = text.strip().rstrip(".,;").strip()
    while text.startswith("{") and _closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _closing(text: str, start: int) -> int:
    """Where the bracket at ``start`` is closed, by a bracket of any kind; -1 where it is not."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] in _OPEN:
            depth += 1
        elif text[place] in _CLOSE:
            depth -= 1
            if depth == 0:
                return place
    return -1


def _equal(gold: _Text, answer: _Text, ask: Ask) -> bool | None:
    if not gold.text or not answer.text:
        return False
    if gold.text.replace(" ", "") == answer.text.replace(" ", "") and not _glued(gold.text, answer.text):
        return True
    gold, answer = _without_variable(gold, answer)
    if bool(_RELATION.search(gold.text)) != bool(_RELATION.search(answer.text)):
        return False
    for compare in (_options, _numbers, _bases, _lists):
        decided = compare(gold, answer, ask)
        if decided != "undecided":
            return decided  # type: ignore[return-value]
    if _is_words(gold) or _is_words(answer):
        return _words(gold.text) == _words(answer.text) != ""
    return ask(gold.text, answer.text)


def _glued(gold: str, answer: str) -> bool:
    """Spaces between digits or words are more than spelling: ``1 1/2`` is not ``11/2``."""
    spaced = r"(?<=[0-9a-zA-Z]) (?=[0-9a-zA-Z])"
    return bool(re.search(spaced, gold)) != bool(re.search(spaced, answer)) and gold != answer


def _without_variable(gold: _Text, answer: _Text) -> tuple[_Text, _Text]:
    """``x = 5`` answers ``5``, and ``5`` answers ``x = 5``; nothing is removed where both name a variable, unless it is
    the same."""
    ours, theirs = (_VARIABLE.match(each.text) for each in (gold, answer))
    lone = [bool(m) and len(_RELATION.findall(each.text)) == 1 for m, each in ((ours, gold), (theirs, answer))]
    if all(lone) and ours and theirs and ours[1] != theirs[1]:
        return gold, answer
    if lone[0] and ours and (lone[1] or not _RELATION.search(answer.text)):
        gold = _Text(_bare(gold.text[ours.end() :]), gold.worded)
    if lone[1] and theirs and not _RELATION.search(gold.text):
        answer = _Text(_bare(answer.text[theirs.end() :]), answer.worded)
    return gold, answer


def _options(gold: _Text, answer: _Text, ask: Ask) -> bool | str | None:
    """Letters of multiple choice: ``C``, ``(C)``, ``(C) 5``."""
    if not (letter := _LETTER.fullmatch(gold.text)):
        return "undecided"
    given = _OPTION.fullmatch(answer.text)
    return bool(given) and letter[1] == (given[1] or given[2] or given[3])  # type: ignore[index]


@dataclass(frozen=True)
class _Quantity:
    value: Fraction
    unit: str


def _quantity(text: str) -> _Quantity | None:
    found = _QUANTITY.fullmatch(text)
    if not found:
        return None
    unit = _unit(found["unit"])
    if unit is None:
        return None
    over, under = found.group(4), found.group(5)
    exponent = int(found["e"] or found["power"] or 0) if len(found["e"] or found["power"] or "") < 6 else 10**6
    if abs(exponent) > LARGEST_EXPONENT:
        return None
    if over is not None:
        below = int(under.replace(" ", ""))
        above = int(over.replace(" ", ""))
        if below == 0 or (found["whole"] and (above < 0 or below < 0)):
            return None
        value = int(found["whole"] or 0) + Fraction(above, below)
    elif found["mixed"]:
        if int(found["under"]) == 0:
            return None
        value = int(found["mixed"]) + Fraction(int(found["over"]), int(found["under"]))
    else:
        value = Fraction(found["plain"].replace(",", "").rstrip(".") or "0")
        divisor = Fraction((found["divisor"] or "1").replace(",", "").rstrip(".") or "0")
        if divisor == 0:
            return None
        value = value / divisor * Fraction(10) ** exponent
    if found["currency"]:
        unit = unit or "$"
    return _Quantity(-value if found["sign"] == "-" else value, unit)


def _unit(text: str) -> str | None:
    """The unit's one spelling, "" for none; None where the text is no unit."""
    text = text.strip()
    if text in ("", "%"):
        return text
    if re.fullmatch(r"\^ ?\{? ?\\circ ?\}?", text):
        return r"^\circ"
    if not _UNIT.fullmatch(text) or (len(text) == 1 and text != "$"):
        return None
    words = text.casefold().replace(".", "").split()
    if _NOT_UNITS & set(words):
        return None
    name = " ".join(word.removesuffix("s") if len(word) > 3 else word for word in words)
    return _UNITS.get(name, name)


def _numbers(gold: _Text, answer: _Text, ask: Ask) -> bool | str | None:
    """Exact values. A unit may be left out, or added, on one side; a percent sign may be left out where the gold answer
    has it, but never be added."""
    ours, theirs = _quantity(gold.text), _quantity(answer.text)
    if ours is None and theirs is None:
        return "undecided"
    if ours is None or theirs is None:
        known, other = (ours, answer) if ours else (theirs, gold)
        assert known is not None
        return False if known.unit or _is_words(other) or _BASED.fullmatch(other.text) else "undecided"
    if ours.value != theirs.value:
        return False
    if theirs.unit == "%" and ours.unit != "%":
        return False
    return ours.unit == theirs.unit or not ours.unit or not theirs.unit


def _bases(gold: _Text, answer: _Text, ask: Ask) -> bool | str | None:
    """``1011_2``: the same digits in the same base."""
    parts = [_BASED.fullmatch(each.text) if re.search(r"\d ?_", each.text) else None for each in (gold, answer)]
    if not any(parts):
        return "undecided"
    ours, theirs = (
        (m[1], m[2].lstrip("0").casefold(), _BASES.get(m[3]) or int(m[3]) if m[3].isdigit() or m[3] in _BASES else None)
        if m else None for m in parts
    )  # fmt: skip
    return ours == theirs and ours is not None and ours[2] is not None


@dataclass(frozen=True)
class _List:
    kind: str
    """Its brackets; "" for a bare list, ``cup`` for a union."""
    elements: tuple[_Text, ...]


def _list(text: _Text) -> _List | None:
    inner = text.text
    if inner == r"\emptyset":
        return _List(r"\{\}", ())
    parts = _split(inner, r"\cup")
    if len(parts) > 1:
        return _List("cup", tuple(_Text(part, text.worded) for part in parts))
    if found := re.fullmatch(r"\\begin\{([a-zA-Z]*)matrix\}(.*)\\end\{\1matrix\}", inner, re.DOTALL):
        rows = [row.split("&") for row in found[2].strip().removesuffix(r"\cr").split(r"\cr")]
        kind = f"{'|' if found[1] in ('v', 'V') else ''}matrix {len(rows)}x{'/'.join(str(len(row)) for row in rows)}"
        return _List(kind, tuple(_Text(_bare(each), text.worded) for row in rows for each in row))
    kind = ""
    if inner.startswith(r"\{") and inner.endswith(r"\}"):
        kind, inner = r"\{\}", inner[2:-2]
    elif inner[:1] in ("(", "[") and inner[-1:] in (")", "]") and _closing(inner, 0) == len(inner) - 1:
        if len(_split(inner[1:-1], ",")) > 1:
            kind, inner = inner[0] + inner[-1], inner[1:-1]
        elif inner[0] == "(":
            return _list(_Text(_bare(inner[1:-1]), text.worded)) or _List("", (_Text(_bare(inner[1:-1]), text.worded),))
    if not kind:
        inner = _JOINED.sub(",", inner)
    parts = _split(inner, ",")
    if kind != r"\{\}" and len(parts) < 2:
        return None
    return _List(kind, tuple(_Text(part, text.worded) for part in parts if part or len(parts) > 1))


def _split(text: str, separator: str) -> list[str]:
    """The parts between separators that stand in no bracket."""
    parts, depth, start, place = [], 0, 0, 0
    while place < len(text):
        if text[place] in _OPEN:
            depth += 1
        elif text[place] in _CLOSE:
            depth -= 1
        elif depth == 0 and text.startswith(separator, place):
            parts.append(_bare(text[start:place]))
            place += len(separator)
            start = place
            continue
        place += 1
    return [*parts, _bare(text[start:])]


def _lists(gold: _Text, answer: _Text, ask: Ask) -> bool | str | None:
    """Tuples, intervals and matrices in order; sets, unions and bare lists in any order."""
    ours, theirs = _list(gold), _list(answer)
    if ours is None and theirs is None:
        return "undecided"
    if ours is None or theirs is None:
        lone = ours or theirs
        assert lone is not None
        if lone.kind or len(lone.elements) != 1:
            return False
        return _equal(*((lone.elements[0], answer) if ours else (gold, lone.elements[0])), ask)
    bare = {ours.kind, theirs.kind} == {"", r"\{\}"}
    if (ours.kind != theirs.kind and not bare) or len(ours.elements) != len(theirs.elements):
        return False
    if len(ours.elements) > MOST:
        return False
    if ours.kind and not bare and ours.kind not in ("cup", r"\{\}"):
        return _all([_equal(a, b, ask) for a, b in zip(ours.elements, theirs.elements)])
    table = [[_equal(a, b, ask) for a in ours.elements] for b in theirs.elements]
    if perfect_matching([[place for place, fits in enumerate(row) if fits] for row in table]):
        return True
    return None if any(fits is None for row in table for fits in row) else False


def _all(verdicts: list[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _is_words(text: _Text) -> bool:
    """Whether something in it is no algebra: wrapped text, or more than two letters in a row that are no function."""
    plain = _FUNCTIONS.sub(" ", _COMMAND.sub(" ", text.text))
    return text.worded or bool(re.search(r"[a-zA-Z]{3,}|[%$:]|[^\x00-\x7f]", plain))


def _words(text: str) -> str:
    """Words in one spelling: lower case, unless they are names in capitals or single letters."""
    text = re.sub(r" ?([^\w ]) ?", r"\1", text.strip())
    return " ".join(word.casefold() if len(word) > 2 and not word.isupper() else word for word in text.split())
