"""The tasks of benchmarks of code: HumanEval and LiveCodeBench, run in the sandbox (reward/code.py)."""

import base64
import io
import json
import pickle
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.adapters import tasks as adapters
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.evaluation.benchmark_tasks import each_row
from nanoalign.evaluation.benchmarks import TaskReading

Raw = Mapping[str, Any]
PROGRAM = (
    "Write a Python program that solves the following problem. It reads its input from standard input and prints the "
    "answer to standard output. Give the whole program in one fenced code block (```python)."
)
METHOD = (
    "Solve the following problem in Python. Complete the class below, and give all of it in one fenced code block "
    "(```python)."
)
_STARS = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "builtins", "typing",
)  # fmt: skip
PRELUDE = "".join(f"from {name} import *\n" for name in _STARS) + "".join(
    f"import {name}\n" for name in _STARS if name not in ("builtins", "typing")
) + "sys.setrecursionlimit(50000)\n"  # fmt: skip
"""What LiveCodeBench's own runner imports for every program: answers leave it out, as on the sites that the problems
come from."""
_CALLS = """
def plain(value):
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value

for given, wanted in json.loads({cases!r}):
    assert plain(getattr(Solution(), {name!r})(*given)) == wanted
"""


def human_eval(reading: TaskReading) -> Iterable[Conversation]:
    """HumanEval's functions. What its prompt has before the function (imports, helpers) need not be repeated in an
    answer."""

    def row(raw: Raw) -> dict[str, Any]:
        made = adapters.human_eval(raw)[0]
        before = raw["prompt"].partition(f"def {raw['entry_point']}(")[0]
        return made | {"messages": made["messages"][:1], "domain": "humaneval",
                       "task": made["task"] | {"prelude": before}}  # fmt: skip

    return each_row(reading, row)


def live_code_bench(reading: TaskReading) -> Iterable[Conversation]:
    """LiveCodeBench's rows (code_generation_lite); a problem's difficulty is its domain. Public and hidden cases all
    have to pass: what a program prints, or what a method returns."""

    def row(raw: Raw) -> dict[str, Any]:
        cases = [*_cases(raw["public_test_cases"]), *_cases(raw["private_test_cases"])]
        starter = (raw.get("starter_code") or "").rstrip()
        text = f"{METHOD if starter else PROGRAM}\n\n{raw['question_content'].strip()}"
        if starter:
            text += f"\n\n```python\n{starter}\n```"
        return {
            "id": str(raw["question_id"]),
            "messages": [{"role": "user", "content": text}],
            "domain": str(raw.get("difficulty") or "livecodebench"),
            "task": {"kind": "code", "prelude": PRELUDE, **_checks(cases, raw)},
        }

    return each_row(reading, row)


def _checks(cases: list[dict[str, str]], raw: Raw) -> dict[str, Any]:
    if not cases:
        raise ValueError("no test cases")
    if all(case.get("testtype") == "stdin" for case in cases):
        return {"cases": [{"input": case["input"], "output": case["output"]} for case in cases], "numbers": True}
    metadata = raw["metadata"]
    name = (json.loads(metadata) if isinstance(metadata, str) else metadata)["func_name"]
    calls = [
        [[json.loads(line) for line in case["input"].split("\n") if line.strip()], json.loads(case["output"])]
        for case in cases
    ]
    return {"tests": _CALLS.format(cases=json.dumps(calls), name=name)}


class _TextOnly(pickle.Unpickler):
    """Loads what holds no classes: the hidden cases are a pickled text."""

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(f"hidden test cases that name {module}.{name}: only text is loaded")


def _cases(packed: Any) -> list[dict[str, str]]:
    """A list, as JSON, or as compressed and pickled JSON (LiveCodeBench's hidden cases)."""
    if not isinstance(packed, str):
        return list(packed)
    try:
        return list(json.loads(packed))
    except ValueError:
        try:
            text = _TextOnly(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load()
        except (zlib.error, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"hidden test cases: {error}") from None
    return list(json.loads(text))
