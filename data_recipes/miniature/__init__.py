"""The miniature's world: a small, generated replacement for the post-training mixture, checkable throughout.

``generate("math", 1000, "train", seed)`` gives conversations; a recipe names the source ``miniature:math``. The split
of a sample is a hash of its prompt, so train and test never share one, whatever the seeds.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from random import Random

from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.miniature import problems, talk
from nanoalign.data_recipes.miniature.logic import logic
from nanoalign.data_recipes.miniature.problems import Exercise, Generator

TEST_SHARE = 0.1


def _solved(problem: Exercise, domain: str) -> Conversation:
    """All the working in the reasoning, a short answer after it."""
    return Conversation(
        (Message("user", problem.question), Message("assistant", problem.reply, reasoning="\n".join(problem.steps))),
        domain=domain,
        language=problem.language,
        task=problem.task,
    )


def _hasty(problem: Exercise, domain: str, rng: Random) -> Conversation:
    """A teacher that stops thinking early and works on in its answer: data of this kind is what makes a model
    compensate when its thinking is cut, and what stage 3 unteaches."""
    thought = rng.randrange(len(problem.steps))
    content = "\n".join([*problem.steps[thought:], problem.reply])
    reasoning = "\n".join(problem.steps[:thought]) or "Let me see."
    return Conversation(
        (Message("user", problem.question), Message("assistant", content, reasoning=reasoning)),
        domain=domain,
        language=problem.language,
        task=problem.task,
    )


def _from(generators: tuple[Generator, ...], domain: str) -> Callable[[Random], Conversation]:
    return lambda rng: _solved(rng.choice(generators)(rng), domain)


SOURCES: dict[str, Callable[[Random], Conversation]] = {
    "math": _from(problems.MATH, "math"),
    "coding": _from(problems.CODING, "coding"),
    "logic": _from((logic,), "logic"),
    "multilingual": _from(problems.MULTILINGUAL, "multilingual"),
    "long": _from(problems.LONG, "long"),
    "hasty": lambda rng: _hasty(rng.choice((*problems.MATH, *problems.CODING))(rng), "math", rng),
    "chat": talk.chat,
    "safety": talk.safety,
    "instruction": talk.instruction,
    "preference": talk.preference,
}


def split_of(conversation: Conversation) -> str:
    """train or test, by a hash of everything before the last assistant turn."""
    prompt = "\n".join(message.content for message in conversation.messages[:-1])
    return "test" if sha256(prompt.encode()).digest()[0] < 256 * TEST_SHARE else "train"


def _stream(name: str, split: str, seed: int) -> Iterator[Conversation]:
    rng = Random(f"{name}/{split}/{seed}")
    make = SOURCES[name]
    while True:
        conversation = make(rng)
        if split_of(conversation) == split:
            yield conversation


def generate(name: str, samples: int, split: str, seed: int) -> list[Conversation]:
    """``samples`` conversations of one source. Raises ConfigError for an unknown name."""
    if name == "tools":
        from nanoalign.data_recipes.workplace import office_tasks as workplace

        rng = Random(f"tools/{split}/{seed}")
        made = [workplace.demonstration(task, rng) for task in workplace.tasks(split, samples, seed)]
    elif name in SOURCES:
        stream = _stream(name, split, seed)
        made = [next(stream) for _ in range(samples)]
    else:
        raise ConfigError(f"miniature:{name} is unknown; there are {', '.join(sorted([*SOURCES, 'tools']))}")
    return [
        replace(
            conversation,
            source=f"miniature:{name}",
            licence="Apache-2.0",
            id=f"{name}-{split}-{seed}-{index}",
            origin=f"miniature:{name}:{index}",
        )
        for index, conversation in enumerate(made)
    ]
