import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from nanoalign.reward.base import Score
from nanoalign.reward.final_answer import final_answer, final_number, stated_answer
from nanoalign.reward.math_answers import equal
from nanoalign.reward.mathematics import MathVerifier
from nanoalign.reward.sandboxed.algebra import equivalent


@pytest.fixture(scope="module")
def verifier() -> MathVerifier:
    return MathVerifier(workers=1)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"First \boxed{1}, no: \boxed{2}. The answer is 3.", "2"),
        (r"It is \boxed{2", None),
        ("The answer is 3.5. I am sure.", "3.5"),
        ("The answer is: **42**", "42"),
        ("Answer: Paris", "Paris"),
        ("The answer is 1.\nNo, the answer is 2.", "2"),
        ("so 6 * 7\n#### 42", "42"),
        ("<answer>a\nb</answer> done", "a\nb"),
        ("The answer is 4 <answer>5</answer>", "5"),
        ("I have no idea, perhaps 7", None),
        ("<answer>5</answer> <answer> </answer>", None),
        ("", None),
    ],
)
def test_stated_answers(text: str, answer: str | None) -> None:
    assert stated_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 and then 1,234.50 in all", "1,234.50"),
        ("it is -5", "-5"),
        ("5-3", "3"),
        ("a half is 1/2", "1/2"),
        ("1, 2, 3", "3"),
        ("none", None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("42", r"\boxed{42}", True),
        ("42", "So it is 42.", True),
        ("42", r"\boxed{42.0}", True),
        ("1,234", r"\boxed{1234}", True),
        ("1234", "1,234 apples", True),
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
        (r"\frac12", r"\boxed{\dfrac{1}{2}}", True),
        ("50%", r"\boxed{50\%}", True),
        ("5", r"\boxed{x = 5}", True),
        (r"x^2+1", r"\boxed{1 + x^2}", True),
        (r"\sqrt{8}", r"\boxed{2\sqrt{2}}", True),
        (r"(1,2)", r"\boxed{(1, 2)}", True),
        ("42", r"\boxed{43}", False),
        ("42", "", False),
        ("42", r"\boxed{}", False),
        ("42", r"\boxed{1, 2, 42}", False),
        ("42", r"\boxed{41 \text{ or } 42}", False),
        ("42", r"\boxed{41 = 42}", False),
        ("42", r"\boxed{1 = 2 = 42}", False),
        ("42", "42 or 43", False),
        ("42", " ".join(str(n) for n in range(100)), False),
        ("42", r"\boxed{" + ",".join(str(n) for n in range(400)) + "}", False),
        ("x+1", r"\boxed{x}", False),
        ("3", r"\boxed{1/0}", False),
    ],
)
def test_equality(verifier: MathVerifier, gold: str, text: str, right: bool) -> None:
    assert verifier.score(gold, text) == float(right)


