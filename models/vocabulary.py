"""Whether two models speak of the same tokens, read from their folders without torch."""

from pathlib import Path
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.models.model_folder import read_config

LISTED = 3
"""Tokens named in a message."""


def vocabulary_fault(student: Path, teacher: Path) -> str | None:
    """Why a teacher's distribution over tokens is not one over the student's tokens; None where it is.

    Compared are the widths of the two heads (`vocab_size`), and the tokens behind the numbers where both folders have a
    tokenizer.json. Tied embeddings do not matter: only heads are compared.

    Raises:
        CheckpointError: a folder has no readable config.json.
    """
    if student.resolve() == teacher.resolve():
        return None
    sizes = [_text(read_config(folder)) for folder in (student, teacher)]
    if sizes[0]["vocab_size"] != sizes[1]["vocab_size"]:
        own, theirs = (
            f"{size['vocab_size']:,}{' (tied embeddings)' if size.get('tie_word_embeddings') else ''}" for size in sizes
        )
        return (
            f"its vocabulary of {theirs} tokens is not the student's, of {own}: distributions over them do not compare"
        )
    tokens = [_tokens(folder / "tokenizer.json") for folder in (student, teacher)]
    if tokens[0] is None or tokens[1] is None or tokens[0] == tokens[1]:
        return None
    other = sorted(set(tokens[0].items()) ^ set(tokens[1].items()), key=lambda item: (item[1], item[0]))
    shown = ", ".join(f"{number}: {token!r}" for token, number in other[:LISTED])
    return (
        f"its vocabulary is as large as the student's but another one: {len(other):,} entries are in one tokenizer "
        f"only (first {shown})"
    )


def require_one_vocabulary(student: Path, teacher: Path) -> None:
    """Raises ConfigError where :func:`vocabulary_fault` finds one."""
    if (fault := vocabulary_fault(student, teacher)) is not None:
        raise ConfigError(f"teacher: {teacher}: {fault}")


def _text(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that describes its language model."""
    inner = config.get("text_config")
    return config if "vocab_size" in config or not isinstance(inner, dict) else inner


def _tokens(file: Path) -> dict[str, int] | None:
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
