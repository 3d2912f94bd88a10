"""RULER's tasks (arXiv 2404.06654), made here for any length and any tokenizer: the thirteen kinds of its generator.

The kinds, their sizes (needles, hops, frequencies), the room for an answer and the metrics are the paper's and its
generator's; wording, words and texts are our own, and nothing of an answer is written for the model, which here comes
after its thinking. Figures are therefore comparable between models measured with these tasks, and close to, not equal
to, published ones. A task is a function of (kind, length, seed, number, tokenizer, texts).

A prompt is made as long as fits in whole sentences, words or documents, and filled to its exact length with bland ones.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from nanoalign.common.errors import ConfigError
from nanoalign.evaluation.ruler_texts import NOISE, Texts, identifier, key_words, number, two_words

Prompt = Callable[[int, str], str]
"""A task's text with this many units (sentences, words, documents) of context, and a filler after them."""
Made = tuple[Prompt, tuple[str, ...]]
"""A task of any size, and its answers."""
Count = Callable[[str], int]
"""Tokens of the whole prompt, chat format included, around a user's text."""


@dataclass(frozen=True)
class Kind:
    """A kind of task."""

    make: Callable[[Texts, random.Random], Made]
    answer_tokens: int
    """Room for an answer without thinking, as in the paper's generator."""
    match: Literal["all", "part"] = "all"
    """Scored by the share of the answers that are found, or by whether one of them is."""


@dataclass(frozen=True)
class RulerTask:
    """A task of exactly ``tokens`` tokens, its answer's room included."""

    kind: str
    id: str
    text: str
    answers: tuple[str, ...]
    match: Literal["all", "part"]
    prompt_tokens: int
    tokens: int
    texts: str
    """Where the texts of its context come from."""


def ruler_task(
    kind: str, length: int, number: int, count: Count, texts: Texts, *, seed: int = 0, room: int | None = None
) -> RulerTask:
    """Task ``number`` of a kind: its prompt's tokens and ``room`` (None: the kind's own) are ``length`` together.

    Raises:
        ConfigError: ``length`` does not hold the smallest task of this kind.
    """
    chosen = KINDS[kind]
    room = chosen.answer_tokens if room is None else room
    generator = random.Random(f"{kind} {seed} {number}")
    prompt, answers = chosen.make(texts, generator)
    text, tokens = fit(prompt, count, length - room, f"ruler {kind} at {length:,} tokens, {room:,} for the answer")
    source = texts.name_for(kind)
    return RulerTask(kind, f"{kind}-{length}-{number}", text, answers, chosen.match, tokens, tokens + room, source)


def score(answer: str, answers: tuple[str, ...] | list[str], match: str) -> float:
    """RULER's metrics, in any case: ``all``: the share of the answers that the text contains; ``part``: 1 where it
    contains one of them."""
    text = answer.lower()
    found = [each.lower() in text for each in answers]
    return float(any(found)) if match == "part" else sum(found) / len(found)


def fit(prompt: Prompt, count: Count, target: int, what: str = "the task") -> tuple[str, int]:
    """The text of exactly ``target`` tokens, or one less where the tokenizer allows no other, and its tokens.

    A few counts suffice: tokens grow nearly linearly with units.

    Raises:
        ConfigError: there is no room for a single unit.
    """
    low, high = 1, None
    least = at_low = count(prompt(low, ""))
    if least > target:
        raise ConfigError(f"{what}: the smallest takes {least:,} tokens of a prompt's {target:,}; ask for more")
    slope, at_high = 0.0, 0
    guess = 9
    for _ in range(60):
        tokens = count(prompt(guess, ""))
        slope = (tokens - least) / (guess - 1) if tokens > least else slope
        if tokens <= target:
            low, at_low = guess, tokens
        else:
            high, at_high = guess, tokens
        if target - at_low <= max(48.0, slope) or (high is not None and high - low <= 1):
            break
        local = (at_high - at_low) / (high - low) if high is not None else max(slope, 0.01)
        guess = low + max(1, int((target - at_low) / local))
        if high is not None:
            guess = min(guess, high - 1)
    return _filled(lambda filler: prompt(low, filler), count, target, at_low)


