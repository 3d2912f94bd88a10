"""The tasks of benchmarks whose rows are published: mathematics, GPQA, IFEval, BFCL."""

import random
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.adapters import tasks as adapters
from nanoalign.data_recipes.adapters import tool_use
from nanoalign.data_recipes.adapters.parts import normal_tools
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.readers import BadRow, read_rows
from nanoalign.evaluation.benchmark_data import conversation, files_of, missing, rows
from nanoalign.evaluation.benchmarks import TaskReading

Raw = Mapping[str, Any]
BOXED = "Solve the following problem. Reason step by step, and put your final answer within \\boxed{}."
CHOICE = (
    "Answer the following multiple-choice question. Reason step by step, and end with a line of the form "
    "'Answer: $LETTER', where LETTER is one of A, B, C and D."
)


def mathematics(reading: TaskReading) -> Iterable[Conversation]:
    """``problem`` and ``answer``; MATH's ``subject`` is its domain."""

    def row(raw: Raw) -> dict[str, Any]:
        return {
            "id": str(raw.get("unique_id") or raw.get("id", "")),
            "messages": [{"role": "user", "content": f"{BOXED}\n\n{raw['problem'].strip()}"}],
            "domain": str(raw.get("subject") or raw.get("type") or reading.name),
            "task": {"kind": "math", "answer": str(raw["answer"]).strip()},
        }

    return each_row(reading, row)


def gpqa(reading: TaskReading) -> Iterable[Conversation]:
    """GPQA's own columns; the order of a question's options follows from its record id alone."""

    def row(raw: Raw) -> dict[str, Any]:
        right = raw["Correct Answer"].strip()
        options = [right, *(raw[f"Incorrect Answer {number}"].strip() for number in (1, 2, 3))]
        name = str(raw["Record ID"])
        random.Random(f"gpqa {name}").shuffle(options)
        listed = "\n".join(f"{letter}) {option}" for letter, option in zip("ABCD", options))
        return {
            "id": name,
            "messages": [{"role": "user", "content": f"{CHOICE}\n\n{raw['Question'].strip()}\n\n{listed}"}],
            "domain": str(raw.get("High-level domain") or "gpqa"),
            "task": {"kind": "math", "answer": "ABCD"[options.index(right)]},
        }

    return each_row(reading, row)


def ifeval(reading: TaskReading) -> Iterable[Conversation]:
    """IFEval's prompts as they are."""
    return each_row(reading, lambda raw: adapters.ifeval(raw)[0] | {"domain": "ifeval"})


def each_row(reading: TaskReading, row: Callable[[Raw], dict[str, Any]]) -> Iterable[Conversation]:
    """A task a row. Raises DataError with the place of a row of another layout."""
    for number, (origin, raw) in enumerate(rows(reading)):
        try:
            made = row(raw)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{origin}: benchmark {reading.name}: not a row of it ({error!r})") from None
        yield conversation(reading, origin, {**made, "id": made["id"] or str(number)})


BFCL_CATEGORIES = (
    "simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance", "live_simple", "live_multiple",
    "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance",
)  # fmt: skip
"""Single-turn categories in Python. Those in Java and JavaScript compare source text of those languages."""


def bfcl(reading: TaskReading) -> Iterable[Conversation]:
    """BFCL's single-turn categories, each a domain, those whose files are there. Possible answers are in
    ``possible_answer/``, in a file of the same name.

    Raises DataError where there is no file of these, or a row has no possible answer.
    """
    files = {category_of(file): file for file in files_of(reading.benchmark, reading.data_root)}
    found = [(category, files[category]) for category in BFCL_CATEGORIES if category in files]
    if not found:
        raise DataError(missing(reading.name, reading.benchmark, reading.data_root) or f"benchmark {reading.name}: "
                        f"of the files {', '.join(map(str, files.values()))} none is of its categories")  # fmt: skip
    for category, file in found:
        beside = file.parent / "possible_answer" / file.name
        possible = {row["id"]: row["ground_truth"] for _, row in read_rows(beside)} if beside.exists() else {}
        for origin, raw in read_rows(file):
            if isinstance(raw, BadRow) or (not category.endswith("relevance") and raw["id"] not in possible):
                raise DataError(f"{origin}: benchmark {reading.name}: {raw if isinstance(raw, BadRow) else ''}"
                                f"no possible answer in {beside}")  # fmt: skip
            task = {
                "kind": "bfcl", "category": category, "functions": raw["function"],
                "possible": possible.get(raw["id"], []),
            }  # fmt: skip
            messages = tool_use.one_speaker_at_a_time(raw["question"][0])
            row = {"id": raw["id"], "messages": messages, "tools": normal_tools(raw["function"]), "task": task}
            yield conversation(reading, origin, row | {"domain": category})


def category_of(file: Path) -> str:
    """``live_simple`` of ``BFCL_v4_live_simple.json``."""
    return re.sub(r"BFCL_v\d+_", "", file.stem)
