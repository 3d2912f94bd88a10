"""The budget rule over a batch: row by row what :class:`BudgetRule` does, in a handful of numpy operations a token.

Shapes: B rows (completions), all arrays over rows are [B].
"""

from collections.abc import Sequence

import numpy as np

from budget_control.rule import BudgetRule, State
from budget_control.vocabulary import ThinkingTokens

UNLIMITED = np.iinfo(np.int64).max // 4
"""Stands for a budget of None: never reached, and adding a grace to it does not overflow."""


class BatchBudget:
    """The states of B completions under budgets of their own. Rows start idle: outside thinking, unlimited."""

    def __init__(self, tokens: ThinkingTokens, rows: int) -> None:
        self.tokens = tokens
        self.place = np.zeros(rows, dtype=np.int64)
        self.used = np.zeros(rows, dtype=np.int64)
        self.line_ended = np.zeros(rows, dtype=bool)
        self.closing = np.zeros(rows, dtype=np.int64)
        self.budget = np.full(rows, UNLIMITED)
        self.grace = np.zeros(rows, dtype=np.int64)
        self._close_ids = np.array(tokens.close_ids, dtype=np.int64)
        self._stop_ids = np.array(sorted(tokens.stop_ids), dtype=np.int64)

    @classmethod
    def start(
        cls, tokens: ThinkingTokens, prompts: Sequence[Sequence[int]], budgets: Sequence[int | None], grace: int
    ) -> "BatchBudget":
        """One row a prompt. Padding in a prompt does no harm: it opens and closes nothing.

        Raises ConfigError for a negative budget or grace."""
        batch = cls(tokens, len(prompts))
        for row, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True)):
            rule = BudgetRule(tokens, budget, grace)
            batch.put(row, rule, rule.start(prompt))
        return batch

    def put(self, row: int, rule: BudgetRule, state: State) -> None:
        """Lets a completion at ``state`` take over ``row``."""
        self.place[row], self.used[row], self.line_ended[row], self.closing[row] = state
        self.budget[row] = UNLIMITED if rule.budget is None else rule.budget
        self.grace[row] = rule.grace

    def take(self, rows: Sequence[int] | np.ndarray) -> None:
        """Keeps these rows, in this order: compaction, reordering or repetition of the batch."""
        for name in ("place", "used", "line_ended", "closing", "budget", "grace"):
            setattr(self, name, getattr(self, name)[rows])

    def thinking(self) -> np.ndarray:
        """bool [B]: the completion is thinking."""
        return self.place >= self.tokens.first_thinking

    def due(self) -> np.ndarray:
        """int64 [B]: the token of the close that would come next."""
        return self._close_ids[self._position()]

    def forced(self) -> np.ndarray:
        """int64 [B]: the token that must be written next, -1 where the model is free."""
        late = (self.used >= self.budget) & (
            (self.budget == 0) | self.line_ended | (self.used >= self.budget + self.grace)
        )
        return np.where(self.thinking() & (late | (self.closing > 0)), self.due(), -1)

    def guarded(self) -> np.ndarray:
        """bool [B]: thinking under a budget, where a stop token is answered with the close."""
        return self.thinking() & (self.budget != UNLIMITED)

    def force(self, sampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is written where ``sampled`` (int64 [B]) was drawn, and bool [B]: written by the rule, not drawn.
        Moves the states on."""
        forced = self.forced()
        handed_over = (forced < 0) & self.guarded() & np.isin(sampled, self._stop_ids)
        written = np.where(forced >= 0, forced, np.where(handed_over, self.due(), sampled))
        self.advance(written)
        return written, (forced >= 0) | handed_over

    def advance(self, written: np.ndarray, rows: slice | np.ndarray = slice(None)) -> None:
        """The states after ``written`` (int64, one a row of ``rows``) was written."""
        forced, position, thinking = self.forced()[rows], self._position()[rows], self.thinking()[rows]
        columns = np.minimum(written, self.tokens.table.shape[1] - 1)
        place = self.tokens.table[self.place[rows], columns]
        self.place[rows] = place
        self.used[rows] += thinking
        self.line_ended[rows] = self.tokens.line_ends[columns]
        going_on = (forced == written) & (place >= self.tokens.first_thinking)
        self.closing[rows] = np.where(going_on, position + 1, 0)

    def _position(self) -> np.ndarray:
        return np.where(self.closing > 0, self.closing, self.tokens.close_position[self.place])
