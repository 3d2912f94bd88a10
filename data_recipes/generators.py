"""Sources without files: the miniature's world, and reasoning-gym's tasks, bare or with their working."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.common.printable import known, nearest
from nanoalign.data_recipes.catalog import Split, catalog
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.worked import FAMILIES, HASTY, hastily, worked

TEST_SHARE = 0.1


def is_generated(name: str) -> bool:
    """Whether a source's name is that of a generator: it is unlimited and has no epochs."""
    return ":" in name and not name.startswith("file:")


def generate(name: str, samples: int, split: Split, seed: int) -> list[Conversation]:
    """``samples`` conversations of ``miniature:NAME``, ``reasoning-gym:DATASET`` or ``worked:FAMILY``. The splits share
    no prompt, whatever the seeds. Raises ConfigError for an unknown name."""
    check_name(name)
    kind, _, rest = name.partition(":")
    if kind == "miniature":
        from nanoalign.data_recipes.miniature import generate as generate_miniature

        made: Iterable[Conversation] = generate_miniature(rest, samples, split, seed)
    elif kind == "worked":
        made = _worked(rest, samples, split, seed)
    else:
        made = _reasoning_gym(rest, {}, partial(_bare, rest), samples, split, seed)
    return [
        replace(
            each, source=name, licence=each.licence or "Apache-2.0", id=each.id or f"{name}:{split}:{seed}:{number}"
        )
        for number, each in enumerate(made)
    ]


def in_test(conversation: Conversation, share: float) -> bool:
    """Whether a hash of the first user message puts a conversation into the test split (``share`` of all)."""
    prompt = next((message.content for message in conversation.messages if message.role == "user"), "")
    digest = sha256(" ".join(prompt.split()).encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def check_name(source: str) -> None:
    """Raises ConfigError, with the nearest name, where ``KIND:NAME`` is not a generator."""
    kind, _, name = source.partition(":")
    if kind == "miniature":
        from nanoalign.data_recipes.miniature import SOURCES

        names = [*SOURCES, "tools"]
    elif kind == "reasoning-gym":
        names = reasoning_gym_names()
    elif kind == "worked":
        names = [*FAMILIES, HASTY]
    else:
        names = [*catalog(), "miniature:", "reasoning-gym:", "worked:", "file:"]
        raise ConfigError(f"unknown source `{source}`{nearest(source, names)}")
    known(f"{kind} source", name, names)


@lru_cache(maxsize=1)
def reasoning_gym_names() -> list[str]:
    """The data sets' names, read from the package's files: importing it takes seconds, and a plan only needs names."""
    spec = find_spec("reasoning_gym")
    files = Path(spec.origin).parent.rglob("*.py") if spec and spec.origin else []
    names = re.compile(r'^DATASET_NAME = "(\w+)"|register_dataset\("(\w+)"', re.MULTILINE)
    return sorted({a or b for file in files for a, b in names.findall(file.read_text(encoding="utf-8"))})


def _bare(dataset: str, entry: Mapping[str, Any]) -> Conversation:
    """A task with its answer alone; the verifier finds the complete entry in the task."""
    question = Message("user", entry["question"])
    answered = (question, Message("assistant", str(entry["answer"])))
    messages = answered if entry["answer"] is not None else (question,)
    return Conversation(messages, domain="logic", task={"kind": "reasoning_gym", "dataset": dataset, "entry": entry})


def _worked(name: str, samples: int, split: Split, seed: int) -> list[Conversation]:
    """Tasks with their working; of all families in equal parts where a hasty teacher works them."""
    if name == HASTY:
        share = -(-samples // len(FAMILIES))
        every = [each for family in FAMILIES for each in _worked(family, share, split, seed)]
        return hastily(every, Random(f"{name}/{split}/{seed}"))[:samples]
    family = FAMILIES[name]
    return _reasoning_gym(family.dataset, family.settings, partial(worked, family), samples, split, seed)


def _reasoning_gym(
    dataset: str, settings: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Conversation | None],
    samples: int, split: Split, seed: int,
) -> list[Conversation]:  # fmt: skip
    """What ``make`` makes of a data set's entries (None: left out). Raises DataError where the generator repeats itself
    before there are ``samples`` different tasks."""
    import reasoning_gym

    found: dict[str, Conversation] = {}
    size = samples + 100 if split == "train" else 20 * samples + 200
    for attempt in range(20):
        # an entry is drawn with its data set's seed plus its index: a seed of one more would give the same but one
        entries = reasoning_gym.create_dataset(dataset, size=size, seed=seed * 20 + attempt * size, **settings)
        for entry in entries:
            conversation = make(entry)
            if conversation is not None and in_test(conversation, TEST_SHARE) == (split == "test"):
                found.setdefault(entry["question"], conversation)
            if len(found) == samples:
                return list(found.values())
    raise DataError(f"reasoning-gym:{dataset} gave only {len(found)} different {split} tasks of {samples}")
