import gzip
import json
import os
import sys
import time
from pathlib import Path

import pytest

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.conversation import Answer, Message
from nanoalign.reward import Sample, make_reward
from nanoalign.reward.code import program, score_code
from nanoalign.reward.sandbox import Limits, run_program

DATA = Path(os.environ.get("NANOALIGN_DATA", Path(__file__).parents[3] / "shared" / "data"))
TIGHT = Limits(seconds=1.0, memory_mib=512)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox's walls are Linux's")
pytestmark = linux_only


def sample(text: str, **task: object) -> Sample:
    return Sample((Message("user", "Write it."),), Answer(text), {"kind": "code", **task})


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("network", "import socket\nsocket.create_connection(('127.0.0.1', 80))"),
        ("network by libc", "import ctypes\nassert ctypes.CDLL(None).socket(2, 1, 0) >= 0"),
        ("fork bomb", "import os\nwhile True:\n    os.fork()"),
        ("shell", "import os\nassert os.system('true') == 0"),
        ("subprocess", "import subprocess\nsubprocess.run(['true'])"),
        ("endless threads", "import threading as t\nwhile True:\n    t.Thread(target=t.Event().wait).start()"),
        ("endless loop", "while True:\n    pass"),
        ("endless sleep", "import time\ntime.sleep(1000)"),
        ("10 GB", "x = bytearray(10 * 2**30)"),
        ("memory bit by bit", "x = []\nwhile True:\n    x.append(bytearray(2**20))"),
        ("output without end", "while True:\n    print('x' * 1000)"),
        ("reads a secret", "open('/etc/passwd').read()"),
        ("reads the project", f"open({__file__!r}).read()"),
        ("lists folders", "import os\nos.listdir('/tmp')"),
        ("kills its parent", "import os\nos.kill(os.getppid(), 9)"),
        ("changes a mode", "import os\nos.chmod('/tmp', 0o777)"),
        ("escapes by mount", "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0"),
        ("limits its parent", "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)"),
        ("signals a thread", "import ctypes, os\np = os.getppid()\nassert not ctypes.CDLL(None).tgkill(p, p, 0)"),
        ("slows its parent", "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)"),
        ("leaves its session", "import os\nos.setsid()"),
        ("leaves its group", "import os\nos.setpgid(0, 0)"),
        ("watches files", "import ctypes\nassert ctypes.CDLL(None).inotify_init() >= 0"),
        ("leaves early", "import sys\nsys.exit(0)"),
        ("leaves at once", "import os\nos._exit(0)"),
        ("crashes", "import ctypes\nctypes.string_at(0)"),
        ("closes everything", "import os\nos.closerange(0, 100)"),
        ("is no program", "this is no python"),
    ],
)  # fmt: skip
def test_walls(name: str, code: str) -> None:
    start = time.monotonic()
    outcome = run_program(code, tests="assert True", limits=TIGHT)
    assert not outcome.passed
    assert time.monotonic() - start < 60, "the clock did not stop it"


@pytest.mark.parametrize("code", ["", "def f(x):\n    return x + 1\n"])
def test_the_program_cannot_see_that_files_are_there(code: str) -> None:
    if not run_program("", limits=TIGHT).hidden:
        pytest.skip("this machine gives no process a root folder of its own")
    look = (
        f"import os\nprint([os.path.exists(path) for path in ({__file__!r}, '/etc/passwd', '/proc/self', '/home')])\n"
    )
    outcome = run_program(look + code, tests="assert f(1) == 2" if code else "", limits=TIGHT)
    assert outcome.passed and outcome.output == "[False, False, False, False]\n"