_ENDS = (" .", ".", "7", " a", "!", " 7", " -", ",", " so", " e")
"""A filler's last marks: some of them hit the number of tokens that its words jump over."""


def _filled(prompt: Callable[[str], str], count: Count, target: int, tokens: int) -> tuple[str, int]:
    """Fills a text up with the words of bland sentences, and with marks after them."""
    below, above, each = {0: tokens}, 2 * (target - tokens) + 2, 1.3
    while (most := max(below)) < above - 1 and below[most] != target:
        taken = min(above - 1, most + max(1, int((target - below[most]) / each)))
        found = count(prompt(_bland(taken)))
        each = max(0.5, (found - tokens) / taken)
        if found <= target:
            below[taken] = found
        else:
            above = taken
    best = (prompt(_bland(most)), below[most])
    for words in (most, most - 1, most - 2):
        if words < 0 or best[1] == target:
            break
        missing = target - below.setdefault(words, count(prompt(_bland(words))))
        for mark, times in product(_ENDS, sorted({missing, missing - 1, missing + 1, missing // 2} - {-1, 0})):
            text = prompt(_bland(words) + mark * times)
            found = count(text)
            if best[1] < found <= target:
                best = (text, found)
            if found == target:
                break
    return best


_WORDS = " ".join(NOISE).split()


def _bland(number: int) -> str:
    return "".join(f" {_WORDS[place % len(_WORDS)]}" for place in range(number))


def _hay(sentences: Callable[[int], str], needles: list[str], generator: random.Random, gap: str = " ") -> Prompt:
    """Needles at random depths, in random order, between sentences."""
    depths = sorted(generator.random() for _ in needles)
    needles = generator.sample(needles, len(needles))

    def context(units: int, filler: str) -> str:
        parts = [sentences(place) for place in range(units)]
        for depth, needle in reversed(list(zip(depths, needles, strict=True))):
            parts.insert(int(depth * (units + 1)), needle)
        return gap.join(parts) + filler

    return context


VALUES: Mapping[str, Callable[[random.Random], str]] = {"number": number, "uuid": identifier, "word": two_words}
NAMES = {"number": "number", "uuid": "identifier", "word": "word"}


def niah(
    hay: Literal["noise", "essay", "needle"], *, key: str = "word", value: str = "number", keys: int = 1,
    values: int = 1, queries: int = 1,
) -> Callable[[Texts, random.Random], Made]:  # fmt: skip
    """Needles in a haystack: ``keys`` keys in all, ``values`` values of each, ``queries`` keys asked for. In a haystack
    of needles all other sentences are needles too."""

    def make(texts: Texts, generator: random.Random) -> Made:
        drawn: dict[str, list[str]] = {}
        while len(drawn) < max(keys, queries):
            drawn[VALUES[key](generator)] = [VALUES[value](generator) for _ in range(values)]
        asked = list(drawn)[:queries]
        needles = [f"The secret {NAMES[value]} of {one} is {each}." for one, many in drawn.items() for each in many]
        straw = _straw(hay, key, value, set(drawn), texts, generator)
        context = _hay(straw, needles, generator, "\n" if hay == "needle" else " ")
        one = values == queries == 1
        plural = NAMES[value] if one else f"{NAMES[value]}s"
        named = ", ".join(asked[:-1]) + f" and {asked[-1]}" if queries > 1 else asked[0]
        opening = f"Some secret {NAMES[value]}s are hidden in the text below. Remember them: you will be asked for them."
        question = (
            f"What {'is' if one else 'are all'} the secret {plural} of {named} in the text above? "
            f"Answer with the {plural} alone."
        )
        return (
            lambda units, filler: f"{opening}\n\n{context(units, filler)}\n\n{question}",
            tuple(each for one in asked for each in drawn[one]),
        )

    return make


def _straw(
    hay: str, key: str, value: str, taken: set[str], texts: Texts, generator: random.Random
) -> Callable[[int], str]:
    if hay == "noise":
        return lambda place: NOISE[place % len(NOISE)]
    if hay == "essay":
        start = generator.randrange(len(texts.essay))
        return lambda place: texts.essay[(start + place) % len(texts.essay)]
    made: list[str] = []

    def needle(place: int) -> str:
        while len(made) <= place:
            one = VALUES[key](generator)
            if one not in taken:
                taken.add(one)
                made.append(f"The secret {NAMES[value]} of {one} is {VALUES[value](generator)}.")
        return made[place]

    return needle


def variable_tracking(chains: int = 1, hops: int = 4) -> Callable[[Texts, random.Random], Made]:
    """Which variables have a value that is handed on from one to the next; an example comes first."""

    def make(texts: Texts, generator: random.Random) -> Made:
        example, answers = _chains(generator, chains, hops)
        shown = _hay(lambda place: NOISE[place % len(NOISE)], [], generator)
        shown_text = _in_order(shown(2 * hops, "").split(". "), example, generator)
        asked, wanted = _chains(generator, chains, hops)
        depths = sorted(generator.random() for _ in asked)
        ask = (
            "Question: which variables have the value {value} in the text above? There are {many} of them. Answer with "
            "their names alone."
        )
        opening = "Remember how values are handed on between the variables in the text below."
        first = f"{opening}\n\n{shown_text}\n\n{ask.format(value=answers[0], many=hops + 1)}\n{' '.join(answers[1:])}"
        question = ask.format(value=wanted[0], many=hops + 1)

        def prompt(units: int, filler: str) -> str:
            parts = [NOISE[place % len(NOISE)] for place in range(units)]
            for depth, line in reversed(list(zip(depths, asked, strict=True))):
                parts.insert(int(depth * (units + 1)), line)
            return f"{first}\n\n{opening}\n\n{' '.join(parts)}{filler}\n\n{question}"

        return prompt, tuple(wanted[1:])

    return make


def _chains(generator: random.Random, chains: int, hops: int) -> tuple[list[str], list[str]]:
    """Assignments in an order that keeps each chain's, and the first chain's value and variables."""
    names: list[str] = []
    while len(names) < chains * (hops + 1):
        name = "".join(generator.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5))
        if name not in names:
            names.append(name)
    values = generator.sample(range(10_000, 100_000), chains)
    lines = []
    for chain, value in enumerate(values):
        own = names[chain * (hops + 1) : (chain + 1) * (hops + 1)]
        lines.append([f"VAR {own[0]} = {value}."] + [f"VAR {b} = VAR {a}." for a, b in zip(own, own[1:])])
    order = [chain for chain in range(chains) for _ in range(hops + 1)]
    generator.shuffle(order)
    return [lines[chain].pop(0) for chain in order], [str(values[0]), *names[: hops + 1]]


def _in_order(sentences: list[str], lines: list[str], generator: random.Random) -> str:
    places = sorted(generator.randrange(len(sentences) + 1) for _ in lines)
    parts = [sentence if sentence.endswith(".") else f"{sentence}." for sentence in sentences]
    for place, line in reversed(list(zip(places, lines, strict=True))):
        parts.insert(place, line)
    return " ".join(parts)


def common_words(common: int = 10, often: int = 30, seldom: int = 3) -> Callable[[Texts, random.Random], Made]:
    """The words of a list that come most often; an example with a short list comes first."""

    def make(texts: Texts, generator: random.Random) -> Made:
        words = key_words(generator)
        example = _listed([(word, 10) for word in words[:common]] + [(word, 3) for word in words[common:20]], generator)
        ask = f"Question: which {common} words come most often in the list above? Answer with the words alone."
        opening = "Below is a numbered list of words. Remember the words that come most often."
        shown = f"{opening}\n\n{example}\n\n{ask}\n{' '.join(words[:common])}"
        wanted, others, shuffling = words[20 : 20 + common], words[20 + common :], generator.random()

        def prompt(units: int, filler: str) -> str:
            order = random.Random(shuffling)
            rest = [others[place] if place < len(others) else _joined(others, place) for place in range(units)]
            listed = _listed([(word, often) for word in wanted] + [(word, seldom) for word in rest], order)
            return f"{shown}\n\n{opening}\n\n{listed}\n\nThe list ends here.{filler}\n\n{ask}"

        return prompt, tuple(wanted)

    return make


def _joined(words: list[str], place: int) -> str:
    """More words than there are: two of them with a hyphen."""
    step, first = divmod(place - len(words), len(words))
    return f"{words[first]}-{words[(first + 7 * step + 1) % len(words)]}"


def _listed(counts: list[tuple[str, int]], generator: random.Random) -> str:
    words = [word for word, times in counts for _ in range(times)]
    generator.shuffle(words)
    return " ".join(f"{place}. {word}" for place, word in enumerate(words, 1))


def frequent_words(alpha: float = 2.0, length: int = 6) -> Callable[[Texts, random.Random], Made]:
    """The three most frequent of coded words, whose frequencies fall as a power of their rank; the most frequent of all
    is drawn as dots, and is noise."""

    def make(texts: Texts, generator: random.Random) -> Made:
        code: list[str] = []
        while len(code) < 2_000:
            word = "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=length))
            if word not in code[:4]:
                code.append(word)
        shuffling, total = generator.random(), sum(rank**-alpha for rank in range(1, len(code) + 1))
        opening = (
            "Below is a text in code. Count how often each coded word comes, and ignore the dots ('...'): they are noise."
        )
        question = "Question: which are the three most frequent coded words in the text above? Answer with them alone."

        def prompt(units: int, filler: str) -> str:
            size = 40 + units
            counts = [int(size * rank**-alpha / total) for rank in range(1, len(code) + 1)]
            counts[2] = min(counts[2], counts[1] - 1)
            counts[3] = min(counts[3], counts[2] - 1)  # no ties among the answers, nor with the next
            counts[4:] = [min(each, counts[3] - 1) for each in counts[4:]]
            words = [word for word, times in zip(["...", *code[1:]], counts) for _ in range(max(0, times))]
            words += ["..."] * (size - len(words))
            random.Random(shuffling).shuffle(words)
            return f"{opening}\n\n{' '.join(words)}\n\nThe coded text ends here.{filler}\n\n{question}"

        return prompt, tuple(code[1:4])

    return make


def documents(data: Literal["qa_1", "qa_2"]) -> Callable[[Texts, random.Random], Made]:
    """A question on one document (qa_1) or on two (qa_2) among many."""

    def make(texts: Texts, generator: random.Random) -> Made:
        question, answers, needed, others = texts.question(data, generator)
        opening = "Answer the question from the documents below. Answer with the shortest phrase that answers it."
        shuffling = generator.random()

        def prompt(units: int, filler: str) -> str:
            shown = [*needed, *(others(place) for place in range(units - 1))]
            random.Random(shuffling).shuffle(shown)
            listed = "\n\n".join(f"Document {place}:\n{text}" for place, text in enumerate(shown, 1))
            return f"{opening}\n\n{listed}\n\nThe documents end here.{filler}\n\nQuestion: {question}"

        return prompt, answers

    return make


KINDS: Mapping[str, Kind] = {
    "niah_single_1": Kind(niah("noise"), 128),
    "niah_single_2": Kind(niah("essay"), 128),
    "niah_single_3": Kind(niah("essay", value="uuid"), 128),
    "niah_multikey_1": Kind(niah("essay", keys=4), 128),
    "niah_multikey_2": Kind(niah("needle"), 128),
    "niah_multikey_3": Kind(niah("needle", key="uuid", value="uuid"), 128),
    "niah_multivalue": Kind(niah("essay", values=4), 128),
    "niah_multiquery": Kind(niah("essay", queries=4), 128),
    "vt": Kind(variable_tracking(), 30),
    "cwe": Kind(common_words(), 120),
    "fwe": Kind(frequent_words(), 50),
    "qa_1": Kind(documents("qa_1"), 32, "part"),
    "qa_2": Kind(documents("qa_2"), 32, "part"),
}
"""RULER's tasks, with the sizes of its generator's 13."""


def as_task(task: RulerTask) -> dict[str, Any]:
    """What the verifier is told (reward `ruler`)."""
    return {"kind": "ruler", "answers": list(task.answers), "match": task.match}
