"""The miniature base model's pre-training corpus: plain documents, no chat format, no thinking tags.

A base model has seen worked solutions, question-answer pairs, dialogues and structured text before any post-training;
this corpus gives the miniature the same start. What it does not know is when to think, when not to, and how to talk.
"""

import json
from collections.abc import Iterator
from random import Random

from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.miniature import generate

SHARES = {
    "math": 30,
    "coding": 12,
    "logic": 10,
    "multilingual": 8,
    "long": 6,
    "chat": 8,
    "safety": 1,
    "instruction": 9,
    "tools": 16,
}
"""Source to its share of the documents, in percent."""


def document(conversation: Conversation, rng: Random) -> str:
    """One conversation as plain text, in one of several layouts."""
    if conversation.domain == "tools":
        return _office_log(conversation)
    lines = []
    for message in conversation.messages:
        if message.role == "user":
            lines.append(message.content)
        elif message.reasoning and rng.random() < 0.75:
            lines.append(
                f"Working:\n{message.reasoning}\n{message.content}"
                if rng.random() < 0.5
                else f"{message.reasoning}\nAnswer: {message.content}"
            )
        else:
            lines.append(f"Answer: {message.content}")
    return "\n".join(lines)


def _office_log(conversation: Conversation) -> str:
    lines = ["Office log. Tools: " + json.dumps(list(conversation.tools))]
    for message in conversation.messages:
        if message.reasoning:
            lines.append(message.reasoning)
        if message.content:
            lines.append(message.content)
        if message.tool_calls:
            lines.append(
                json.dumps([{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls])
            )
    return "\n".join(lines)


def documents(count: int, seed: int) -> Iterator[str]:
    """``count`` training documents, shuffled across sources; the same for the same seed."""
    rng = Random(seed)
    pool = [
        (name, conversation)
        for name, share in SHARES.items()
        for conversation in generate(name, max(1, count * share // 100), "train", seed)
    ]
    rng.shuffle(pool)
    for _, conversation in pool:
        yield document(conversation, rng)
