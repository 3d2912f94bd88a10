"""What a thinking budget does to completions, one by one and over many.

- *Well-formed*: thinking was closed exactly once, and an answer comes after it. Without thinking: an answer, no tag.
- *Overshoot*: tokens thought past the budget. The rule bounds it by ``grace`` and the length of the closing tag.
- *Compensation*: how much longer the answer gets when thinking was cut. Over the prompts whose thinking was cut under
  the budget and, in a second run without any, was closed by the model itself: tokens of the answers under the budget
  over tokens of the answers without, both summed (1 is none). The same prompts on both sides, so that a budget which
  cuts the hard ones does not look like compensation. The interval is that of a ratio of means (delta method).
- *Leakage*: over the same pairs, the share of the answer's word triples that occur in the reasoning of the unlimited
  run, but neither in its answer nor in the prompt: reasoning that continues after the close (0 is none).
- *Obedience*: completions under ``/no_think`` without a thinking token or a tag.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanoalign.budget_control.rule import BudgetRule
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.intervals import Z95, Estimate, average, mean, proportion

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Reading:
    """One completion, read."""

    thinking: bool
    """It was requested with thinking on."""
    budget: int | None
    prompt: str
    reasoning: str
    answer: str
    """What follows the first closing tag, all of it where there was no thinking."""
    thinking_tokens: int
    """Tokens generated while thinking, those of the closing tag included."""
    answer_tokens: int
    """Tokens of the answer, the stop token left out."""
    cut: bool
    """The budget rule closed its thinking."""
    open_tags: int
    close_tags: int
    prompt_opened: bool
    """The prompt ended inside thinking."""
    finished: bool
    """It ended with a stop token."""

    @property
    def well_formed(self) -> bool:
        tags = (0 if self.prompt_opened or not self.thinking else 1, int(self.thinking))
        return (self.open_tags, self.close_tags) == tags and bool(self.answer.strip())

    @property
    def closed(self) -> bool:
        """It does not end inside thinking."""
        return self.open_tags + self.prompt_opened <= self.close_tags

    @property
    def tokens(self) -> int:
        """How long the completion is, including the stop token; text before thinking opens is left out."""
        return self.thinking_tokens + self.answer_tokens + self.finished

    @property
    def overshoot(self) -> int:
        return 0 if self.budget is None else max(0, self.thinking_tokens - self.budget)

    @property
    def obeys_no_think(self) -> bool:
        return self.thinking_tokens == 0 and self.open_tags == 0 and self.close_tags == 0


def analyse(
    tokens: ThinkingTokens,
    tokenizer: Any,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    forced: Sequence[bool],
    *,
    thinking: bool,
    budget: int | None,
    finished: bool,
) -> Reading:
    """Reads a completion. ``token_ids`` includes the stop token where ``finished``; ``forced`` marks the tokens that
    the rule wrote."""
    written = token_ids[: len(token_ids) - finished]
    rule = BudgetRule(tokens, None)
    state = rule.start(prompt_ids)
    prompt_opened = rule.thinking(state)
    answer_starts = 0 if not thinking else len(written)
    for place, token in enumerate(written):
        was_thinking = rule.thinking(state)
        state = rule.advance(state, token)
        if was_thinking and not rule.thinking(state) and thinking and answer_starts == len(written):
            answer_starts = place + 1
    text = _decode(tokenizer, written)
    reasoning, _, answer = text.partition(tokens.close_text) if thinking else ("", "", text)
    return Reading(
        thinking, budget, _decode(tokenizer, prompt_ids), reasoning.replace(tokens.open_text, "", 1).strip(),
        answer.strip(), state.used, len(written) - answer_starts, any(forced), text.count(tokens.open_text),
        text.count(tokens.close_text), prompt_opened, finished,
    )  # fmt: skip


def summary(readings: Sequence[Reading]) -> dict[str, Estimate]:
    """Figures of completions of one mode and budget: well_formed, closed, finished, thinking_tokens, answer_tokens and,
    under a budget, cut, overshoot and overshoot_max (no interval); without thinking, obedience."""
    figures = {
        "well_formed": proportion(sum(each.well_formed for each in readings), len(readings)),
        "closed": proportion(sum(each.closed for each in readings), len(readings)),
        "finished": proportion(sum(each.finished for each in readings), len(readings)),
        "thinking_tokens": mean([each.thinking_tokens for each in readings]),
        "answer_tokens": mean([each.answer_tokens for each in readings]),
    }
    if any(not each.thinking for each in readings):
        figures["obedience"] = proportion(sum(each.obeys_no_think for each in readings), len(readings))
    if any(each.budget is not None for each in readings):
        most = float(max(each.overshoot for each in readings))
        figures["cut"] = proportion(sum(each.cut for each in readings), len(readings))
        figures["overshoot"] = mean([each.overshoot for each in readings])
        figures["overshoot_max"] = Estimate(most, most, most, len(readings))
    return figures


def compensation(budgeted: Sequence[Reading], unlimited: Sequence[Reading]) -> dict[str, Estimate]:
    """``compensation`` and ``leakage`` (see the module's text) of runs over the same prompts in the same order. Both
    are NaN with n = 0 where no pair has its thinking cut on the one side and closed by the model on the other."""
    pairs = [
        (cut, free)
        for cut, free in zip(budgeted, unlimited, strict=True)
        if cut.cut and free.close_tags and not free.cut
    ]
    return {
        "compensation": ratio([c.answer_tokens for c, _ in pairs], [f.answer_tokens for _, f in pairs]),
        "leakage": average([leaked_share(cut, free) for cut, free in pairs]),
    }


def leaked_share(cut: Reading, free: Reading) -> float:
    """The share of the cut completion's answer that is reasoning of the free one; see the module's text."""
    answer = _triples(cut.answer)
    leaked = (answer & _triples(free.reasoning)) - _triples(free.answer) - _triples(free.prompt)
    return len(leaked) / len(answer) if answer else 0.0


def ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """The ratio of the sums of paired values, with its 95% interval by the delta method; NaN where ``below`` is 0."""
    n, bottom = len(above), math.fsum(below)
    if n == 0 or bottom == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = math.fsum(above) / bottom
    if n == 1:
        return Estimate(value, value, value, 1)
    deviation = math.sqrt(math.fsum((a - value * b) ** 2 for a, b in zip(above, below)) / (n - 1))
    half = Z95 * deviation / math.sqrt(n) / (bottom / n)
    return Estimate(value, value - half, value + half, n)


def _triples(text: str) -> set[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return set(zip(words, words[1:], words[2:]))


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
