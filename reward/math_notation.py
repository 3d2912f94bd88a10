"""How math answers are written: one spelling of each, its numbers, units, lists and brackets.

Nothing that carries meaning is removed: only white space, LaTeX's spacing and sizes, and the wrappers of words.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_EXPONENT = 400
"""Of scientific notation."""

_SPELLINGS = (
    *zip("−–×⋅·∅∞%°≤≥≠±π", ("-", "-", r"\times ", r"\cdot ", r"\cdot ", r"\emptyset ", r"\infty ", "%", r"^\circ ",
                            r"\leq ", r"\geq ", r"\neq ", r"\pm ", r"\pi ")),
    (r"\varnothing", r"\emptyset"), (r"\%", "%"), (r"\degree", r"^\circ"), (r"\lvert", "|"), (r"\rvert", "|"),
)  # fmt: skip
_NO_SPACE = re.compile(r"\\!|\\(?:left|right|displaystyle|limits|big|Big|bigg|Bigg)(?![a-zA-Z])")
_SPACE = re.compile(r"\\[,;: ]|\\q?quad(?![a-zA-Z])|~|\s+")
_GROUPS = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\,)(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_SHORT_FRACTION = re.compile(r"\\frac ?(\{[^{}]*\}|\d|[a-zA-Z]) ?(\{[^{}]*\}|\d|[a-zA-Z])")
_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|mathrm|mathbf|mathit|operatorname) ?\{([^{}]*)\}")
_NO_WORDS = re.compile(r"[^a-zA-Z]*|[a-zA-Z]|\([A-Z]\)| (?:and|or) |, (?:and|or) ?")
_THOUSANDS = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)"
_QUANTITY = re.compile(
    r"(?P<sign>[-+]?) ?(?:"
    r"(?:(?P<whole>\d+) ?)?\\frac\{ ?(?P<over>-? ?\d+) ?\} ?\{ ?(?P<under>-? ?\d+) ?\}"
    r"|(?P<mixed>\d+) (?P<part>\d+ ?/ ?\d+)"
    rf"|(?P<plain>{_PLAIN})(?: ?/ ?(?P<divisor>{_PLAIN}))?"
    r"(?:[eE](?P<e>[-+]?\d+)| ?(?:\*|\\times|\\cdot) ?10 ?\^ ?(?:(?P<digit>\d)|\{ ?(?P<power>[-+]?\d+) ?\}))?)",
    re.ASCII,
)
_COUNTS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
]  # fmt: skip
_MEASURED = re.compile(
    r"(?P<rest>.*[\d})\]!]|.*\\pi)(?P<space> ?)"
    r"(?P<unit>%|\^ ?(?:\\circ|\{ ?\\circ ?\})|[a-zA-Z][a-zA-Z. /]*(?:\^ ?\{? ?[23] ?\}?)?)"
)
_PRICE = re.compile(r"(?P<sign>[-+]?) ?\\?\$ ?(?P<rest>.+)")
UNITS = {
    "degree": r"^\circ", "deg": r"^\circ", "percent": "%", "minute": "min", "hour": "h", "hr": "h", "second": "s",
    "sec": "s", "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm",
    "kilometer": "km", "kilometre": "km", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "pound": "lb", "lbs": "lb", "gram": "g", "kilogram": "kg", "liter": "l", "litre": "l",
    "gallon": "gal", "dollar": "$", "usd": "$", "mi per h": "mph",
}  # fmt: skip
"""Spellings of a unit, without the plural's s."""
_SHORT = {
    *UNITS.values(), "mg", "ml", "oz", "kph", "mpg", "day", "way", "bit", "cup", "pie", "pen", "egg", "dog", "cat",
    "cow", "hen", "pig", "bus", "car", "box", "bag", "boy", "man", "men", "kid", "fan", "toy", "hat", "per", "of",
    "the",
}  # fmt: skip
"""Words of up to three letters in a unit: others may be a product of letters."""
_TOUCHING = {"cm", "mm", "km", "kg", "ft", "mph", "min"}
"""Units that may touch their number outside ``\\text{}``."""
_VALUES = frozenset((
    "or", "and", "not", "is", "to", "no", "than", "if", "but", "maybe", "perhaps", "about", "approximately", "nearly",
    "wrong", "false", "incorrect", "less", "more", "most", "least", "under", "over", "above", "below", "between",
    "except", "through", "without", "plus", "minus", "times", "divided", "by", "mod", "modulo", "squared", "cubed",
    "factorial", "root", "power", "base", "negative", "positive", "half", "halve", "third", "quarter", "fourth",
    "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "hundredth", "thousandth", "hundred", "thousand",
    "million", "billion", "trillion", "dozen", "score", "gross", "pair", "double", "triple", "twice", "percentage",
    "point", "pi", "repeating", "am", "pm", "noon", "midnight", "bc", "ad", *_COUNTS, "twenty", "thirty", "forty",
    "fifty", "sixty", "seventy", "eighty", "ninety", "equal", "infinity", "binary", "octal", "hexadecimal", "decimal",
    "i", "sinh", "cosh", "tanh", "sqrt", "arcsin", "arccos", "arctan",
))  # fmt: skip
"""Words that change or negate a number, so not units."""
OPEN, CLOSE = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}


@dataclass(frozen=True)
class Text:
    """An answer in one spelling; ``worded`` where a part of it was wrapped as words, which is not algebra."""

    text: str
    worded: bool = False


