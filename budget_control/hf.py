"""The budget rule in transformers' ``generate``."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

from nanoalign.budget_control.batch import BatchBudget
from nanoalign.budget_control.logits import Edits, edit_, plan_edits
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import ConfigError


class ThinkingBudgetProcessor(LogitsProcessor):
    """Enforces a thinking budget per row of one ``generate`` call.

    ``model.generate(**batch, logits_processor=LogitsProcessorList([ThinkingBudgetProcessor(tokens, [64, None])]))``

    Prompts may be padded on the left. With ``num_return_sequences`` n each prompt's budget holds for its n rows. Beam
    search reorders rows behind the processor's back and raises ConfigError, as does a second ``generate`` call.
    """

    def __init__(self, tokens: ThinkingTokens, budgets: int | Sequence[int | None] | None, grace: int = 500) -> None:
        self.tokens, self.budgets, self.grace = tokens, budgets, grace
        self._batch: BatchBudget | None = None
        self._stops_1K = np.array([sorted(tokens.stop_ids)], dtype=np.int64)
        self._last_BT: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """``input_ids`` [B, T], ``scores`` [B, V]; returns the scores to sample from."""
        ids_BT, scores = input_ids.cpu(), scores.clone(memory_format=torch.contiguous_format)
        if self._batch is None:
            self._batch = BatchBudget.start(self.tokens, ids_BT.tolist(), self._row_budgets(len(ids_BT)), self.grace)
        else:
            if self._last_BT is None or not torch.equal(ids_BT[:, :-1], self._last_BT):
                raise ConfigError("ThinkingBudgetProcessor serves one generate call, without beam search")
            self._batch.advance(ids_BT[:, -1].numpy())
        self._last_BT = ids_BT
        heirs = np.where(self._batch.guarded(), self._batch.due(), -1)
        places, sizes = plan_edits(
            np.arange(len(ids_BT)), self._batch.forced(), heirs, self._stops_1K.repeat(len(ids_BT), axis=0),
            scores.shape[1],
        )  # fmt: skip
        edit_(scores, Edits(*torch.from_numpy(places).to(scores.device).split(sizes)))
        return scores

    def _row_budgets(self, rows: int) -> list[int | None]:
        if self.budgets is None or isinstance(self.budgets, int):
            return [self.budgets] * rows
        if rows % len(self.budgets):
            raise ConfigError(f"{len(self.budgets)} thinking budgets do not fit a batch of {rows} rows")
        return [budget for budget in self.budgets for _ in range(rows // len(self.budgets))]
