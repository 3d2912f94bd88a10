"""How budgets are taught: transforms that strip reasoning, cut it, or tie its absence to ``/no_think``.

Each is ``(conversation, rng) -> (conversation, reason)``, see data_recipes/transforms.py: the same sample and generator
give the same result, and every reason is counted.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from nanoalign.budget_control.vocabulary import ends_line
from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.config import TruncateReasoning
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.transforms import Transform

SENTENCE_END = re.compile(r"[.!?。！？][\"')\]]*(?=\s)|\n")
"""Where a sentence or a line is over; a line's end takes its newline along, as the budget rule closes after it."""


def strip_reasoning(share: float) -> Transform:
    """Removes the reasoning of a ``share`` of the samples, so that answering directly is learned (stage 1 of Nemotron
    Nano 2, arXiv 2508.14444: a random 10% of prompts). Samples without any are left alone."""
    _check_share("strip_reasoning", share)

    def strip(conversation: Conversation, rng: Random) -> tuple[Conversation, str | None]:
        if rng.random() >= share or not _thinks(conversation):
            return conversation, None
        return _without_reasoning(conversation), "reasoning stripped"

    return strip


def truncate_reasoning(section: TruncateReasoning, tokenizer: Any, stripped: float = 0.0) -> Transform:
    """Cuts the reasoning of a share of the samples and keeps their answers (stage 3: about 5% of the data, 1,000 to
    2,000 tokens). The cut is recorded with ``Message.reasoning_cut``.

    Every assistant turn is cut at a place of its own, counted in tokens of ``tokenizer``. A trace no longer than the
    range's lower end, or (at: sentence) without a sentence end before its place, is left uncut. A cut at 0 leaves a
    thinking that is opened and closed at once, as a budget of 0 does; without thinking (``/no_think``) is another mode.
    ``stripped`` is the share of samples that :func:`strip_reasoning` took before: the section's share is one of all
    samples.

    Raises:
        ConfigError: the token range is empty or starts below 0, or the shares exceed 1 together.
    """
    low, high = section.tokens
    if not 0 <= low <= high:
        raise ConfigError(f"truncate_reasoning.tokens: expected 0 <= low <= high, got {low} and {high}")
    if section.share + stripped > 1:
        raise ConfigError(f"strip_reasoning {stripped} and truncate_reasoning.share {section.share} exceed 1 together")
    share = section.share / (1 - stripped) if stripped < 1 else 0.0

    def truncate(conversation: Conversation, rng: Random) -> tuple[Conversation, str | None]:
        if rng.random() >= share or not _thinks(conversation):
            return conversation, None
        messages = tuple(_cut(message, section, tokenizer, rng) for message in conversation.messages)
        if messages == conversation.messages:
            return conversation, "reasoning left whole: no place to cut"
        return replace(conversation, messages=messages), "reasoning truncated"

    return truncate


def teaching(stripped: float, truncated: TruncateReasoning | None, tokenizer: Any) -> list[Transform]:
    """What an SFT stage does to its samples' reasoning: strips a share of it, and cuts a share of the traces."""
    steps = [strip_reasoning(stripped)]
    return steps if truncated is None else [*steps, truncate_reasoning(truncated, tokenizer, stripped)]


def balance_modes(off: float = 0.5) -> Transform:
    """Ties thinking to the signals in the text, so that obedience to them is learned: a share ``off`` of the samples
    that think get ``/no_think`` and lose their reasoning, the others get ``/think``. The signal goes into the system
    message or at the end of the first user message. Samples that never think get ``/no_think``. A sample that carries a
    signal already is left alone.

    Only formats that show signals to the model learn from them; the others set the mode in the prompt's end.
    """
    _check_share("balance_modes", off)

    def balance(conversation: Conversation, rng: Random) -> tuple[Conversation, str | None]:
        told = [message for message in conversation.messages if message.role in ("system", "user")]
        if not told or any("/think" in message.content or "/no_think" in message.content for message in told):
            return conversation, None
        think = rng.random() >= off and all(m.thinks for m in conversation.messages if m.role == "assistant")
        place = conversation.messages.index(rng.choice([told[0], next((m for m in told if m.role == "user"), told[0])]))
        signal = "/think" if think else "/no_think"
        messages = list(conversation.messages)
        messages[place] = replace(messages[place], content=f"{messages[place].content} {signal}".lstrip())
        signalled = replace(conversation, messages=tuple(messages))
        return (signalled if think else _without_reasoning(signalled)), f"{signal} added"

    return balance


def _cut(message: Message, section: TruncateReasoning, tokenizer: Any, rng: Random) -> Message:
    if message.role != "assistant" or not message.reasoning:
        return message
    reasoning = message.reasoning.strip()
    ends = [
        end for _, end in tokenizer(reasoning, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ]
    low, high = (1, len(ends)) if section.at == "fraction" else section.tokens
    if len(ends) <= low:
        return message
    budget = rng.randint(low, min(high, len(ends) - 1))
    if budget == 0:
        return replace(message, reasoning="", reasoning_cut=True)
    kept = reasoning[: ends[budget - 1]]
    if section.at == "sentence":
        found = [match.end() for match in SENTENCE_END.finditer(kept)]
        if not found:
            return message
        kept = kept[: found[-1]]
    if section.at == "rule":
        kept = reasoning[: _closed_by_rule(ends, reasoning, budget, section.grace)]
    if len(kept) >= len(reasoning):
        return message
    return replace(message, reasoning=kept, reasoning_cut=True)


def _closed_by_rule(ends: Sequence[int], reasoning: str, budget: int, grace: int) -> int:
    """How many characters of a trace :class:`budget_control.rule.BudgetRule` lets through, all where the trace is over
    before the rule closes it; ``ends`` holds where each token ends."""
    last = min(budget + grace, len(ends))
    starts = (0, *ends)
    return next(
        (ends[n - 1] for n in range(budget, last) if ends_line(reasoning[starts[n - 1] : ends[n - 1]])), ends[last - 1]
    )


def _thinks(conversation: Conversation) -> bool:
    return any(message.thinks for message in conversation.messages)


def _without_reasoning(conversation: Conversation) -> Conversation:
    messages = tuple(
        replace(message, reasoning="", reasoning_cut=False) if message.role == "assistant" else message
        for message in conversation.messages
    )
    return replace(conversation, messages=messages)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(f"{name}: expected a share between 0 and 1, got {share}")
