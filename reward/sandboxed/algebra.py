"""Whether two expressions or relations are the same algebra, by their values at random points.

Expressions are parsed completely (anything left over or unknown is an error, never dropped) and evaluated at rational
points: exactly while they stay rational, else to 200 digits. By Schwartz and Zippel's lemma two different ones do not
agree at random points except by negligible chance. What is known of notation is in the tables below.
"""

import operator
import random
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath

DIGITS = 200
TOLERANCE = mpmath.mpf(10) ** -150
POINTS = 12
MAX_BITS = 20_000
"""Of a power's result: above, an expression has no value here."""

Values = dict[str, Fraction]
Node = Callable[[Values], Any]
"""An expression: its value where the letters have these values."""


class Unreadable(Exception):
    """No expression: a sign too many, a bracket that is not closed."""


class Unknown(Exception):
    """Notation unknown to this module."""


class NoValue(Exception):
    """Not defined at this point, or too large."""


_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*|\.\d+)(?:\\overline ?\{ ?(?P<repeating>\d+) ?\})?"
    r"|(?P<command>\\[a-zA-Z]+)|(?P<letter>[a-zA-Z])|(?P<sign>[-+*/^_(){}\[\]|!]))"
)
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_RELATIONS = re.compile(r"\\(?:leq?|geq?|neq?|lt|gt)(?![a-zA-Z])|[<>=]")
_ORDER = {
    "<": ("<", 1), r"\lt": ("<", 1), ">": ("<", -1), r"\gt": ("<", -1), r"\leq": (r"\leq", 1), r"\le": (r"\leq", 1),
    r"\geq": (r"\leq", -1), r"\ge": (r"\leq", -1), "=": ("=", 0), r"\neq": (r"\neq", 0), r"\ne": (r"\neq", 0),
}  # fmt: skip
"""The kind of a relation, and which way it points."""
_LETTERS = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu", "nu",
    "xi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Phi",
    "Psi", "Omega", "infty", "ell",
}  # fmt: skip
"""Commands that are a variable. Infinity is one, alone or with a sign."""
_TIMES = {r"\cdot", r"\times", "*"}
_OVER = {r"\div", "/"}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan, "cot": mpmath.cot, "sec": mpmath.sec, "csc": mpmath.csc,
    "arcsin": mpmath.asin, "arccos": mpmath.acos, "arctan": mpmath.atan, "sinh": mpmath.sinh, "cosh": mpmath.cosh,
    "tanh": mpmath.tanh, "ln": mpmath.log, "exp": mpmath.exp, "log": mpmath.log,
}  # fmt: skip
COMMANDS = {
    *(f"\\{name}" for name in (*_LETTERS, *_FUNCTIONS, "pi", "circ", "frac", "sqrt", "binom", "overline")),
    *_TIMES, *_OVER, *_ORDER,
}  # fmt: skip
"""Commands that are known here."""
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_NAMES = re.compile(rf"(?<![a-zA-Z\\])(?:{'|'.join([*_FUNCTIONS, 'sqrt', 'pi'])})(?![a-zA-Z])")
_CALLED = re.compile(r"(?<![a-zA-Z\\])([fghFGH]) ?(\((?:[^()]|\([^()]*\))*\))")


def equivalent(gold: str, answer: str) -> bool | None:
    """None where the notation is not known here. What cannot be parsed, or has no value, equals nothing."""
    if not set(_COMMAND.findall(f"{gold} {answer}")) <= COMMANDS:
        return None
    try:
        (links, orders), (other_links, other_orders) = _relation(gold), _relation(answer)
        if len(links) != len(other_links):
            return False
        with mpmath.workdps(DIGITS):
            if len(links) == 1:
                return _equal(links[0], other_links[0])
            return _same_relation(links, orders, other_links, other_orders)
    except Unknown:
        return None
    except (Unreadable, RecursionError, OverflowError, ValueError):
        return False


