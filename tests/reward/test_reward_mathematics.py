import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.answers import final_number, stated_answer
from reward.mathematics import MathVerifier


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
    fake = "parse = lambda text, parsing_timeout: text\nverify = lambda gold, answer, timeout_seconds: '1+x' in answer"
    (tmp_path / "math_verify.py").write_text(fake)
    code = "from reward.mathematics import MathVerifier; print(MathVerifier(1).score('x+2', r'\\boxed{1+x}'))"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "1.0"


def test_it_works_outside_the_main_thread(verifier: MathVerifier) -> None:
    scores: list[float] = []
    thread = threading.Thread(target=lambda: scores.append(verifier.score("x+1", r"\boxed{1+x}")))
    thread.start()
    thread.join()
    assert scores == [1.0]