def test_no_file_is_written_outside_or_anywhere(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("kept")
    tmp_path.chmod(0o777)
    for code in (
        f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
        f"open({str(old)!r}, 'a').write('x')",
        f"import os\nos.truncate({str(old)!r}, 0)",
        f"import os\nos.remove({str(old)!r})",
        f"import os\nos.rename({str(old)!r}, {str(tmp_path / 'new')!r})",
        f"import os\nos.symlink({str(old)!r}, {str(tmp_path / 'new')!r})",
        f"import os\nos.mkdir({str(tmp_path / 'new')!r})",
        "import tempfile\ntempfile.TemporaryFile()",
    ):
        assert not run_program(code, limits=TIGHT).passed, code
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and old.read_text() == "kept"


def test_honest_programs_run() -> None:
    imports = "import collections, dataclasses, heapq, itertools, json, math, random, re, string, typing\n"
    outcome = run_program(imports + "print(math.comb(5, 2))", tests="assert re.match('a', 'ab')")
    assert outcome.passed and outcome.output == "10\n"
    echo = run_program("print(input()[::-1])", stdin="abc\n")
    assert echo.passed and echo.output == "cba\n"
    assert not run_program("print(1)\nraise ValueError('no')").passed


def test_the_environment_is_empty() -> None:
    os.environ["NANOALIGN_TEST_SECRET"] = "hush"
    try:
        assert "hush" not in run_program("import os\nprint(dict(os.environ))").output
    finally:
        del os.environ["NANOALIGN_TEST_SECRET"]


def test_answers_are_scored_by_tests_or_by_cases() -> None:
    good = "Here:\n```python\ndef f(x):\n    return x + 1\n```\nDone."
    assert program(good) == "def f(x):\n    return x + 1\n"
    assert score_code(sample(good, tests="assert f(1) == 2")) == 1.0
    assert score_code(sample(good, tests="assert f(1) == 3")) == 0.0
    cases = [{"input": "3\n", "output": "6"}, {"input": "5\n", "output": "10 \n"}]
    assert score_code(sample("print(2 * int(input()))", cases=cases)) == 1.0
    assert score_code(sample("print(6)", cases=cases)) == 0.0
    assert score_code(sample("", tests="assert True")) == 0.0
    with pytest.raises(DataError, match="tests"):
        score_code(sample("print(6)"))


def _sections(name: str) -> list[tuple[str, str]]:
    """Sections headed ``## title`` of a file beside this one."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return [(title, code) for title, _, code in (section.partition("\n") for section in text.split("## ")[1:])]


TESTS = """
import math
def check(candidate):
    assert candidate([3, 1, 2]) == 6
    assert abs(candidate([0.5]) - 0.5) < 1e-6
check(f)
"""
RIGHT = "def f(x):\n    return sum(x)\n"
EXPLOITS = dict(_sections("exploits.txt")) | {
    "NUL": "\0",
    "a lone surrogate": "x = '\ud800'\n",
    "control characters": "\x1b[2J\x9b",
}


@pytest.mark.parametrize("name", EXPLOITS)
def test_exploits_of_tests_earn_nothing(name: str) -> None:
    assert score_code(sample(f"```python\n{EXPLOITS[name]}\n```", tests=TESTS), TIGHT) == 0.0


def test_the_tests_of_the_exploits_can_be_passed() -> None:
    assert score_code(sample(f"```python\n{RIGHT}\n```", tests=TESTS), TIGHT) == 1.0


CASES = [{"input": "3\n", "output": "6"}]


@pytest.mark.parametrize(
    "code",
    [
        "print(5)",
        "import os\nos._exit(0)",
        "import os\nfor i in range(64):\n    try: os.write(i, b'walls up True\\npassed\\n')\n    except OSError: pass",
        "import sys\nf = sys._getframe()\nwhile f.f_back: f = f.f_back\nprint(f.f_locals)",
        "print(6)\nraise SystemExit(1)",
        "while True: print(6)",
    ],
)
def test_exploits_of_cases_earn_nothing(code: str) -> None:
    assert score_code(sample(code, cases=CASES), TIGHT) == 0.0


def test_an_exit_after_the_right_output_is_no_fault() -> None:
    assert score_code(sample("print(2 * int(input()))\nexit()", cases=CASES), TIGHT) == 1.0


@pytest.mark.parametrize(("name", "text"), _sections("programs_and_tests.txt"))
def test_what_tests_can_do_with_a_program(name: str, text: str) -> None:
    code, tests = text.split("\n--\n")
    outcome = run_program(code, tests)
    assert outcome.passed, outcome
    assert not run_program(code, tests + "\nassert False").passed


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("class P:\n    def __eq__(self, o): return True\ndef f(): return P()", "assert f() == f()"),
        ("class P:\n    def __eq__(self, o): return True\ndef f(): return P()", "assert f() == 1"),
        ("class P:\n    def startswith(self, x): return True\ndef f(): return P()", "assert f().startswith('a')"),
        ("def f(x): return x.v", "class N:\n    v = 1\nassert f(N()) == 1"),
        ("def f(x):\n    x.pop()\n    return len(x)", "l = [1, 2]\nassert f(l) == 1\nassert l == [1]"),
    ],
)
def test_tests_that_cannot_be_run_from_outside_are_counted(code: str, tests: str) -> None:
    score = score_code(sample(f"```python\n{code}\n```", tests=tests), TIGHT)
    assert score == 0.0 and score.reason.startswith("the tests cannot be run from another process")


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def f(x): raise StopIteration", "assert all(map(lambda x: f(x) == x, [1, 2]))"),
        (
            "class C:\n    def __enter__(self): pass\n    def __exit__(self, *a): return True",
            "with C():\n    assert False",
        ),
        ("def f(g):\n    try: g(1)\n    except AssertionError: pass", "def g(x):\n    assert x == 2\nf(g)"),
        ("import os\ndef f(): os._exit(0)", "try:\n    f()\nexcept Exception:\n    pass"),
        ("import os\ndef f(): os._exit(0)", "try:\n    f()\nexcept:\n    pass"),
        (
            "class E:\n    def __eq__(self, o): return True\ndef f(): return E()",
            "try:\n    assert f() == f()\nexcept:\n    pass",
        ),
        ("class E:\n    def __add__(self, o): return 3\ndef f(): return E()", "assert f() + 1 == 3"),
        (
            "class E:\n    def __contains__(self, o): return True\n    def __iter__(self): return iter([])\nf = E",
            "assert 1 in f()",
        ),
        ("class B: pass", "class T(B):\n    pass\nassert T"),
    ],
)  # fmt: skip
def test_exploits_of_what_tests_do_with_a_program_earn_nothing(code: str, tests: str) -> None:
    outcome = run_program(code, tests, limits=TIGHT)
    assert not outcome.passed


@pytest.mark.parametrize("code", ["while True: pass", "import time\ntime.sleep(99)", "def f():\n    while True: pass"])
def test_programs_that_take_too_long_say_so(code: str) -> None:
    for task in ({"tests": "assert f() == 1"}, {"cases": CASES}):
        score = score_code(sample(f"{code}\nf()", **task), TIGHT)  # type: ignore[arg-type]
        assert score == 0.0 and score.reason == "over the time limit"


@pytest.mark.parametrize(
    "text", ["\0", "\ud800", "```python\n\0\n```", "x" * 10**7, "```" + " " * 10**6, "```\n" * 10**5, "(" * 10**5]
)
def test_no_text_of_a_program_raises_here(text: str) -> None:
    assert score_code(sample(text, tests=TESTS), TIGHT) == 0.0


@pytest.mark.skipif(not (DATA / "code").is_dir(), reason=f"no HumanEval under {DATA}")
def test_humaneval_references_pass_and_stubs_fail() -> None:
    with gzip.open(DATA / "code" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][::8]
    right, wrong = [], []
    for row in rows:
        tests = f"{row['test']}\ncheck({row['entry_point']})"
        right.append(sample(f"```python\n{row['prompt']}{row['canonical_solution']}\n```", tests=tests))
        wrong.append(sample(f"```python\n{row['prompt']}    return None\n```", tests=tests))
    reward = make_reward({"code": 1.0})
    assert reward.score(right) == [1.0] * len(rows)
    assert reward.score(wrong) == [0.0] * len(rows)