def parse(text: str) -> Text:
    text = _GROUPS.sub("", text)
    for spelling, plain in _SPELLINGS:
        text = text.replace(spelling, plain)
    text = text.replace(r"\(", "").replace(r"\)", "").replace("{,}", ",")
    text = _SPACE.sub(" ", _NO_SPACE.sub("", text.replace(r"\\", r"\cr ")))
    text = re.sub(r"\\([lg])e(?![a-zA-Z])", r"\\\1eq", _FRACTION.sub(lambda _: r"\frac", text))
    text = _SHORT_FRACTION.sub(lambda m: rf"\frac{{{m[1].strip('{}')}}}{{{m[2].strip('{}')}}}", text)
    worded = any(not _NO_WORDS.fullmatch(each) for each in _WRAPPED.findall(text))
    text = _WRAPPED.sub(r" \1 ", text)
    text = re.sub(r"(?<!\\)\$", "", text) if text.count("$") != 1 else text  # one alone is a price
    return Text(bare(re.sub(r" +", " ", text)), worded)


def bare(text: str) -> str:
    """Without white space and one full stop or comma at its ends, and without braces around all of it."""
    text = text.strip()
    if text[-1:] in (".", ",", ";") and text[-2:] != "..":
        text = text[:-1].strip()
    while text.startswith("{") and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def squeezed(text: str) -> str:
    """Without the spaces that mean nothing: those in ``1 1/2``, ``two lines`` and ``100, 200`` do."""
    text = re.sub(r"(?<=\d), (?=\d{3}(?!\d))", ",\0", text)
    return re.sub(r"(?<![0-9a-zA-Z]) | (?![0-9a-zA-Z])", "", text)


def closing(text: str, start: int) -> int:
    """Where the bracket at ``start`` is closed, by a bracket of any kind; -1 where it is not."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] in OPEN:
            depth += 1
        elif text[place] in CLOSE:
            depth -= 1
            if depth == 0:
                return place
    return -1


def split(text: str, *separators: str) -> list[str]:
    """The parts between separators outside brackets."""
    parts, depth, start, place = [], 0, 0, 0
    while place < len(text):
        if text[place] in OPEN:
            depth += 1
        elif text[place] in CLOSE:
            depth -= 1
        elif depth == 0 and (found := next((each for each in separators if text.startswith(each, place)), None)):
            parts.append(bare(text[start:place]))
            place += len(found)
            start = place
            continue
        place += 1
    return [*parts, bare(text[start:])]


def without_thousands(text: str) -> str:
    """``1,234`` as ``1234`` in text without brackets: in those a comma separates."""
    if any(letter in text for letter in "(["):
        return text
    return _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)


def quantity(text: str) -> Fraction | None:
    """The value of a written number: whole, decimal, fraction, mixed, scientific, or a word up to twelve."""
    if text.casefold() in _COUNTS:
        return Fraction(_COUNTS.index(text.casefold()))
    found = _QUANTITY.fullmatch(text)
    exponent = (found["e"] or found["digit"] or found["power"] or "0") if found else "0"
    if not found or len(exponent) > 5 or abs(int(exponent)) > MAX_EXPONENT:
        return None
    try:
        if found["over"]:
            part = Fraction(_whole(found["over"]), _whole(found["under"]))
            if found["whole"] and part < 0:
                return None
            value = int(found["whole"] or 0) + part
        elif found["mixed"]:
            value = int(found["mixed"]) + Fraction(found["part"].replace(" ", ""))
        else:
            value = _decimal(found["plain"]) / _decimal(found["divisor"] or "1") * Fraction(10) ** int(exponent)
    except ZeroDivisionError:
        return None
    return -value if found["sign"] == "-" else value


def _whole(text: str) -> int:
    return int(text.replace(" ", ""))


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip("."))


def measured(text: Text) -> tuple[str, str]:
    """The text before a unit, and the unit's one spelling ("" for none)."""
    if price := _PRICE.fullmatch(text.text):
        rest, unit = measured(Text(price["sign"] + price["rest"], text.worded))
        return (rest, "$") if unit in ("", "$") and "$" not in rest else (text.text, "")
    found = _MEASURED.fullmatch(text.text)
    if not found:
        return text.text, ""
    rest, known = found["rest"].strip(), _unit(found["unit"], bool(found["space"]), text.worded)
    if not known or (known in ("%", r"^\circ") and quantity(rest) is None):
        return text.text, ""
    return rest, known


def _unit(text: str, spaced: bool, worded: bool) -> str | None:
    """None where it is not a unit. ``6xy`` and ``6 x`` are products, ``6 \\text{m}`` is not."""
    if text == "%":
        return text
    if text.startswith("^"):
        return r"^\circ"
    name, _, power = re.sub(r"[{} ]*([{}^])[{} ]*", r"\1", text.casefold().replace(".", "")).partition("^")
    words = [UNITS.get(word) or UNITS.get(_singular(word)) or _singular(word) for word in name.split()]
    power = power.strip("{}")
    if len(words) > 1 and words[0] in ("square", "sq", "cubic", "cu"):
        if power:
            return None
        power, words = ("2" if words[0].startswith("s") else "3"), words[1:]
    if not words or len(words) > 4 or _VALUES & {*words, *name.split()}:
        return None
    if any(len(word) < 4 and word not in _SHORT for word in words):
        return None
    if (not spaced and name.strip() not in _TOUCHING) or (len(name.strip()) == 1 and not worded):
        return None
    name = " ".join(words)
    return UNITS.get(name, name) + (f"^{power}" if power else "")


def _singular(word: str) -> str:
    return word.removesuffix("s") if len(word) > 3 else word