def _same_relation(links: list["_Parsed"], orders: list[str], others: list["_Parsed"], other_orders: list[str]) -> bool:
    """One relation may be multiplied and turned round; in a chain each part must be the same."""
    if len(links) > 2:
        turned = [_ORDER[order] for order in reversed(other_orders)]
        ways = ((others, [_ORDER[order] for order in other_orders]), (others[::-1], [(o, -sign) for o, sign in turned]))
        return any(
            [_ORDER[order] for order in orders] == ordered and all(_equal(a, b) for a, b in zip(links, parts))
            for parts, ordered in ways
        )
    (order, sign), (other_order, other_sign) = _ORDER[orders[0]], _ORDER[other_orders[0]]
    if order != other_order:
        return False
    ratios = []
    ours, theirs = _difference(*links), _difference(*others)
    pairs = _values(ours, theirs)
    for a, b, _ in pairs:
        if a == 0 or b == 0:
            return False
        ratios.append(operator.truediv(*_alike(a, b)))
    moving = any(not _close(a, pairs[0][0], pairs[0][2]) for a, _, _ in pairs)  # else it is meaningless, as 0 = 1
    scale = ratios[0] if ratios else 0
    if (
        not moving
        or any(not _close(ratio, scale, abs(_digits(scale))) for ratio in ratios)
        or mpmath.im(_digits(scale)) != 0
    ):
        return False
    return sign == 0 or (mpmath.re(_digits(scale)) > 0) == (sign == other_sign)


def _difference(left: "_Parsed", right: "_Parsed") -> "_Parsed":
    return _Parsed(lambda values: _add(left.node(values), right.node(values), -1), left.letters | right.letters)


def _equal(gold: "_Parsed", answer: "_Parsed") -> bool:
    pairs = _values(gold, answer)
    return bool(pairs) and all(_close(a, b, size) for a, b, size in pairs)


_largest = [mpmath.mpf(0)]
"""The largest addend of the expression that is being evaluated: how much of its digits is left."""


def _values(gold: "_Parsed", answer: "_Parsed") -> list[tuple[Any, Any, Any]]:
    """Both values at random points, and their size; at points where the gold answer is real, if there are some."""
    rng = random.Random(20)
    letters = sorted(gold.letters | answer.letters)
    found: list[tuple[Any, Any, Any]] = []
    for turn in range(POINTS if letters else 1):
        low = 1 if turn % 2 else -3000
        values = {name: Fraction(rng.randint(low * 997, 3000 * 997) | 1, 997 * 1009) for name in letters}
        _largest[0] = mpmath.mpf(0)
        try:
            a = gold.node(values)
        except (NoValue, ZeroDivisionError):
            continue
        try:
            b = answer.node(values)
        except (NoValue, ZeroDivisionError):
            return []  # the gold answer has a value there
        found.append((a, b, max(abs(_digits(a)), abs(_digits(b)), _largest[0])))
    real = [each for each in found if abs(mpmath.im(_digits(each[0]))) <= TOLERANCE * each[2]]
    found = real if len(real) >= 2 else found
    return found if len(found) >= (3 if letters else 1) else []


def _close(a: Any, b: Any, size: Any) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    return bool(abs(_digits(a) - _digits(b)) <= TOLERANCE * size)


class _Parsed:
    def __init__(self, node: Node, letters: frozenset[str]) -> None:
        self.node, self.letters = node, letters


@lru_cache(maxsize=512)
def _relation(text: str) -> tuple[list[_Parsed], list[str]]:
    links = [_parsed(part) for part in _RELATIONS.split(text)]
    return links, _RELATIONS.findall(text)


def _parsed(text: str) -> _Parsed:
    names: dict[str, int] = {}

    def called(found: re.Match[str]) -> str:
        number = names.setdefault(found[0].replace(" ", ""), 10**6 + len(names))
        return f"f_{{{number}}}"

    text = _NAMES.sub(lambda m: f"\\{m[0]} ", text)
    text = _CALLED.sub(called, text)  # f(3) is a separate value, not a product
    parser = _Parser(_tokens(text))
    node = parser.sum()
    if parser.place < len(parser.tokens) or ("infty" in parser.letters and len(parser.tokens) > 2):
        raise Unreadable  # infinity is a separate value, and cannot be computed with
    back = {f"f_{number}": name for name, number in names.items()}

    def renamed(values: Values) -> Any:
        return node(values | {name: values[back[name]] for name in parser.letters if name in back})

    return _Parsed(renamed, frozenset(back.get(name, name) for name in parser.letters))


def _tokens(text: str) -> list[str]:
    """Raises Unknown for a command, Unreadable for a sign that is not algebra's."""
    tokens, place = [], 0
    text = text.replace("{}", " ").rstrip()
    while place < len(text):
        found = _TOKEN.match(text, place)
        if not found:
            raise Unreadable
        if found["repeating"]:
            whole, _, digits = found["number"].partition(".")
            if "." not in found["number"]:
                raise Unreadable
            nines = (10 ** len(found["repeating"]) - 1) * 10 ** len(digits)
            tokens.append(
                f"={Fraction(whole + digits or '0') / 10 ** len(digits) + Fraction(int(found['repeating']), nines)}"
            )
        else:
            tokens.append(found[0].strip())
        place = found.end()
    return tokens