@settings(deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_integers_need_no_worker_and_are_exact(gold: int, answer: int) -> None:
    verifier = MathVerifier(workers=1)
    assert verifier.score(str(gold), rf"\boxed{{{answer}}}") == float(gold == answer)
    assert verifier.score(f"{gold:,}", f"The answer is {gold}.") == 1.0
    assert not verifier.started


def test_an_answer_that_takes_too_long_scores_zero() -> None:
    verifier = MathVerifier(workers=2)
    huge = r"\boxed{(x+1)^{100000}}"
    scores = verifier.scores([("x+1", huge), ("x+1", r"\boxed{1+x}"), ("y+2", r"\boxed{2+y}")])
    assert scores == [0.0, 1.0, 1.0]


def test_workers_find_what_their_parent_finds(tmp_path: Path) -> None:
    """On clusters packages lie where PYTHONPATH says."""
    fake = """
LatexExtractionConfig = object
parse = lambda *_, **__: []
verify = lambda gold, answer, timeout_seconds: True
"""
    (tmp_path / "math_verify.py").write_text(fake)
    code = (
        "from nanoalign.reward.mathematics import MathVerifier; "
        "print(MathVerifier(1).score(r'\\gcd(4)', r'\\boxed{\\lcm(6)}'))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "1.0"


def test_it_works_outside_the_main_thread(verifier: MathVerifier) -> None:
    scores: list[float] = []
    thread = threading.Thread(target=lambda: scores.append(verifier.score("x+1", r"\boxed{1+x}")))
    thread.start()
    thread.join()
    assert scores == [1.0]


CASES = (
    (r"\text{B}", r"\boxed{\text{A}}", 0), (r"\text{even}", r"\boxed{\text{odd}}", 0),
    (r"\text{Monday}", r"\boxed{\%}", 0), ("C", r"\boxed{\text{C}}", 1), ("11/2", r"\boxed{1 1/2}", 0),
    ("3/2", r"\boxed{1 1/2}", 1), ("7/3", r"\boxed{2 1/3}", 1), ("(1,234)", r"\boxed{(1234)}", 0),
    ("120", r"\boxed{12\%0}", 0), (r"25\%", r"\boxed{\text{C}25}", 0), ("4", r"so it is \boxed{4", 0),
    (r"\emptyset", r"\boxed{\varnothing}", 1), ("1200", r"\boxed{1.2e3}", 1), ("C", r"\boxed{\textbf{(C)}\ 5}", 1),
    ("18", "**Answer:** 18 dollars", 1), ("82", r"\boxed{\textbf{082}}", 1), ("0.5", r"\boxed{0.5\%}", 0),
    ("100200", r"\boxed{100, 200}", 0), ("1011_2", r"\boxed{1011}", 0),
)  # fmt: skip


@pytest.mark.parametrize(("gold", "text", "right"), CASES)
def test_right_from_wrong(verifier: MathVerifier, gold: str, text: str, right: int) -> None:
    assert verifier.score(gold, text) == right


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        (r"\int_0^1 x\,dx", r"\int_0^1 x dx", 1), (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}", 1),
        (r"\sum_{k=1}^{n} k", r"\frac{n(n-1)}{2}", 0), (r"\gcd(4,6)", "2", 1), ("2", r"\gcd(4,6)", 1),
        ("2", r"\sum 2", 0), ("2", r"2\pmod 3", 0), ("2", r"2\to 3", 0), ("x", r"\unknown x", 0), ("x", r"\max x", 0),
        ("1", r"\int_0^1 1.0000001\,dx", 0), ("1", r"1^\infty", 0), ("0", r"0\cdot\infty", 0), ("5", "[5]", 0),
    ],
)  # fmt: skip
def test_what_math_verify_drops_is_not_dropped(verifier: MathVerifier, gold: str, answer: str, right: int) -> None:
    assert verifier.score(gold, rf"\boxed{{{answer}}}") == right


def test_a_verdict_that_was_not_reached_says_why(monkeypatch) -> None:
    verifier = MathVerifier(workers=1)

    def ask(questions: list[tuple[str, str]]) -> list[Score]:
        return [Score(0.0, "over the time limit") if "w" in answer else Score(0.0) for _, answer in questions]

    monkeypatch.setattr(verifier.pool, "ask", ask)
    answers = {"w": "x+1", "(1, y)": "(1, x)", "(w, 2)": "(x, 1)", "(w, 1)": "(x, 1)", "3": "2"}
    scores = verifier.scores([(gold, rf"\boxed{{{answer}}}") for answer, gold in answers.items()])
    assert scores == [0.0] * 5
    assert [score.reason for score in scores] == ["over the time limit", "", "", "over the time limit", ""]


def conventions() -> list[tuple[str, str, float]]:
    """The rows of docs/verifiers.md: gold, answer, score."""
    page = (Path(__file__).parents[2] / "docs/verifiers.md").read_text(encoding="utf-8")
    found = []
    for line in page.splitlines():
        cells = [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split(" | ")] if "`" in line else []
        if line.startswith("| ") and len(cells) == 4:
            [gold] = cells[1]
            found += [(gold, answer, 1.0) for answer in cells[2]] + [(gold, answer, 0.0) for answer in cells[3]]
    return found


