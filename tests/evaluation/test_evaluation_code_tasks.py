"""HumanEval and LiveCodeBench: rows in their own layouts, scored in the sandbox."""

import base64
import gzip
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.conversation import Answer, Conversation
from nanoalign.evaluation.benchmarks import TaskReading, benchmark
from nanoalign.reward.base import Sample
from nanoalign.reward.compose import make_reward

FOLDER = Path("livecodebench/code_generation_lite")
STDIN = {
    "question_title": "Halves", "question_content": "Print half of each number.", "question_id": "1_A",
    "platform": "atcoder", "starter_code": "", "difficulty": "easy", "metadata": "{}",
    "public_test_cases": json.dumps([{"input": "2\n3\n", "output": "1\n1.5\n", "testtype": "stdin"}]),
}  # fmt: skip
METHOD = STDIN | {
    "question_content": "Return the pair of sums.", "question_id": "2_B", "difficulty": "hard",
    "starter_code": "class Solution:\n    def sums(self, a: List[int], b: int) -> List[int]:\n        ",
    "metadata": json.dumps({"func_name": "sums"}),
    "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "[3, 6]", "testtype": "functional"}]),
}  # fmt: skip


def hidden(cases: list[dict[str, str]]) -> str:
    """As the data set packs them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def tasks(name: str, data_root: Path | None = None, samples: int | None = None) -> list[Conversation]:
    entry, _ = benchmark(name)
    return list(entry.load()(TaskReading(name, entry, data_root=data_root)))[:samples]


def scores(task: Conversation, *answers: str) -> list[float]:
    samples = [Sample(task.messages, Answer(text), task.task or {}) for text in answers]
    return make_reward({benchmark("livecodebench")[0].reward: 1.0}).score(samples)


@pytest.fixture
def mirrored(tmp_path: Path) -> Path:
    (tmp_path / FOLDER).mkdir(parents=True)
    return tmp_path


def write(root: Path, *rows: dict[str, Any], file: str = "test.jsonl") -> None:
    (root / FOLDER / file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_live_code_bench_runs_programs_and_calls_methods(mirrored: Path) -> None:
    more = [{"input": "10\n", "output": "5.00\n", "testtype": "stdin"}]
    calls = [{"input": "[]\n0", "output": "[0, 0]", "testtype": "functional"}]
    write(mirrored, STDIN | {"private_test_cases": hidden(more)}, METHOD | {"private_test_cases": json.dumps(calls)})
    program, method = tasks("livecodebench", mirrored)
    assert (program.id, program.domain, method.id, method.domain) == ("1_A", "easy", "2_B", "hard")
    assert "standard input" in program.messages[0].content and "def sums" in method.messages[0].content
    right = "```python\nfor line in stdin:\n    print(float(line) / 2)\n```"
    only_public = "```python\nfor line in sys.stdin:\n    print({2: 1, 3: 1.5}.get(int(line)))\n```"
    assert scores(program, right, only_public, "```python\nprint(1)\n```", "", "no code here") == [1, 0, 0, 0, 0]
    solved = "class Solution:\n    def sums(self, a: List[int], b: int) -> List[int]:\n        return {}"
    right, wrong, raises = (
        f"Here:\n```python\n{solved.format(body)}\n```" for body in ("sum(a), sum(a) + b", "[3, 6]", "a[0]")
    )
    assert scores(method, right, wrong, raises, "```python\nx = 1\n```") == [1, 0, 0, 0], "a tuple counts as a list"


def test_releases_of_live_code_bench_are_files(mirrored: Path) -> None:
    row = STDIN | {"private_test_cases": "[]"}
    write(mirrored, row)
    write(mirrored, row | {"question_id": "6_A"}, file="test6.jsonl")
    assert [task.id for task in tasks("livecodebench", mirrored)] == ["1_A", "6_A"]
    assert [task.id for task in tasks("livecodebench-v6", mirrored)] == ["6_A"]
    with pytest.raises(DataError, match="hf download livecodebench/code_generation_lite"):
        tasks("livecodebench-v5", mirrored)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.getenv, ("HOME",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()}, "only text is loaded"),
        ({"private_test_cases": "%%"}, "not a row of it"),
        ({"private_test_cases": "[]", "public_test_cases": "[]"}, "no test cases"),
    ],
)
def test_damaged_rows_are_named_and_pickles_hold_text_alone(mirrored: Path, change: dict, said: str) -> None:
    write(mirrored, STDIN | change)
    with pytest.raises(DataError, match=said):
        tasks("livecodebench", mirrored)


def test_human_eval_needs_no_repeated_imports(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    row = {
        "task_id": "HumanEval/9", "entry_point": "most", "canonical_solution": "    return max(xs)\n",
        "prompt": (
            "from typing import List\n\ndef twice(x):\n    return 2 * x\n\n"
            "def most(xs: List[int]) -> int:\n    'Twice the largest.'\n"
        ),
        "test": "def check(candidate):\n    assert candidate([1, 3]) == twice(3)\n",
    }  # fmt: skip
    with gzip.open(tmp_path / "code" / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(row))
    [task] = tasks("humaneval", tmp_path)
    assert task.messages[-1].role == "user" and task.id == "HumanEval/9"
    right = "```python\ndef most(xs: List[int]) -> int:\n    return twice(max(xs))\n```"
    assert scores(task, right, right.replace("twice", ""), "") == [1, 0, 0]
