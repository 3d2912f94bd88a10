"""reasoning-gym tasks (questions and verifiers are the library's) with working of our own."""

import re
from functools import lru_cache
from random import Random
from typing import Any

from nanoalign.data_recipes.miniature.problems import Exercise, running_steps

DATASETS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 3, "max_terms": 7, "min_digits": 1, "max_digits": 2},
    "gcd": {"min_value": 4, "max_value": 99},
    "leg_counting": {"min_animals": 2, "max_animals": 4, "min_instances": 1, "max_instances": 9},
}
"""Data set name to the settings it is generated with."""
_SIZE = 1_000_000


@lru_cache
def _dataset(name: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=0, size=_SIZE, **DATASETS[name])


@lru_cache
def _legs() -> dict[str, int]:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    return dict(ANIMALS)


def _working(name: str, question: str) -> list[str]:
    if name == "chain_sum":
        terms = re.findall(r"[+-]? ?\d+", question.split(":", 1)[-1].replace("Calculate", ""))
        numbers = [int(term.replace(" ", "")) for term in terms]
        return running_steps(numbers[0], numbers[1:])[0]
    if name == "gcd":
        numbers = sorted(map(int, re.findall(r"\d+", question)), reverse=True)
        steps, divisor = [], numbers[0]
        for number in numbers[1:]:
            larger, smaller = max(divisor, number), min(divisor, number)
            while smaller:
                steps.append(f"{larger}%{smaller}={larger % smaller}")
                larger, smaller = smaller, larger % smaller
            divisor = larger
        return steps
    counted = [
        (int(count), animal)
        for count, animal in re.findall(r"(\d+) ([a-z ]+?)s?(?:,|\?)", question.split("if you have")[-1])
    ]
    legs = [(count, _legs()[animal if animal in _legs() else animal + "s"]) for count, animal in counted]
    totals = [count * each for count, each in legs]
    return [f"{count}x{each}={count * each}" for count, each in legs] + running_steps(totals[0], totals[1:])[0]


def logic(rng: Random) -> Exercise:
    """A task of one of :data:`DATASETS`; verified by the library itself (``task.kind`` reasoning_gym)."""
    name = rng.choice(list(DATASETS))
    entry = _dataset(name)[rng.randrange(_SIZE)]
    answer = str(entry["answer"])
    task = {
        "kind": "reasoning_gym",
        "dataset": name,
        "entry": {"question": entry["question"], "answer": answer, "metadata": {}},
    }
    return Exercise(entry["question"].strip(), tuple(_working(name, entry["question"])), answer, answer, task)
