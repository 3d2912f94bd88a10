"""reasoning-gym's tasks with the working that solves them: ``worked:NAME``.

The questions and answers are reasoning-gym's own, at sizes that a model of 135M parameters can learn; the working is
written here, in steps short enough to be one thought each. Numbers are written as plain digits: SmolLM2's tokenizer
splits them one by one. ``worked:hasty`` mixes all families, taught by one who stops thinking early and works on in the
answer, as many a teacher's visible solutions do: what stage 3 unteaches.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.miniature.problems import running_steps

Entry = Mapping[str, Any]
"""A task as reasoning-gym gives it: question, answer and metadata."""


@dataclass(frozen=True)
class Family:
    """A data set of reasoning-gym, and how its tasks are worked."""

    dataset: str
    steps: Callable[[Entry], list[str] | None]
    """The lines of working; None where a task is of no form that is worked here."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of reasoning-gym's generator."""
    kind: str = "math"
    """The verifier: math for numbers, exact for other answers."""


def chain_sum(entry: Entry) -> list[str]:
    first, *rest = entry["metadata"]["expression"].split()
    changes = [int(number) * (1 if sign == "+" else -1) for sign, number in zip(rest[::2], rest[1::2], strict=True)]
    return running_steps(int(first), changes)[0]


def products(entry: Entry) -> list[str]:
    left, right = map(int, entry["metadata"]["expression"].split(" * "))
    parts, steps = _places(right), []
    for part in parts:
        pieces = [piece * part for piece in _places(left)]
        terms = ", ".join(f"{piece}*{part}={piece * part}" for piece in _places(left))
        more, _ = running_steps(pieces[0], pieces[1:])
        steps.append(", ".join([terms, *more]))
    return steps + running_steps(left * parts[0], [left * part for part in parts[1:]])[0]


def _places(number: int) -> list[int]:
    """46 as 40 and 6."""
    digits = str(number)
    return [int(digit) * 10 ** (len(digits) - place) for place, digit in enumerate(digits, 1) if digit != "0"] or [0]


def leg_counting(entry: Entry) -> list[str]:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    total, steps = 0, []
    for animal, count in entry["metadata"]["animals"].items():
        legs = count * ANIMALS[animal]
        steps.append(f"{animal}: {count}*{ANIMALS[animal]}={legs}, {total}+{legs}={total + legs}")
        total += legs
    return steps


def letter_counting(entry: Entry) -> list[str]:
    letter, total, steps = entry["metadata"]["target_letter"], 0, []
    for word in entry["metadata"]["span"]:
        count = word.lower().count(letter)
        total += count
        steps.append(f"{word}: {count}, {total}")
    return steps


def gcd(entry: Entry) -> list[str]:
    small, large = sorted(entry["metadata"]["numbers"])
    steps = []
    while small:
        times, left = divmod(large, small)
        steps.append(f"{large}-{times}*{small}={large}-{times * small}={left}")
        large, small = small, left
    return steps


_EQUATION = re.compile(
    r"(?:(?P<factor>\d+)\*)?(?P<name>[a-z]) (?P<sign>[+-]) (?P<term>\d+) = (?P<right>-?\d+)"
    r"|(?P<first>\d+) (?P<minus>[+-]) (?:(?P<factor2>\d+)\*)?(?P<name2>[a-z]) = (?P<right2>-?\d+)"
)


def simple_equations(entry: Entry) -> list[str] | None:
    """Of the forms ``a*x + b = c`` and ``b - a*x = c``."""
    found = _EQUATION.fullmatch(entry["metadata"]["equation"])
    if found is None:
        return None
    part = found.groupdict()
    if part["name"]:
        factor, name, right = int(part["factor"] or 1), part["name"], int(part["right"])
        term = int(part["term"]) * (1 if part["sign"] == "+" else -1)
    else:
        factor, name, right = int(part["factor2"] or 1), part["name2"], int(part["right2"])
        factor, term = factor * (1 if part["minus"] == "+" else -1), int(part["first"])
    alone = right - term
    steps = [f"{factor}*{name}={right}{'-' if term >= 0 else '+'}{abs(term)}={alone}"]
    return [*steps, f"{name}={alone}/{factor}={alone // factor}"] if factor != 1 else steps


def prime_factorization(entry: Entry) -> list[str]:
    left, steps = entry["metadata"]["number"], []
    for factor in entry["metadata"]["factors"][:-1]:
        steps.append(f"{left}/{factor}={left // factor}")
        left //= factor
    return [*steps, f"{left} is prime"]


def spell_backward(entry: Entry) -> list[str]:
    word = entry["metadata"]["word"]
    return [" ".join(word), " ".join(reversed(word))]


def gsm_symbolic(entry: Entry) -> list[str]:
    """The working that reasoning-gym gives itself."""
    lines = entry["metadata"]["answer_cot"].splitlines()
    return [line for line in lines if line.strip() and not line.startswith("####")]


FAMILIES: dict[str, Family] = {
    "chain_sum": Family(
        "chain_sum", chain_sum,
        {"min_terms": 3, "max_terms": 8, "min_digits": 1, "max_digits": 2, "allow_negation": False},
    ),
    "products": Family("products", products, {"min_digits": 1, "max_digits": 2}),
    "leg_counting": Family("leg_counting", leg_counting, {"min_animals": 2, "max_animals": 6, "max_instances": 9}),
    "letter_counting": Family("letter_counting", letter_counting, {"min_words": 4, "max_words": 10}),
    "gcd": Family("gcd", gcd, {"max_value": 200}),
    "simple_equations": Family("simple_equations", simple_equations, {"max_terms": 2, "max_value": 20}),
    "prime_factorization": Family("prime_factorization", prime_factorization, {"max_value": 1000}, "exact"),
    "spell_backward": Family("spell_backward", spell_backward, {"min_word_len": 4, "max_word_len": 8}, "exact"),
    "gsm_symbolic": Family("gsm_symbolic", gsm_symbolic),
}  # fmt: skip
HASTY = "hasty"


def worked(family: Family, entry: Entry) -> Conversation | None:
    """All the working in the reasoning, a short answer after it; None for a task that is not worked here."""
    steps = family.steps(entry)
    if not steps:
        return None
    answer = str(entry["answer"])
    messages = (
        Message("user", entry["question"].strip()),
        Message("assistant", f"The answer is {answer}.", reasoning="\n".join(steps)),
    )
    return Conversation(messages, domain=family.dataset, task={"kind": family.kind, "answer": answer})


def hastily(solved: Sequence[Conversation], rng: Random) -> list[Conversation]:
    """The same tasks in any order, each with its thinking ended early and the rest of the working in the answer."""
    made = []
    for each in rng.sample(solved, len(solved)):
        question, answer = each.messages
        steps = (answer.reasoning or "").splitlines()
        thought = rng.randrange(len(steps))
        said = Message(
            "assistant", "\n".join([*steps[thought:], answer.content]),
            reasoning="\n".join(steps[:thought]) or "Let me see.",
        )  # fmt: skip
        made.append(Conversation((question, said), domain=each.domain, task=each.task))
    return made
