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
from itertools import pairwise
from typing import Literal

from nanoalign.evaluation.exact_length import Count, Prompt, fit
from nanoalign.evaluation.ruler_texts import NOISE, Texts, identifier, key_words, number, two_words

Made = tuple[Prompt, tuple[str, ...]]
"""A task of any size, and its answers."""
ROOM = 128
"""Tokens for an answer: the most that the generator gives to a kind."""


SHORT = 4096


@dataclass(frozen=True)
class Kind:
    """A kind of task."""

    make: Callable[[Texts, random.Random], Made]
    match: Literal["all", "part"] = "all"
    """Scored by the share of the answers that are found, or by whether one of them is."""
    make_short: Callable[[Texts, random.Random], Made] | None = None
    """In place of ``make`` below 4,096 tokens."""


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
    units: int
    """Of its context: sentences, words or documents."""


def ruler_task(
    kind: str, length: int, number: int, count: Count, texts: Texts, *, seed: int = 0, room: int = ROOM, guess: int = 9
) -> RulerTask:
    """Task ``number`` of a kind: its prompt's tokens and ``room`` for an answer are ``length`` together. ``guess``, a
    number of units that may do, saves time.

    Raises:
        ConfigError: ``length`` does not hold the smallest task of this kind.
    """
    chosen = KINDS[kind]
    generator = random.Random(f"{kind} {seed} {number}")
    make = chosen.make_short if chosen.make_short and length < SHORT else chosen.make
    prompt, answers = make(texts, generator)
    what = f"ruler-{length} is too short for {kind} with {room:,} tokens for the answer"
    text, tokens, units = fit(prompt, count, length - room, what, guess)
    return RulerTask(
        kind, f"{kind}-{number}", text, answers, chosen.match, tokens, tokens + room, texts.name_for(kind), units
    )


def _placed(sentences: list[str], needles: list[str], depths: list[float]) -> list[str]:
    """Needles between sentences, at depths from 0 to 1 in ascending order."""
    places = [int(depth * (len(sentences) + 1)) for depth in depths]
    for place, needle in reversed(list(zip(places, needles, strict=True))):
        sentences.insert(place, needle)
    return sentences


def _depths(needles: list[str], generator: random.Random) -> list[float]:
    return sorted(generator.random() for _ in needles)


def _noise(place: int) -> str:
    return NOISE[place % len(NOISE)]


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
        needles, depths = generator.sample(needles, len(needles)), _depths(needles, generator)
        gap = "\n" if hay == "needle" else " "
        one = values == queries == 1
        plural = NAMES[value] if one else f"{NAMES[value]}s"
        named = ", ".join(asked[:-1]) + f" and {asked[-1]}" if queries > 1 else asked[0]
        opening = (
            f"Some secret {NAMES[value]}s are hidden in the text below. Remember them: you will be asked for them."
        )
        question = (
            f"What {'is' if one else 'are all'} the secret {plural} of {named} in the text above? "
            f"Answer with the {plural} alone."
        )

        def prompt(units: int, filler: str) -> str:
            context = gap.join(_placed([straw(place) for place in range(units)], needles, depths))
            return f"{opening}\n\n{context}{filler}\n\n{question}"

        return prompt, tuple(each for one in asked for each in drawn[one])

    return make


def _straw(
    hay: str, key: str, value: str, taken: set[str], texts: Texts, generator: random.Random
) -> Callable[[int], str]:
    if hay == "noise":
        return _noise
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
        ask = (
            "Question: which variables have the value {value} in the text above? There are {many} of them. Answer with "
            "their names alone."
        )
        opening = "Remember how values are handed on between the variables in the text below."
        lines, (value, *names) = _chains(generator, chains, hops)
        example = " ".join(_placed([_noise(place) for place in range(2 * hops)], lines, _depths(lines, generator)))
        shown = f"{opening}\n\n{example}\n\n{ask.format(value=value, many=hops + 1)}\n{' '.join(names)}"
        lines, (value, *names) = _chains(generator, chains, hops)
        depths, question = _depths(lines, generator), ask.format(value=value, many=hops + 1)

        def prompt(units: int, filler: str) -> str:
            context = " ".join(_placed([_noise(place) for place in range(units)], lines, depths))
            return f"{shown}\n\n{opening}\n\n{context}{filler}\n\n{question}"

        return prompt, tuple(names)

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
        lines.append([f"VAR {own[0]} = {value}."] + [f"VAR {b} = VAR {a}." for a, b in pairwise(own)])
    order = [chain for chain in range(chains) for _ in range(hops + 1)]
    generator.shuffle(order)
    return [lines[chain].pop(0) for chain in order], [str(values[0]), *names[: hops + 1]]


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
        opening = "Below is a text in code. Count how often each word comes; ignore the dots ('...'), which are noise."
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
    "niah_single_1": Kind(niah("noise")),
    "niah_single_2": Kind(niah("essay")),
    "niah_single_3": Kind(niah("essay", value="uuid")),
    "niah_multikey_1": Kind(niah("essay", keys=4)),
    "niah_multikey_2": Kind(niah("needle")),
    "niah_multikey_3": Kind(niah("needle", key="uuid", value="uuid")),
    "niah_multivalue": Kind(niah("essay", values=4)),
    "niah_multiquery": Kind(niah("essay", queries=4)),
    "vt": Kind(variable_tracking()),
    "cwe": Kind(common_words(), make_short=common_words(often=10, seldom=1)),
    "fwe": Kind(frequent_words()),
    "qa_1": Kind(documents("qa_1"), "part"),
    "qa_2": Kind(documents("qa_2"), "part"),
}
"""RULER's tasks, with the sizes of its generator's 13. The paper begins at 4,096 tokens; what is shorter is ours."""
