"""The budget rule: one pure state machine that every enforcement of a thinking budget shares (DESIGN section 6).

Count the tokens generated while thinking. At the budget, wait for the next token that ends a line, then write the
close sequence; after ``grace`` more tokens write it at once. Budget 0 closes at once; None never intervenes. Thinking
that the model opens again counts on. While thinking under a budget a stop token is not an end: the close is written in
its place, so that no completion ends unclosed.

Thinking is recognised in the text, not in the ids: a model that spells ``</think>`` with other tokens than the
tokenizer would (``</``, ``think``, ``>\\n\\n``) has closed all the same. The rule is that of Nemotron Nano 2 (arXiv
2508.14444, on budget control); its newline set and its close sequence come from the tokenizer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import ConfigError


class State(NamedTuple):
    """The state of a completion. Immutable; equal states behave alike."""

    place: int
    """State of the tag automaton (see :class:`ThinkingTokens`)."""
    used: int = 0
    """Tokens generated while thinking, those of the close sequence included."""
    line_ended: bool = False
    """The last generated token ended a line."""
    closing: int = 0
    """Tokens of a forced close sequence already written; 0 where none is under way."""


@dataclass(frozen=True)
class BudgetRule:
    """The rule for one completion.

    Drive it with ``state = rule.start(prompt_ids)``, and then for every token
    ``token = rule.written(state, sampled); state = rule.advance(state, token)``.
    """

    tokens: ThinkingTokens
    budget: int | None
    """Thinking tokens; None is unlimited."""
    grace: int = 500
    """Tokens past the budget in which a line end is awaited."""

    def __post_init__(self) -> None:
        check_budget(self.budget, self.grace)

    def start(self, prompt_ids: Sequence[int]) -> State:
        """The state before the first generated token. The prompt may have opened thinking; its tokens do not count."""
        return State(self.tokens.scan(prompt_ids))

    def resume(self, prompt_ids: Sequence[int], token_ids: Iterable[int]) -> State:
        """The state after ``token_ids`` of a completion: one that is continued elsewhere counts on as if it had never
        stopped, a close half written included."""
        state = self.start(prompt_ids)
        for token in token_ids:
            state = self.advance(state, token)
        return state

    def thinking(self, state: State) -> bool:
        return state.place >= self.tokens.first_thinking

    def advance(self, state: State, token: int) -> State:
        """The state after ``token`` was written."""
        place = self.tokens.step(state.place, token)
        closing = 0
        if place >= self.tokens.first_thinking and token == self.forced(state):
            closing = self._close_position(state) + 1
        return State(place, state.used + self.thinking(state), self.tokens.ends_line(token), closing)

    def forced(self, state: State) -> int | None:
        """The token that must be written next, or None where the model is free."""
        if self.budget is None or not self.thinking(state):
            return None
        late = state.used >= self.latest or (state.used >= self.budget and state.line_ended)
        return self.tokens.close_ids[self._close_position(state)] if late or state.closing else None

    def written(self, state: State, sampled: int) -> int:
        """The token that is written where the model drew ``sampled``: the forced one if there is one; the next one of
        the close where a stop token would end the completion inside budgeted thinking; else ``sampled`` itself."""
        due = self.forced(state)
        if due is None and sampled in self.tokens.stop_ids:
            due = self._close_for_stop(state)
        return sampled if due is None else due

    def forced_mask(
        self, prompt_ids: Sequence[int], token_ids: Sequence[int], stopped: Sequence[bool] | None = None
    ) -> list[bool]:
        """Which tokens of a completion were written by this rule, not drawn: for engines that return tokens alone.

        ``stopped`` marks where a stop token was drawn, or, where logits are edited (budget_control/logits.py), was
        likelier than the close that replaced it: the tokens themselves do not show it. None marks no such close.
        """
        if self.budget is None:
            return [False] * len(token_ids)
        state, mask = self.start(prompt_ids), []
        for token, stop in zip(token_ids, [False] * len(token_ids) if stopped is None else stopped, strict=True):
            due = self.forced(state)
            if due is None and stop:
                due = self._close_for_stop(state)
            mask.append(due == token)
            state = self.advance(state, token)
        return mask

    def thinking_tokens(self, prompt_ids: Sequence[int], token_ids: Iterable[int]) -> int:
        """Tokens of a completion that were generated while thinking, those of the close included."""
        return self.resume(prompt_ids, token_ids).used

    @property
    def latest(self) -> float:
        """Thinking tokens after which no line end is awaited any more; a budget of 0 awaits none."""
        if self.budget is None:
            return float("inf")
        return self.budget + self.grace if self.budget else 0

    @property
    def longest_thinking(self) -> float:
        """The most thinking tokens that one span of thinking can take, including the close."""
        return float("inf") if self.budget is None else self.budget + self.grace + len(self.tokens.close_ids)

    def _close_for_stop(self, state: State) -> int | None:
        """The close token that replaces a stop token, or None where the stop token is kept."""
        if self.budget is None or not self.thinking(state):
            return None
        return self.tokens.close_ids[self._close_position(state)]

    def _close_position(self, state: State) -> int:
        """Index of the close token due next: a close that the model has begun as the tokenizer would is completed."""
        return state.closing or int(self.tokens.close_position[state.place])


def check_budget(budget: Any, grace: Any) -> None:
    """Raises ConfigError unless ``budget`` is None or an int >= 0 and ``grace`` an int >= 0."""
    for name, value in (("thinking budget", budget), ("grace", grace)):
        if value is None and name == "thinking budget":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise ConfigError(f"{name}: expected a number of tokens >= 0, got {value!r}")
