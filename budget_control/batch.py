"""The budget rule over a batch: row by row what :class:`BudgetRule` does, in some twenty numpy operations a token.

Shapes: B rows (completions), all arrays over rows are [B].
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nanoalign.budget_control.rule import BudgetRule, State
from nanoalign.budget_control.vocabulary import ThinkingTokens

UNLIMITED = np.iinfo(np.int64).max // 4
"""In place of a budget of None: never reached."""


ROWWISE = ("place", "used", "line_ended", "closing", "budget", "latest")
"""The arrays of a :class:`BatchBudget` that have a value per row."""


class _Look(NamedTuple):
    """What follows from the states. An inference server asks at every token, so it is worked out once."""

    thinking: np.ndarray
    position: np.ndarray
    """Index of the close token due next."""
    due: np.ndarray
    forced: np.ndarray


class BatchBudget:
    """The states of B completions under budgets of their own. Rows start idle: outside thinking, unlimited."""

    def __init__(self, tokens: ThinkingTokens, rows: int) -> None:
        self.tokens = tokens
        self.place = np.zeros(rows, dtype=np.int64)
        self.used = np.zeros(rows, dtype=np.int64)
        self.line_ended = np.zeros(rows, dtype=bool)
        self.closing = np.zeros(rows, dtype=np.int64)
        self.budget = np.full(rows, UNLIMITED)
        self.latest = np.full(rows, UNLIMITED)
        """Thinking tokens after which no line end is awaited any more."""
        self._close_ids = np.array(tokens.close_ids, dtype=np.int64)
        self._stop_ids = np.array(sorted(tokens.stop_ids), dtype=np.int64)
        self._looked: _Look | None = None

    @classmethod
    def start(
        cls, tokens: ThinkingTokens, prompts: Sequence[Sequence[int]], budgets: Sequence[int | None], grace: int
    ) -> "BatchBudget":
        """One row per prompt. Padding in a prompt does no harm: it opens and closes nothing.

        Raises ConfigError for a negative budget or grace."""
        batch = cls(tokens, len(prompts))
        for row, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True)):
            rule = BudgetRule(tokens, budget, grace)
            batch.put(row, rule, rule.start(prompt))
        return batch

    def put(self, row: int, rule: BudgetRule, state: State) -> None:
        """Lets a completion at ``state`` take over ``row``."""
        self.place[row], self.used[row], self.line_ended[row], self.closing[row] = state
        self.budget[row] = UNLIMITED if rule.budget is None else min(rule.budget, UNLIMITED - 1)
        self.latest[row] = UNLIMITED if rule.budget is None else min(rule.latest, UNLIMITED - 1)
        self._looked = None

    def state(self, row: int) -> State:
        """The state of the completion in ``row``."""
        return State(
            int(self.place[row]), int(self.used[row]), bool(self.line_ended[row]), int(self.closing[row])
        )  # fmt: skip

    def take(self, rows: Sequence[int] | np.ndarray) -> None:
        """Keeps these rows, in this order: compaction, reordering or repetition of the batch."""
        for name in ROWWISE:
            setattr(self, name, getattr(self, name)[rows])
        self._looked = None

    def extend(self, other: "BatchBudget") -> None:
        """Adds another batch's rows at the end."""
        for name in ROWWISE:
            setattr(self, name, np.concatenate([getattr(self, name), getattr(other, name)]))
        self._looked = None

    def thinking(self) -> np.ndarray:
        """bool [B]: the completion is thinking."""
        return self._look().thinking

    def due(self) -> np.ndarray:
        """int64 [B]: the token of the close that would come next."""
        return self._look().due

    def forced(self) -> np.ndarray:
        """int64 [B]: the token that must be written next, -1 where the model is free."""
        return self._look().forced

    def guarded(self) -> np.ndarray:
        """bool [B]: thinking under a budget, where a stop token is replaced by the close."""
        return self._look().thinking & (self.budget != UNLIMITED)

    def force(self, sampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is written where ``sampled`` (int64 [B]) was drawn, and bool [B]: written by the rule, not drawn.
        Moves the states on."""
        forced = self.forced()
        handed_over = (forced < 0) & self.guarded() & np.isin(sampled, self._stop_ids)
        written = np.where(forced >= 0, forced, np.where(handed_over, self.due(), sampled))
        self.advance(written)
        return written, (forced >= 0) | handed_over

    def advance(self, written: np.ndarray, live: np.ndarray | None = None) -> None:
        """The states after ``written`` (int64 [B]) was written, in all rows or in those where ``live`` (bool [B])."""
        look, tokens = self._look(), self.tokens
        columns = np.minimum(written, len(tokens.line_ends) - 1)
        place = tokens.table[self.place, columns].astype(np.int64)
        going_on = (look.forced == written) & (place >= tokens.first_thinking)
        states = (place, self.used + look.thinking, tokens.line_ends[columns], (look.position + 1) * going_on)
        if live is not None:
            old = (self.place, self.used, self.line_ended, self.closing)
            states = tuple(np.where(live, new, kept) for new, kept in zip(states, old))  # type: ignore[assignment]
        self.place, self.used, self.line_ended, self.closing = states
        self._looked = None

    def _look(self) -> _Look:
        if self._looked is None:
            thinking, closing = self.place >= self.tokens.first_thinking, self.closing > 0
            position = np.where(closing, self.closing, self.tokens.close_position[self.place])
            due = self._close_ids[position]
            late = ((self.used >= self.budget) & self.line_ended) | (self.used >= self.latest) | closing
            self._looked = _Look(thinking, position, due, np.where(thinking & late, due, -1))
        return self._looked
