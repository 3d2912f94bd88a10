"""The rows of a GRPO step: completions, or the parts of episodes, with what is trained of each.

Shapes: B rows.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Completions of one optimizer step on this process, or a micro-batch of them."""

    prompt_ids: list[Tensor]
    completion_ids: list[Tensor]
    logprobs: list[Tensor]
    trained: list[Tensor]
    advantages_B: Tensor
    episodes_B: Tensor
    """Which completion of the whole step each is, or which episode each is a part of."""
    tokens_B: Tensor
    """Trained tokens of that whole completion or episode."""
    elsewhere_B: Tensor
    """As in :class:`rl.loss.Whole`; 0 until :meth:`PolicyTrainer.whole_episodes` has found it."""

    def to(self, device: torch.device | str) -> "Rows":
        return self._each(lambda column: [each.to(device) for each in column], lambda values: values.to(device))

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of all parts, in their order."""
        columns = {field.name: [getattr(rows, field.name) for rows in parts] for field in fields(cls)}
        return cls(**{
            name: torch.cat(column) if isinstance(column[0], Tensor) else [*chain(*column)]
            for name, column in columns.items()
        })  # fmt: skip

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt and completion together."""
        return [len(prompt) + len(ids) for prompt, ids in zip(self.prompt_ids, self.completion_ids, strict=True)]

    @property
    def trained_episodes(self) -> list[int]:
        """The episode of each row with something to train on."""
        return [episode for episode, trained in zip(self.episodes_B.tolist(), self.trained) if trained.any()]

    def untrained(self) -> "Rows":
        """The rows with nothing to train on."""
        return replace(self, trained=[torch.zeros_like(trained) for trained in self.trained])

    def take(self, places: Tensor) -> "Rows":
        """The rows at these places."""
        return self._each(lambda column: [column[place] for place in places], lambda values: values[places])

    def _each(self, column: Callable[[list[Tensor]], list[Tensor]], values: Callable[[Tensor], Tensor]) -> "Rows":
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return Rows(**{name: values(x) if isinstance(x, Tensor) else column(x) for name, x in own.items()})


def with_rest(rows: Rows, sums_B: Tensor, all_sums: Iterable[tuple[int, float]]) -> Rows:
    """The rows, told of the other rows of their episodes.

    Args:
        sums_B: each row's sum of log-ratios over its trained tokens, float64.
        all_sums: episode and sum of every row of the step, these included.
    """
    totals: dict[int, float] = defaultdict(float)
    for episode, value in all_sums:
        totals[episode] += value
    totals_B = sums_B.new_tensor([totals[episode] for episode in rows.episodes_B.tolist()])
    return replace(rows, elsewhere_B=(totals_B - sums_B).float())
