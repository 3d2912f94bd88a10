"""Procedural reasoning problems with the working that solves them.

Each generator takes a ``random.Random`` and returns a :class:`Exercise` whose ``steps`` have the length that the
problem needs: that is what makes accuracy a curve over the thinking budget. All text is ASCII and small numbers, so
that a model of a few million parameters can learn it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

NAMES = ("Ana", "Bo", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Kim", "Leo", "Mia")
THINGS = ("apples", "books", "coins", "cards", "eggs", "pens", "stamps", "shells")


@dataclass(frozen=True)
class Exercise:
    """A question, the lines of working that lead to the answer, and the answer as a user would read it."""

    question: str
    steps: tuple[str, ...]
    answer: str
    reply: str
    task: dict[str, Any] = field(hash=False)
    language: str = "en"


def _number(question: str, steps: list[str], value: int, reply: str, language: str = "en") -> Exercise:
    return Exercise(
        question, tuple(steps), str(value), reply.format(value), {"kind": "math", "answer": str(value)}, language
    )


def running_steps(start: int, changes: list[int]) -> tuple[list[str], int]:
    """The lines ``12+7=19`` of a running total, and the total."""
    steps, total = [], start
    for change in changes:
        sign = "+" if change >= 0 else "-"
        steps.append(f"{total}{sign}{abs(change)}={total + change}")
        total += change
    return steps, total


def sums(rng: Random) -> Exercise:
    numbers = [rng.randint(1, 60) for _ in range(rng.randint(2, 9))]
    steps, total = running_steps(numbers[0], numbers[1:])
    if rng.random() < 0.5:
        question = rng.choice(("What is {}?", "Compute {}.", "Work out {}.")).format("+".join(map(str, numbers)))
    else:
        question = rng.choice(("Add these numbers: {}.", "What is the sum of {}?")).format(", ".join(map(str, numbers)))
    return _number(question, steps, total, "The answer is {}.")


def products(rng: Random) -> Exercise:
    big, small = rng.randint(12, 999), rng.randint(3, 9)
    parts = [int(digit) * 10**place for place, digit in enumerate(reversed(str(big))) if digit != "0"][::-1]
    steps = [f"{part}x{small}={part * small}" for part in parts]
    if len(parts) > 1:
        steps += running_steps(parts[0] * small, [part * small for part in parts[1:]])[0]
    question = rng.choice(("What is {}x{}?", "Multiply {} by {}.", "Compute {}x{}.")).format(big, small)
    return _number(question, steps, big * small, "The answer is {}.")


GAINS = ("buys {} more", "finds {}", "gets {} as a gift", "wins {}")
LOSSES = ("gives away {}", "loses {}", "sells {}", "drops {}")


def stories(rng: Random) -> Exercise:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    start = total = rng.randint(5, 60)
    text, changes = [f"{name} has {start} {thing}."], []
    for _ in range(rng.randint(2, 7)):
        amount = rng.randint(1, 40)
        if total > amount and rng.random() < 0.45:
            text.append(f"{name} {rng.choice(LOSSES).format(amount)}.")
            amount = -amount
        else:
            text.append(f"{name} {rng.choice(GAINS).format(amount)}.")
        changes.append(amount)
        total += amount
    steps, total = running_steps(start, changes)
    return _number(
        f"{' '.join(text)} How many {thing} does {name} have now?", steps, total, f"{name} has {{}} {thing}."
    )


def bills(rng: Random) -> Exercise:
    things = rng.sample(THINGS, rng.randint(2, 4))
    prices, counts = [rng.randint(2, 30) for _ in things], [rng.randint(2, 9) for _ in things]
    costs = [price * count for price, count in zip(prices, counts, strict=True)]
    steps = [f"{count}x{price}={cost}" for count, price, cost in zip(counts, prices, costs, strict=True)]
    more, total = running_steps(costs[0], costs[1:])
    listing = ", ".join(f"{thing} cost {price}" for thing, price in zip(things, prices, strict=True))
    wanted = " and ".join(f"{count} {thing}" for thing, count in zip(things, counts, strict=True))
    return _number(f"Prices: {listing}. What do {wanted} cost?", steps + more, total, "They cost {}.")


def programs(rng: Random) -> Exercise:
    """Straight-line programs: the working is the state after each line."""
    names = rng.sample("abcdefg", rng.randint(2, 3))
    state = {name: rng.randint(1, 30) for name in names}
    lines = [f"{name} = {value}" for name, value in state.items()]
    steps: list[str] = []
    for _ in range(rng.randint(2, 7)):
        target, left = rng.choice(names), rng.choice(names)
        symbol = rng.choice("+-+-*")
        right = str(rng.randint(2, 5)) if symbol == "*" else rng.choice([str(rng.randint(1, 20)), rng.choice(names)])
        amount = state[right] if right in state else int(right)
        result = {"+": state[left] + amount, "-": state[left] - amount, "*": state[left] * amount}[symbol]
        if not -99 <= result <= 999:
            continue
        lines.append(f"{target} = {left} {symbol} {right}")
        steps.append(f"{target}={state[left]}{symbol}{amount}={result}")
        state[target] = result
    shown = rng.choice(names)
    question = "What does this program print?\n" + "\n".join([*lines, f"print({shown})"])
    return _number(question, [*steps, f"{shown}={state[shown]}"], state[shown], "It prints {}.")


def loops(rng: Random) -> Exercise:
    name, value = rng.choice("xyzn"), rng.randint(0, 20)
    times, step, symbol = rng.randint(2, 8), rng.randint(2, 12), rng.choice("+-")
    question = (
        f"What does this program print?\n{name} = {value}\nfor i in range({times}):\n"
        f"    {name} = {name} {symbol} {step}\nprint({name})"
    )
    steps = [f"{name}={value}"]
    for _ in range(times):
        value = value + step if symbol == "+" else value - step
        steps.append(f"{name}={value}")
    return _number(question, steps, value, "It prints {}.")


LANGUAGES = {
    "de": (("Was ist {}?", "Berechne {}."), "Die Antwort ist {}."),
    "es": (("¿Cuánto es {}?", "Calcula {}."), "La respuesta es {}."),
    "fr": (("Combien font {} ?", "Calcule {}."), "La réponse est {}."),
    "it": (("Quanto fa {}?", "Calcola {}."), "La risposta è {}."),
    "ja": (("{} はいくつですか？", "{} を計算してください。"), "答えは {} です。"),
}


def translated(rng: Random) -> Exercise:
    """Sums and products asked and answered in the five languages of the paper's multilingual data."""
    language = rng.choice(list(LANGUAGES))
    questions, reply = LANGUAGES[language]
    if rng.random() < 0.6:
        numbers = [rng.randint(1, 60) for _ in range(rng.randint(2, 7))]
        steps, total = running_steps(numbers[0], numbers[1:])
        return _number(rng.choice(questions).format("+".join(map(str, numbers))), steps, total, reply, language)
    problem = products(rng)
    terms = problem.question.removeprefix("What is ").removeprefix("Multiply ").removeprefix("Compute ").rstrip("?.")
    question = rng.choice(questions).format(terms.replace(" by ", "x"))
    return _number(question, list(problem.steps), int(problem.answer), reply, language)


def tables(rng: Random) -> Exercise:
    """Long context: many facts, and a question across a few of them (the paper's stage 3 asks across documents)."""
    names = rng.sample(NAMES, rng.randint(8, len(NAMES)))
    facts = [(name, thing, rng.randint(1, 60)) for name in names for thing in rng.sample(THINGS, 2)]
    rng.shuffle(facts)
    asked = rng.sample(facts, rng.randint(2, 4))
    steps = [f"{name} {count} {thing}" for name, thing, count in asked]
    more, total = running_steps(asked[0][2], [count for _, _, count in asked[1:]])
    listing = "\n".join(f"{name} has {count} {thing}." for name, thing, count in facts)
    wanted = " plus ".join(f"{name}'s {thing}" for name, thing, _ in asked)
    return _number(f"{listing}\nHow many are {wanted}?", steps + more, total, "Together {}.")


Generator = Callable[[Random], Exercise]
MATH: tuple[Generator, ...] = (sums, products, stories, bills)
CODING: tuple[Generator, ...] = (programs, loops)
MULTILINGUAL: tuple[Generator, ...] = (translated,)
LONG: tuple[Generator, ...] = (tables,)
