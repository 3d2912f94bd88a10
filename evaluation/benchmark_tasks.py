"""The tasks of benchmarks whose rows are published: mathematics, GPQA, IFEval, BFCL."""

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.adapters import tasks as adapters
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.evaluation.benchmark_data import conversation, rows
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
