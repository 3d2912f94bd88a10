"""Programs judged by tests, in the sandbox.

``{"kind": "code", "tests": "assert f(1) == 2"}`` runs the tests after the program in its namespace;
``{"kind": "code", "cases": [{"input": "...", "output": "..."}]}`` runs the program once a case and compares what it
prints, line by line, without trailing spaces.
"""

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common.errors import DataError
from reward.base import Sample
from reward.sandbox import Limits, run_program

_FENCED = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


def program(text: str) -> str:
    """The last fenced block of an answer, or all of it where none is fenced."""
    blocks = _FENCED.findall(text)
    return blocks[-1] if blocks else text


def score_code(sample: Sample, limits: Limits | None = None) -> float:
    """1.0 where all tests pass, else 0.0. Raises DataError for a task without tests, RewardError where the sandbox
    cannot be built."""
    code, task = program(sample.answer.content), sample.task
    if not task.get("tests") and not task.get("cases"):
        raise DataError(f"a code task has 'tests' or 'cases', not {sorted(task)}")
    if not code.strip():
        return 0.0
    if task.get("tests"):
        return float(run_program(code, task["tests"], limits=limits).passed)
    return float(all(_passes(code, case, limits) for case in task["cases"]))


def score_programs(samples: Sequence[Sample], limits: Limits | None = None) -> list[float]:
    """:func:`score_code` of each, as many at once as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(lambda sample: score_code(sample, limits), samples))


def _passes(code: str, case: Mapping[str, Any], limits: Limits | None) -> bool:
    outcome = run_program(code, stdin=case["input"], limits=limits)
    return outcome.passed and _lines(outcome.output) == _lines(case["output"])


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
