"""Programs judged by tests, in the sandbox.

``{"kind": "code", "tests": "assert f(1) == 2"}`` runs the tests in a separate process, which sees the program's global
names (reward/sandboxed/remote.py says what can pass between the two); ``{"kind": "code", "cases": [{"input": "...",
"output": "..."}]}`` runs the program once per case and compares what it prints, line by line, without trailing spaces;
with ``"numbers": true`` lines are also equal where they hold equal decimal numbers, as LiveCodeBench compares them.
``"prelude"`` is code that stands before the program.

Either way nothing that the program can reach knows the right answers or reports the verdict.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, InvalidOperation

from nanoalign.common.errors import DataError
from nanoalign.reward.base import Sample, Score
from nanoalign.reward.sandbox import Limits, run_program

_FENCED = re.compile(r"```[ \t]*(?:(?:python3?|py)[ \t]*)?\n(.*?)```", re.DOTALL | re.IGNORECASE)


def program(text: str) -> str:
    """The last fenced block of an answer, or all of it where none is fenced."""
    blocks = _FENCED.findall(text)
    return blocks[-1] if blocks else text


def score_code(sample: Sample, limits: Limits | None = None) -> Score:
    """1.0 where all tests pass, else 0.0; with a reason where the program took too long, or the tests do something
    impossible from another process. Raises DataError for a task without tests, RewardError where the sandbox cannot be
    built."""
    code, task = program(sample.answer.content), sample.task
    if not task.get("tests") and not task.get("cases"):
        raise DataError(f"a code task has 'tests' or 'cases', not {sorted(task)}")
    if not code.strip():
        return Score(0.0)
    code = task.get("prelude", "") + code
    if task.get("tests"):
        outcome = run_program(code, task["tests"], limits=limits)
        return Score(float(outcome.passed), outcome.reason)
    for case in task["cases"]:
        outcome = run_program(code, stdin=case["input"], limits=limits)
        if not outcome.passed or not _same(outcome.output, case["output"], bool(task.get("numbers"))):
            return Score(0.0, outcome.reason)
    return Score(1.0)


def score_programs(samples: Sequence[Sample], limits: Limits | None = None) -> list[Score]:
    """:func:`score_code` of each, as many at once as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(lambda sample: score_code(sample, limits), samples))


def _same(printed: str, wanted: str, numbers: bool) -> bool:
    lines, expected = _lines(printed), _lines(wanted)
    if lines == expected or not numbers or len(lines) != len(expected):
        return lines == expected
    return all(
        one.strip() == other.strip() or (_numbers(one) == _numbers(other) is not None)
        for one, other in zip(lines, expected)
    )


def _numbers(line: str) -> list[Decimal] | None:
    try:
        return [Decimal(part) for part in line.split()]
    except InvalidOperation:
        return None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
