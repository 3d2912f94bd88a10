"""The pool of sandboxed verifiers: what hostile texts earn, and what workers survive."""

import json
import math
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.data_recipes.conversation import Answer, Message
from nanoalign.data_recipes.generators import reasoning_gym_names
from nanoalign.reward import Sample, make_reward, verifier_pool
from nanoalign.reward.sandboxed.wire import pack, unpack
from nanoalign.reward.verifier_pool import VerifierPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox's walls are Linux's")
HOSTILE = [
    "", " ", "nan", "NaN", "-inf", "1/0", "9" * 6000, "-1e999", "[[[[", "(" * 2000, "[1, 2]", "[[1], [2]]", "{}",
    '{"a": [1, null]}', "None", "True", "\0", "\ud800", "\u202e\u0661", "x" * 50_000, "1,2,3\n4,5", "a b c", "sin(x)/0",
    "0", "''", "[nan]", "\u2028", "\x1b[2J",
]  # fmt: skip
EVALUATED = (
    "binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication",
    "puzzle24", "simple_integration", "spiral_matrix", "string_insertion",
)  # fmt: skip
"""Data sets of reasoning-gym 0.1.25 whose verifiers evaluate the answer as Python."""


@pytest.fixture(scope="module")
def entries() -> dict[str, dict]:
    import reasoning_gym

    names = [name for name in reasoning_gym_names() if name != "composite"]  # which has no tasks of its own
    return {name: reasoning_gym.create_dataset(name, size=1, seed=7)[0] for name in names}


@pytest.fixture(scope="module")
def pool() -> VerifierPool:
    return VerifierPool("reasoning_gym", workers=2)


@pytest.fixture(scope="module")
def mathematics() -> VerifierPool:
    return VerifierPool("math", workers=1)


def test_each_data_set_gives_its_own_answer_full_marks(entries: dict[str, dict], pool: VerifierPool) -> None:
    known = [(name, str(entry["answer"]), entry) for name, entry in entries.items() if entry["answer"] is not None]
    assert len(known) > 90
    verdicts = dict(zip((name for name, *_ in known), pool.ask(known), strict=True))
    assert {name: (score, score.reason) for name, score in verdicts.items() if score != 1.0 or score.reason} == {}


def test_hostile_texts_earn_nothing_anywhere(entries: dict[str, dict], pool: VerifierPool) -> None:
    questions = [(name, text, entry) for name, entry in entries.items() for text in HOSTILE]
    for (name, text, entry), score in zip(questions, pool.ask(questions), strict=True):
        right = str(entry["answer"]).strip('"') == text or _number(entry["answer"]) == _number(text)
        assert score in (0.0, 1.0) and math.isfinite(score), (name, text)
        assert score == 0.0 or right, (name, text, entry["answer"])


def _number(text: str) -> float:
    try:
        return float(text)
    except (ValueError, TypeError):
        return math.nan


@pytest.mark.parametrize("name", EVALUATED)
def test_no_answer_runs_as_code(name: str, entries: dict[str, dict], pool: VerifierPool, tmp_path: Path) -> None:
    """Marks that code would leave: a file outside, an attribute inside the worker, a changed verdict later on."""
    mark = tmp_path / "mark"
    answers = [
        f"open({str(mark)!r}, 'w')",
        f"__import__('pathlib').Path({str(mark)!r}).touch()",
        "setattr(__import__('builtins'), 'float', lambda x: 24.0)",
        "[each for each in ().__class__.__base__.__subclasses__()]",
        "(lambda: 24)()",
        "Integer(1).__class__.__eq__",
        "eval('24')",
        "sympify('__import__(\"os\")')",
    ]
    scores = pool.ask([(name, answer, entries[name]) for answer in answers])
    assert scores == [0.0] * len(answers)
    assert any(score.reason == "the answer is code" for score in scores)
    assert not mark.exists()
    if (gold := entries[name]["answer"]) is not None:
        assert pool.ask([(name, str(gold), entries[name])] * 4) == [1.0] * 4


def test_powers_without_end_are_over_the_time_limit(entries: dict[str, dict], pool: VerifierPool) -> None:
    [score] = pool.ask([("countdown", "9**9**9**9", entries["countdown"])])
    assert score == 0.0 and score.reason == "over the time limit"


def test_verifiers_that_gave_one_answer_full_marks_everywhere(pool: VerifierPool) -> None:
    import reasoning_gym

    constant = {"coin_flip": "0", "complex_arithmetic": "nan", "game_of_life_halting": "yes", "puzzle24": "4*6*1*1"}
    for name, answer in constant.items():
        tasks = list(reasoning_gym.create_dataset(name, size=12, seed=3))
        assert sum(pool.ask([(name, answer, task) for task in tasks])) <= 1, name
        assert sum(pool.ask([(name, task["answer"], task) for task in tasks])) == 12, name


def test_what_a_verifier_raises_is_a_reason(entries: dict[str, dict], pool: VerifierPool) -> None:
    [score] = pool.ask([("prime_factorization", "none", entries["prime_factorization"])])
    assert score == 0.0 and score.reason == "the verifier raised ValueError"