class _Parser:
    """Recursive descent. Each method parses what its name says from ``place`` on and returns its node."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.place = tokens, 0
        self.letters: set[str] = set()

    def next(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self, *expected: str) -> str:
        token = self.next()
        if not token or (expected and token not in expected):
            raise Unreadable
        self.place += 1
        return token

    def sum(self) -> Node:
        sign = -1 if self.next() in "+-" and self.next() and self.take() == "-" else 1
        node = _scaled(sign, self.product())
        while self.next() in ("+", "-"):
            sign = -1 if self.take() == "-" else 1
            node = _added(node, self.product(), sign)
        return node

    def product(self) -> Node:
        node = self.factor()
        while True:
            if self.next() in _TIMES:
                self.take()
                node = _multiplied(node, self.signed())
            elif self.next() in _OVER:
                self.take()
                node = _divided(node, self.signed())
            elif self.starts():
                if self.next()[0] in "=.0123456789" and self.tokens[self.place - 1][0] in "=.0123456789":
                    raise Unreadable  # two numbers side by side
                node = _multiplied(node, self.factor())
            else:
                return node

    def signed(self) -> Node:
        if self.next() == "-":
            self.take()
            return _scaled(-1, self.factor())
        return self.factor()

    def starts(self) -> bool:
        """Whether a factor comes next."""
        token = self.next()
        return bool(token) and token not in ("+", "-", "*", "/", "^", "_", ")", "}", "]", "|", "!", *_TIMES, *_OVER)

    def factor(self) -> Node:
        node = self.base()
        while self.next() in ("^", "!"):
            if self.take() == "!":
                node = _applied(_factorial, node)
            elif self.next() == r"\circ":
                self.take()
                node = _multiplied(node, lambda values: mpmath.pi / 180)
            elif self.next() == "{" and self.tokens[self.place + 1 : self.place + 3] == [r"\circ", "}"]:
                self.place += 3
                node = _multiplied(node, lambda values: mpmath.pi / 180)
            else:
                node = _raised(node, self.signed_base())
                if self.next() == "^":
                    raise Unreadable
        return node

    def base(self) -> Node:
        token = self.take()
        if token[0] == "=" or token[0].isdigit() or token[0] == ".":
            value = Fraction(token.lstrip("=").rstrip("."))
            return lambda values: value
        if token in ("(", "{"):
            node = self.sum()
            self.take({"(": ")", "{": "}"}[token])
            return node
        if token == "|":
            node = self.sum()
            self.take("|")
            return _applied(abs, node)
        if len(token) == 1 and token.isalpha():
            return self.letter(token)
        if token[0] == "\\":
            return self.command(token[1:])
        raise Unreadable

    def letter(self, name: str) -> Node:
        if name == "e":
            return lambda values: +mpmath.e
        if name == "i":
            return lambda values: mpmath.mpc(0, 1)
        return self.variable(name)

    def variable(self, name: str) -> Node:
        if self.next() == "_":
            self.take()
            name += "_" + "".join(self.group())
        self.letters.add(name)
        return lambda values: values[name]

    def group(self) -> list[str]:
        """The tokens of a subscript."""
        if self.next() != "{":
            return [self.take()]
        start = self.place + 1
        while self.take() != "}":
            pass
        return self.tokens[start : self.place - 1]

    def argument(self) -> Node:
        """One token's worth, as LaTeX reads ``\\frac12``; or a group."""
        token = self.next()
        if token[:1].isdigit() and len(token) > 1:
            self.tokens[self.place : self.place + 1] = [token[0], token[1:]]
        return self.base()

    def signed_base(self) -> Node:
        """An exponent: ``5^12`` is meant as ``5^{12}``."""
        if self.next() == "-":
            self.take()
            return _scaled(-1, self.base())
        return self.base()

    def command(self, name: str) -> Node:
        if name == "pi":
            return lambda values: +mpmath.pi
        if name in _LETTERS:
            return self.variable(name)
        if name == "frac":
            return _divided(self.argument(), self.argument())
        if name == "binom":
            return _combined(_choose, self.argument(), self.argument())
        if name == "sqrt":
            return self.root()
        if name in _FUNCTIONS:
            return self.function(name)
        raise Unknown

    def root(self) -> Node:
        degree: Node = lambda values: Fraction(2)  # noqa: E731
        if self.next() == "[":
            self.take()
            degree = self.sum()
            self.take("]")
        return _combined(_root, self.argument(), degree)

    def function(self, name: str) -> Node:
        power: Node | None = None
        base: Node | None = None
        if name == "log" and self.next() == "_":
            self.take()
            base = self.argument()
        if self.next() == "^":
            self.take()
            if self.tokens[self.place : self.place + 4] == ["{", "-", "1", "}"]:
                if name not in _INVERSE:
                    raise Unknown
                self.place += 4
                name = _INVERSE[name]
            else:
                power = self.argument()
        node = _applied(_function(name), self.operand())
        if name == "log":  # without a base it is somebody's: of 10, of e
            if base is None:
                self.letters.add("log's base")
                base = lambda values: abs(values["log's base"]) + 2  # noqa: E731
            node = _divided(node, _applied(_function("ln"), base))
        return _raised(node, power) if power else node

    def operand(self) -> Node:
        """A function's argument: a bracket, or the factors up to the next function."""
        if self.next() in ("(", "{", "|"):
            return self.factor() if self.next() != "(" else self.base()
        node = self.signed()
        while self.starts() and self.next().lstrip("\\") not in _FUNCTIONS:
            if self.next() == "(":
                raise Unreadable  # \sin x (x + 1) may be either
            node = _multiplied(node, self.factor())
        return node


