"""Prompts of an exact number of tokens: as many units of context as fit, and a bland filler after them."""

from collections.abc import Callable
from itertools import product

from nanoalign.common.errors import ConfigError
from nanoalign.evaluation.ruler_texts import NOISE

Prompt = Callable[[int, str], str]
"""A task's text with this many units (sentences, words, documents) of context, and a filler after them."""
Count = Callable[[str], int]
"""Tokens of the whole prompt, chat format included, around a user's text."""


def fit(prompt: Prompt, count: Count, target: int, what: str = "the task", guess: int = 9) -> tuple[str, int, int]:
    """The text of exactly ``target`` tokens, or one less where the tokenizer allows no other; its tokens and units.

    A few counts suffice: tokens grow nearly linearly with units.

    Raises:
        ConfigError: there is no room for a single unit.
    """
    low, high = 1, None
    least = at_low = count(prompt(low, ""))
    if least > target:
        raise ConfigError(f"{what}: the smallest prompt takes {least:,} tokens; ask for {least - target:,} more")
    slope, at_high = 0.0, 0
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
    return *_filled(lambda filler: prompt(low, filler), count, target, at_low), low


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