@pytest.mark.parametrize(
    "answer", ["__import__('os').getcwd()", "\0", "\ud800", "9^{9^{9^{9}}}", "(" * 5000, "\\frac" * 500, "x" * 10**6]
)
def test_hostile_mathematics(answer: str, mathematics: VerifierPool) -> None:
    assert mathematics.ask([("x+1", answer)]) == [0.0]
    assert mathematics.ask([("x+1", "1+x")]) == [1.0]


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("answer", ["1+x", "1+x" + " " * 10**6])
def test_a_dead_or_hanging_worker_scores_zero_and_is_replaced(fate: signal.Signals, answer: str) -> None:
    pool = VerifierPool("math", workers=1)
    assert pool.ask([("x+1", "1+x")]) == [1.0]
    worker = pool._pool._workers.queue[0]
    assert worker._process
    worker._process.send_signal(fate)
    if fate == signal.SIGKILL:
        worker._process.wait()
    worker._timeout_s = 0.2
    [score] = pool.ask([("x+1", answer)])
    assert score == 0.0
    assert score.reason == ("the verifier's process ended" if fate == signal.SIGKILL else "over the time limit")
    worker._timeout_s = 60.0
    assert pool.ask([("x+1", "1+x")]) == [1.0]


def test_a_worker_that_cannot_start_is_an_error_and_no_wrong_answer(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "worker.py").write_text("import math_verifi")
    monkeypatch.setattr(verifier_pool, "_WORKER", tmp_path / "worker.py")
    with pytest.raises(ConfigError, match=r"math: the verifier's process does not start: .*math_verifi"):
        VerifierPool("math", workers=1).ask([("x+1", "1+x")])


def test_a_worker_is_behind_walls_and_knows_no_secrets(tmp_path: Path, monkeypatch) -> None:
    """A verifier that asks for what a verifier may not have."""
    script = (
        Path(verifier_pool._WORKER).read_text().replace('VERIFIERS = {"math": mathematics', 'VERIFIERS = {"math": spy')
    )
    spy = """
def spy():
    import socket, subprocess
    acts = {
        "read": lambda: open("/etc/passwd"),
        "write": lambda: open("/tmp/x", "w"),
        "socket": socket.socket,
        "fork": os.fork,
        "run": lambda: subprocess.run(["true"]),
        "kill": lambda: os.kill(os.getppid(), 0),
        "limit": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE),
        "secret": lambda: os.environ["NANOALIGN_TEST_SECRET"],
    }
    def tries(act):
        try:
            acts[act]()
        except (OSError, KeyError):
            return 0.0
        return 1.0
    return tries


VERIFIERS ="""
    folder = Path(verifier_pool._WORKER).parent
    for name in ("algebra.py", "lockdown.py", "wire.py"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "worker.py").write_text(script.replace("VERIFIERS =", spy, 1))
    monkeypatch.setattr(verifier_pool, "_WORKER", tmp_path / "worker.py")
    monkeypatch.setenv("NANOALIGN_TEST_SECRET", "hush")
    acts = ["read", "write", "socket", "fork", "run", "kill", "limit", "secret"]
    assert VerifierPool("math", workers=1).ask(acts) == [0.0] * len(acts)


def test_a_missing_wall_is_said_and_the_others_stand(tmp_path: Path, monkeypatch, caplog) -> None:
    folder = Path(verifier_pool._WORKER).parent
    for name in ("algebra.py", "lockdown.py", "wire.py", "worker.py"):
        text = (folder / name).read_text()
        (tmp_path / name).write_text(
            text.replace("create, add, restrict = 444,", 'raise OSError("none")\n    create, add, restrict = 444,')
        )
    monkeypatch.setattr(verifier_pool, "_WORKER", tmp_path / "worker.py")
    pool = VerifierPool("math", workers=1)
    assert pool.ask([("x+1", "1+x"), ("x+1", "__import__('os').getcwd()")]) == [1.0, 0.0]
    assert "layers missing on this machine" in caplog.text and "Landlock" in caplog.text


def test_the_reward_gives_reasons_and_refuses_unknown_data_sets(entries: dict[str, dict]) -> None:
    reward = make_reward({"reasoning_gym": 1.0}, workers=1)

    def sample(name: str, text: str) -> Sample:
        task = {"kind": "reasoning_gym", "dataset": name, "entry": entries.get(name, {})}
        return Sample((Message("user", "?"),), Answer(text), task)

    assert reward.score([sample("prime_factorization", text) for text in ("none", "", "\0")]) == [0.0] * 3
    with pytest.raises(DataError, match="no_such"):
        reward.score([sample("no_such", "a")])
    for entry, said in (({"answer": object()}, "no plain data"), (None, "complete entry")):
        task = {"kind": "reasoning_gym", "dataset": "gcd", "entry": entry}
        with pytest.raises(DataError, match=said):
            reward.score([Sample((Message("user", "?"),), Answer("a"), task)])


_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
_KEYS = st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())


@settings(deadline=None)
@given(
    st.recursive(
        _LEAVES,
        lambda of: (
            st.lists(of)
            | st.lists(of).map(tuple)
            | st.dictionaries(_KEYS, of)
            | st.sets(_KEYS, max_size=1)
            | st.frozensets(_KEYS, max_size=1)
        ),
        max_leaves=20,
    )
)
def test_plain_data_passes_as_it_is(value: object) -> None:
    back = unpack(json.loads(json.dumps(pack(value))))
    assert back == value and repr(back) == repr(value)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda of: st.lists(of) | st.dictionaries(st.text(), of), max_leaves=10
    )
)
def test_what_is_no_message_is_no_value(message: object) -> None:
    """Whatever a program says becomes plain data or an ordinary exception."""
    try:
        value = unpack(message)
    except (ValueError, TypeError, ArithmeticError):
        return
    assert unpack(pack(value)) == value or value != value


def test_objects_are_no_plain_data() -> None:
    for value in (object(), os, print, ValueError, Path()):
        with pytest.raises(TypeError):
            pack(value)