def _added(left: Node, right: Node, sign: int) -> Node:
    return lambda values: _add(left(values), right(values), sign)


def _add(a: Any, b: Any, sign: int) -> Any:
    a, b = _alike(a, b)
    _largest[0] = max(_largest[0], abs(_digits(a)), abs(_digits(b)))
    return _checked(a + b if sign > 0 else a - b)


def _scaled(sign: int, node: Node) -> Node:
    return node if sign > 0 else lambda values: -node(values)


def _multiplied(left: Node, right: Node) -> Node:
    return _combined(operator.mul, left, right)


def _divided(left: Node, right: Node) -> Node:
    return _combined(operator.truediv, left, right)


def _applied(function: Callable[[Any], Any], node: Node) -> Node:
    return lambda values: _checked(function(node(values)))


def _combined(function: Callable[[Any, Any], Any], left: Node, right: Node) -> Node:
    return lambda values: _checked(function(*_alike(left(values), right(values))))


def _raised(node: Node, power: Node) -> Node:
    return _combined(_power, node, power)


def _digits(value: Any) -> Any:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _alike(a: Any, b: Any) -> tuple[Any, Any]:
    """Both exact, or both to 200 digits."""
    return (a, b) if isinstance(a, Fraction) and isinstance(b, Fraction) else (_digits(a), _digits(b))


def _checked(value: Any) -> Any:
    """Long fractions become digits; what is too large, or not a number, has no value."""
    if isinstance(value, Fraction):
        return _digits(value) if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS else value
    if not mpmath.isfinite(value) or (value != 0 and abs(mpmath.mag(value)) > 10 * MAX_BITS):
        raise NoValue
    return value


def _power(a: Any, b: Any) -> Any:
    if a == 0:
        if mpmath.re(_digits(b)) > 0:
            return Fraction(0)
        raise NoValue
    if abs(_digits(b)) * (abs(mpmath.mag(_digits(a))) + 1) > MAX_BITS:
        raise NoValue
    if isinstance(b, Fraction) and b.denominator == 1 and isinstance(a, Fraction):
        return a ** int(b)
    return mpmath.power(_digits(a), _digits(b))


def _root(a: Any, degree: Any) -> Any:
    if degree == 0:
        raise NoValue
    if (
        isinstance(a, Fraction)
        and isinstance(degree, Fraction)
        and a < 0
        and degree.denominator == 1
        and degree % 2 == 1
    ):
        return -_power(-a, 1 / degree)  # the real root
    return _power(a, 1 / degree)


def _function(name: str) -> Callable[[Any], Any]:
    def value(x: Any) -> Any:
        x = _digits(x)
        if abs(x) > 2**64:  # reduced by pi it would need as many digits
            raise NoValue
        if name in ("ln", "log") and x == 0:
            raise NoValue
        return _FUNCTIONS[name](x)

    return value


def _factorial(x: Any) -> Any:
    if abs(_digits(x)) > 1000:
        raise NoValue
    if isinstance(x, Fraction) and x.denominator == 1:
        if x < 0:
            raise NoValue
        return Fraction(mpmath.libmp.ifac(int(x)))
    return mpmath.gamma(_digits(x) + 1)


def _choose(n: Any, k: Any) -> Any:
    if max(abs(_digits(n)), abs(_digits(k))) > 1000:
        raise NoValue
    under = operator.mul(*_alike(_factorial(k), _factorial(n - k)))
    return operator.truediv(*_alike(_factorial(n), under))