def test_the_conventions_are_those_of_the_page(verifier: MathVerifier) -> None:
    rows = conventions()
    assert len(rows) > 100
    scores = verifier.scores([(gold, rf"\boxed{{{answer}}}") for gold, answer, _ in rows])
    assert [(row, score) for row, score in zip(rows, scores, strict=True) if score != row[2]] == []


numbers = st.one_of(
    st.integers(-9999, 10**7).map(str),
    st.tuples(st.integers(1, 99), st.integers(2, 99)).map(lambda f: rf"\frac{{{f[0]}}}{{{f[1]}}}"),
    st.decimals(-999, 999, places=2).map(str),
)
words = st.sampled_from([r"\text{even}", r"\text{Monday}", "B", r"(C)", r"\text{neither}", "CD", "None"])
golds = st.one_of(
    numbers,
    words,
    numbers.map(lambda n: rf"{n}\%"),
    numbers.map(lambda n: rf"{n}\text{{ inches}}"),
    st.integers(2, 9**4).map(lambda n: f"{n}_{{11}}"),
    st.lists(numbers, min_size=2, max_size=4).map(lambda ns: "(" + ",".join(ns) + ")"),
    st.lists(numbers, min_size=2, max_size=4).map(", ".join),
)


@settings(deadline=None, max_examples=150)
@given(gold=golds, data=st.data())
def test_a_perturbed_gold_never_scores(gold: str, data: st.DataObject) -> None:
    verifier = _shared()
    assert verifier.score(gold, rf"\boxed{{{gold}}}") == 1.0
    for blank in (r"\boxed{}", r"\boxed{ }", r"\boxed{\text{}}", r"\boxed{\ }", rf"\boxed{{{gold}", ""):
        assert verifier.score(gold, blank) == 0.0
    digits = [place for place, letter in enumerate(gold) if letter in "123456789"]
    changed = []
    if digits:
        place = data.draw(st.sampled_from(digits))
        other = data.draw(st.sampled_from([d for d in "123456789" if d != gold[place]]))
        changed.append(gold[:place] + other + gold[place + 1 :])
        changed += [f"{gold} + 1", f"{gold}, 7", f"{gold} = 3"]
    if "%" not in gold:
        changed.append(rf"{gold}\%")
    if gold[:1] in set("123456789"):
        changed.append(f"-{gold}")
    if "_" in gold:
        changed += [gold.replace("_{11}", "_{12}"), gold.partition("_")[0]]
    letters = [place for place, letter in enumerate(gold) if letter.isalpha() and "\\" not in gold]
    if letters:
        changed.append(gold.replace(gold[letters[0]], "Z"))
    changed += [r"\text{other}", "Q"]
    for wrong in changed:
        if Counter(wrong) != Counter(gold) and not _equal_lists(gold, wrong):
            assert verifier.score(gold, rf"\boxed{{{wrong}}}") == 0.0, wrong


def _equal_lists(gold: str, wrong: str) -> bool:
    """Fractions may be changed into equal ones, 1/1 into 2/2."""
    fractions = [
        [Fraction(int(a), int(b)) for a, b in re.findall(r"frac\{(-?\d+)\}\{(\d+)\}", each)] for each in (gold, wrong)
    ]
    rest = [re.sub(r"\\frac\{-?\d+\}\{\d+\}", "F", each) for each in (gold, wrong)]
    return sorted(fractions[0]) == sorted(fractions[1]) and rest[0] == rest[1]


@cache
def _shared() -> MathVerifier:
    return MathVerifier(workers=1)


