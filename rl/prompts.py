"""Prompts to be answered: conversations cut before their last answer, each with its mode, rendered and tokenized."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.rollouts.config import Thinking
from nanoalign.rollouts.modes import Mode, draw_mode
from nanoalign.rollouts.sampling import seed_of


@dataclass(frozen=True)
class Prompt:
    """What the model is given, and what a verifier knows of a right answer."""

    ids: tuple[int, ...]
    messages: tuple[Message, ...]
    mode: Mode
    task: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""


def prompts_of(
    conversations: Sequence[Conversation], thinking: Thinking, chat: ChatFormat, tokenizer: Any, seed: int
) -> list[Prompt]:
    """One prompt a conversation. The mode belongs to the prompt, so that a group compares answers of one mode; it is
    drawn from ``seed`` and the conversation's place.

    Raises:
        DataError: a conversation without a user's message to answer.
    """
    prompts = []
    for place, conversation in enumerate(conversations):
        messages = (
            conversation.messages[:-1] if conversation.messages[-1].role == "assistant" else conversation.messages
        )
        if not any(message.role == "user" for message in messages):
            raise DataError(f"{conversation.origin or conversation.id}: no user message to answer")
        mode = draw_mode(thinking, seed_of(seed, place))
        text = chat.prompt(messages, conversation.tools, thinking=mode.thinking)
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        prompts.append(Prompt(ids, messages, mode, conversation.task or {}, conversation.domain))
    return prompts


def row_schedule(rows: int, needed: int, seed: int) -> list[int]:
    """Which of ``rows`` prompts or tasks are asked, in order: one permutation after the other, whole up to the last. A
    resumed run finds its place in it by counting."""
    schedule: list[int] = []
    generator = random.Random(seed)
    while len(schedule) < needed:
        schedule += generator.sample(range(rows), rows)
    return schedule[:needed]
