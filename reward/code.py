"""Programs judged by tests, in the sandbox.

``{"kind": "code", "tests": "assert f(1) == 2"}`` runs the tests after the program in its namespace;
``{"kind": "code", "cases": [{"input": "...", "output": "..."}]}`` runs the program once a case and compares what it
prints, line by line, without trailing spaces.

Outputs are compared outside of the sandbox. Tests run beside the program, which could forge their verdict: it earns
nothing if it reaches for the frames that call it, or makes objects that are equal to anything (see :func:`forges`).
That closes the roads that are known; where outputs can be compared, prefer ``cases``.
"""

import ast
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


_FRAMES = frozenset(
    ["_getframe", "_current_frames", "f_back", "f_locals", "f_globals", "tb_frame", "gi_frame", "cr_frame", "_exit"]
)
_OBSERVERS = frozenset(["inspect", "gc", "ctypes", "faulthandler", "_ctypes"])


def forges(code: str) -> bool:
    """Whether a program reaches for its callers' frames, or defines an equality that does not look at the other side.
    False for what does not parse: it fails by itself."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(_forges(node) for node in ast.walk(tree))


def _forges(node: ast.AST) -> bool:
    match node:
        case ast.Import(names=names):
            return any(alias.name.split(".")[0] in _OBSERVERS for alias in names)
        case ast.ImportFrom(module=module, names=names):
            return (module or "").split(".")[0] in _OBSERVERS or any(alias.name in _FRAMES for alias in names)
        case ast.Attribute(attr=name):
            return name in _FRAMES
        case ast.Constant(value=str() as text):
            return text in _FRAMES or text == "__eq__"
        case ast.Assign(targets=[ast.Name(id="__eq__")], value=ast.Lambda(args=arguments, body=body)):
            return not _names(body, arguments.args[-1:])
        case ast.FunctionDef(name="__eq__", args=arguments, body=body):
            return not any(_names(statement, arguments.args[-1:]) for statement in body)
    return False


def _names(node: ast.AST, arguments: Sequence[ast.arg]) -> bool:
    wanted = {argument.arg for argument in arguments}
    return any(isinstance(each, ast.Name) and each.id in wanted for each in ast.walk(node))


def score_code(sample: Sample, limits: Limits | None = None) -> float:
    """1.0 where all tests pass, else 0.0. Raises DataError for a task without tests, RewardError where the sandbox
    cannot be built."""
    code, task = program(sample.answer.content), sample.task
    if not task.get("tests") and not task.get("cases"):
        raise DataError(f"a code task has 'tests' or 'cases', not {sorted(task)}")
    if not code.strip() or forges(code):
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
