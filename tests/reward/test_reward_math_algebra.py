"""Algebra by values (reward/sandboxed/algebra.py): right from wrong, against math-verify, on hostile texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.reward.sandboxed.algebra import equivalent

TABLE = (
    # gold, equal, different
    ("x+1", ("1+x", "x + 2 - 1", r"\frac{x^2-1}{x-1}"), ("x", "x-1", "x+1+", "x+1)", "(x+1", "x++1", "y+1", "X+1")),
    (r"2^{-98}", (r"\frac{1}{2^{98}}",), (r"2^{-99}", "0")),
    (r"10^{-50}\pi", (r"\frac{\pi}{10^{50}}",), (r"10^{-51}\pi", "0")),
    (r"\sqrt{2}", (r"\frac{2}{\sqrt2}", "2^{1/2}", "sqrt(2)"), ("1.41421356237309504880", "2", r"-\sqrt2")),
    ("0", (r"\sqrt2\sqrt3-\sqrt6",), ("10^{-100}", "0x+1")),
    (r"0.\overline{3}", (r"\frac13",), ("0.3", r"0.\overline{33}1")),
    (r"0.1\overline{6}", (r"\frac16",), (r"0.\overline{16}",)),
    (r"\frac12", ("1/2", ".5"), ("1", "12", r"\frac21")),
    ("5^{12}", ("5^12", r"25^6"), ("5^1", "60")),
    ("1/2x", (r"\frac{x}{2}",), (r"\frac{1}{2x}",)),
    (r"10x\sqrt{21x}", (r"\sqrt{2100x^3}",), (r"\sqrt{2100}x",)),
    ("x", (r"x^1",), (r"\sqrt{x^2}", "|x|", "x/0")),
    ("|x|", (r"\sqrt{x^2}", "|-x|"), ("x",)),
    (r"\tan 15^\circ", (r"2-\sqrt3", r"\tan\frac{\pi}{12}"), (r"\tan 15",)),
    (r"2\sin 5x\cos x", (r"\sin 6x+\sin 4x",), (r"2\sin(5x\cos x)",)),
    (r"\sin^2 t", (r"1-\cos^2 t", r"(\sin t)^2"), (r"\sin t^2",)),
    (r"\log\left(2\right)".replace(r"\left", "").replace(r"\right", ""), (r"\log 4-\log 2",), (r"\ln 2", r"\log_2 2")),
    (r"\log_2 8", ("3",), ("2",)),
    (r"\sqrt[3]{-8}", ("-2",), ("2",)),
    ("f(4 - x)", ("f(4-x)",), ("f(4+x)", "4f-fx")),
    ("f(3)", ("f(3)",), ("f(1)+f(2)", "3f")),
    (r"(-1+i)^2", ("-2i",), ("2i",)),
    (r"\infty", (r"+\infty",), (r"-\infty", "0")),
    ("3!", ("6",), ("3",)),
    (r"\binom{5}{2}", ("10",), ("20",)),
    ("x_1", ("x_{1}",), ("x_2", "x")),
    ("xy", ("yx", r"x \cdot y"), ("x+y", "xY")),
    ("x+y+z=0", ("2x+2y+2z=0", "x+y=-z", "0=-x-y-z"), ("x+y=z", "x+y+z=1", "x+y+z", "0=1", r"x+y+z\leq 0")),
    ("x+1=x", (), ("0=1", "x=x")),
    (r"s^2\leq 8r^2", (r"8r^2\geq s^2", r"2s^2\leq 16r^2"), (r"s^2\geq 8r^2", "s^2<8r^2", r"-s^2\leq -8r^2")),
    (r"-80\leq g(x)\leq 82", (r"82\geq g(x)\geq -80",),
     (r"-80\leq g(x)\leq 83", r"-80\leq g(x)<82", r"-80\leq g(n)\leq 82")),
)  # fmt: skip


@pytest.mark.parametrize(("gold", "equals", "others"), TABLE)
def test_right_from_wrong(gold: str, equals: tuple[str, ...], others: tuple[str, ...]) -> None:
    assert {each: equivalent(gold, each) for each in equals} == dict.fromkeys(equals, True)
    assert {each: equivalent(gold, each) for each in others} == dict.fromkeys(others, False)


@pytest.mark.parametrize("text", [r"\int_0^1 x", r"x\ldots", r"\sum_{k=1}^n k", r"\unknown x", r"\triangle"])
def test_notation_that_is_not_known_is_not_dropped(text: str) -> None:
    assert equivalent("x", text) is None


coefficients = st.lists(st.integers(-9, 9), min_size=2, max_size=4)


def polynomial(numbers: list[int]) -> str:
    return "+".join(f"({number})x^{{{power}}}" for power, number in enumerate(numbers))


@settings(deadline=None, max_examples=60)
@given(first=coefficients, second=coefficients, place=st.integers(0, 2), change=st.integers(1, 3))
def test_products_equal_their_expansion_and_nothing_else(
    first: list[int], second: list[int], place: int, change: int
) -> None:
    expanded = [0] * (len(first) + len(second) - 1)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            expanded[i + j] += a * b
    gold = f"({polynomial(first)})({polynomial(second)})"
    assert equivalent(gold, polynomial(expanded)) is True
    expanded[place % len(expanded)] += change
    assert equivalent(gold, polynomial(expanded)) is False


_EXPRESSIONS = (
    r"\frac{2\sqrt{3}}{3}", r"\frac{2}{\sqrt{3}}", r"2\sqrt{3}-1", r"\sqrt{12}-1", r"x^2-1", r"(x-1)(x+1)", "3+4i",
    r"\frac{\pi}{6}", r"\pi/6", r"x^2+y^2", r"(x+y)^2-2xy", r"-\frac{7}{23}", r"\frac{-7}{23}", "4i+3", "2^{10}",
    r"\sqrt{3}", r"\frac{1+\sqrt{5}}{2}", r"\frac{\sqrt5+1}{2}", "5-3i", "x+y", r"\frac{x+5}{6}",
    r"\frac{x}{6}+\frac56", "x^2", "1024",
)  # fmt: skip


def test_it_agrees_with_math_verify() -> None:
    """Where that is right: it takes for equal what agrees to six digits or is smaller than 1e-15, and reads ``2ab`` as
    2, ``6h`` as 6, ``A`` as ``a``."""
    from math_verify import parse, verify

    parsed = {text: parse(f"${text}$", parsing_timeout=None) for text in _EXPRESSIONS}
    pairs = [(a, b) for a in _EXPRESSIONS for b in _EXPRESSIONS]
    ours = {pair: equivalent(*pair) for pair in pairs}
    theirs = {(a, b): verify(parsed[a], parsed[b], timeout_seconds=None) for a, b in pairs}
    assert ours == theirs
    assert sum(map(bool, ours.values())) > len(_EXPRESSIONS)


@settings(deadline=None, max_examples=300)
@given(text=st.text(max_size=40) | st.text("()[]{}|\\^_+-*/!=<.0123456789 xyfei", max_size=60))
def test_no_text_raises(text: str) -> None:
    assert equivalent("x+1", text) in (True, False, None)
    assert equivalent(text, "x+1") in (True, False, None)


@pytest.mark.parametrize(
    "text",
    ["9^{9^{9^{9}}}", "(x+1)^{100000}", "1000!!", "x!", r"\sin(10^{10^{10}})", "(" * 390, "{" * 390, r"\frac" * 70,
     "1/0", "x/(x-x)", "9" * 390 + "^99999", r"\sqrt[0]{2}", r"\ln 0", "0^0", "2^{x^{x^{99}}}", "|" * 390,
     "-" * 390, "9!^9!^9!"],
)  # fmt: skip
def test_hostile_texts_equal_nothing(text: str) -> None:
    assert equivalent("x+1", text) is False
