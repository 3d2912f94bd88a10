"""``ruler-<length>``: a suite of RULER's tasks (evaluation/ruler.py), the kinds in turn."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.catalog import root_of
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.evaluation.benchmarks import TaskReading
from nanoalign.evaluation.ruler import KINDS, RulerTask, ruler_task
from nanoalign.evaluation.ruler_texts import load_texts
from nanoalign.evaluation.tasks import prompt_messages
from nanoalign.rollouts.base import Mode

EACH = 25
"""Tasks of a kind where the suite names no number. The paper takes 500."""


def ruler(reading: TaskReading) -> Iterator[Conversation]:
    """``samples`` tasks, 25 of each kind by default; their kind is their domain.

    Prompts are exact in the thinking mode whose render is the longer one, so that both fit the length.

    Raises:
        ConfigError: no length, or one that does not hold the smallest task.
    """
    if reading.length is None:
        raise ConfigError(f"benchmark {reading.name}: give a length, as in ruler-131072 or ruler-128k")
    if reading.tokenizer is None or reading.chat is None:  # a plan counts
        yield from [Conversation((Message("user", ""),), domain=kind, id=name) for kind, name in _names(reading)]
        return
    chat, tokenizer = reading.chat, reading.tokenizer

    def tokens(text: str, thinking: bool = True) -> int:
        rendered = chat.prompt(prompt_messages((Message("user", text),), Mode(thinking)))
        return len(tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])

    more = max(0, tokens("a", False) - tokens("a"))
    texts = load_texts(root_of(reading.data_root))

    def made(task: tuple[str, str], guess: int = 9) -> RulerTask:
        kind, name = task
        return ruler_task(
            kind, reading.length or 0, int(name.rpartition("-")[2]), lambda text: tokens(text) + more, texts,
            seed=reading.seed, room=reading.benchmark.answer_tokens, guess=guess,
        )  # fmt: skip

    names = _names(reading)
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # tokenizers work without Python's lock
        first = dict(zip(KINDS, threads.map(made, names[: len(KINDS)])))
        # the first alone is the guess: a task is the same however many there are
        rest = threads.map(lambda each: made(each, first[each[0]].units), names[len(KINDS) :])
        for (kind, name), task in zip(names, chain(first.values(), rest)):
            told = {"kind": "ruler", "answers": list(task.answers), "match": task.match, "texts": task.texts}
            yield Conversation(
                (Message("user", task.text),), domain=kind, source=reading.name, licence=reading.benchmark.licence,
                id=name, task=told,
            )  # fmt: skip


def _names(reading: TaskReading) -> list[tuple[str, str]]:
    """Kind and id of each task."""
    wanted = EACH * len(KINDS) if reading.samples is None else reading.samples
    kinds = list(KINDS)
    return [
        (kinds[place % len(kinds)], f"{kinds[place % len(kinds)]}-{place // len(kinds)}") for place in range(wanted)
    ]