@settings(deadline=None, max_examples=100)
@given(ours=numbers, theirs=numbers)
def test_the_fast_path_agrees_with_algebra_and_math_verify(ours: str, theirs: str) -> None:
    fast = equal(ours, theirs, lambda gold, answer: None)
    assert fast is not None
    assert fast == equivalent(ours, theirs)
    gold, answer = (parse(f"${text}$", parsing_timeout=None) for text in (ours, theirs))
    assert fast == verify(gold, answer, timeout_seconds=None)


@cache
def mirrored() -> list[str]:
    root = Path(os.environ.get("NANOALIGN_DATA", "../shared/data"))
    if not (file := root / "math" / "math_train_answers.json").exists():
        pytest.skip("the mirrored MATH answers are not here (NANOALIGN_DATA)")
    answers = {str(row["answer"]).strip() for row in json.loads(file.read_text(encoding="utf-8"))}
    return sorted(answers - {""})


def _ask(gold: str, answer: str) -> bool:
    return bool(equivalent(gold, answer))


def test_every_gold_of_math_equals_itself_and_no_blank() -> None:
    assert [gold for gold in mirrored() if not equal(gold, gold, _ask)] == []
    blanks = ("", " ", r"\text{}", r"\ ", "{}", "$$", r"\%", ".", r"\text{ }", r"\left(\right)")
    assert [(gold, blank) for gold in mirrored() for blank in blanks if equal(gold, blank, _ask)] == []


def _perturbed(gold: str, rng: random.Random) -> Iterator[str]:
    """One character of it is another, or one thing is added that changes what it says."""
    commands = {
        place for found in re.finditer(r"\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+", gold) for place in range(*found.span())
    }
    for place, letter in enumerate(gold):
        before, after = gold[:place], gold[place + 1 :]
        if place in commands:
            continue
        if letter.isdigit():
            yield before + str((int(letter) + rng.randint(1, 9)) % 10) + after
        elif letter.isalpha():
            yield before + rng.choice([other for other in "bcdkmnpqrtwxyz" if other != letter.lower()]) + after
        elif letter in "+-":
            yield before + {"+": "-", "-": "+"}[letter] + after
        elif letter in "([":
            yield before + {"(": "[", "[": "("}[letter] + after
        elif letter in ")]":
            yield before + {")": "]", "]": ")"}[letter] + after
    yield from (
        f"{gold}, 7",
        f"{gold} = 3",
        rf"{gold}\text{{ or }}0",
        rf"\text{{not }}{gold}",
        f"2{gold}",
        f"{gold}+1",
        f"{gold}_7",
    )
    if "%" not in gold:
        yield rf"{gold}\%"


@settings(deadline=None, max_examples=150)
@given(data=st.data(), seed=st.integers(0, 999))
def test_a_perturbed_gold_of_math_never_scores(data: st.DataObject, seed: int) -> None:
    gold = data.draw(st.sampled_from(mirrored()))
    assert [wrong for wrong in _perturbed(gold, random.Random(seed)) if equal(gold, wrong, _ask)] == []


PARTS = ("(", "[", "{", "\n", "9", " ", r"\boxed{", "<answer>", "answer is ", "answer: ", "#### ", "*", ",", r"\text{",
         "1 ", "_", r"\frac", "$", "\x00", "\ufffd", "é")  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_long_texts_are_read_in_linear_time_and_wrong(verifier: MathVerifier, part: str) -> None:
    text = part * (32_000 // len(part))
    begun = time.process_time()
    assert verifier.scores([("42", text), ("42", rf"\boxed{{{text}}}"), (text, "42"), ("42", text[:390])]) == [0.0] * 4
    assert time.process_time() - begun < 5.0  # quadratic ones took minutes


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=60) | st.text("(){}[]\\,._^$%0123456789 abtexfrcup", max_size=60), gold=golds)
def test_no_answer_raises(text: str, gold: str) -> None:
    for answer in (text, rf"\boxed{{{text}}}"):
        assert equal(gold, answer, lambda gold, answer: False) in (True, False)
        assert equal(answer, gold, lambda gold, answer: False) in (True, False)
        final_answer(answer)
