"""Which blocks go first: those whose removal changes the logits least, by their mean squared error against the whole
model's (arXiv 2508.14444). After each removal the rest is measured again.

Logits are linear in the last hidden states: with G = W^T W of the head, the squared error of a token's logits is
d G d for a difference d of hidden states. No logits are computed, and one pass over the blocks serves every candidate:
a candidate shares all that comes before its block.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nanoalign.common.errors import ConfigError
from nanoalign.compress.calibrate import Row, inputs

Quotas = Sequence[tuple[frozenset[str], int]]
"""How many blocks of which kinds go (:func:`compress.shapes.quotas`)."""


@dataclass(frozen=True)
class Step:
    """One removal."""

    block: int
    """Its number in the whole model."""
    error: float
    """Mean squared error of the logits without it and those removed before."""
    candidates: Mapping[int, float] = field(default_factory=dict)
    """The error of every block that could have gone instead."""


class Removal:
    """Measures removals on rows, and remembers every error that it measured."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Row],
        known: Mapping[frozenset[int], Mapping[int, float]] | None = None,
        on_measured: Callable[[frozenset[int], Mapping[int, float]], None] = lambda gone, errors: None,
    ) -> None:
        """``known``: errors of an earlier process; ``on_measured`` sees each new set of errors at once."""
        self.layers: Sequence[nn.Module] = list(model.base_model.layers)
        self.model, self.rows = model, rows
        self.measured = dict(known or {})
        self.on_measured = on_measured
        self._gram: Tensor | None = None

    def errors(self, gone: frozenset[int]) -> Mapping[int, float]:
        """For every block that is left once ``gone`` are: the error of the logits without it too."""
        if gone not in self.measured:
            self.measured[gone] = self._measure(gone)
            self.on_measured(gone, self.measured[gone])
        return self.measured[gone]

    @torch.inference_mode()
    def _measure(self, gone: frozenset[int]) -> dict[int, float]:
        left = [number for number in range(len(self.layers)) if number not in gone]
        totals, tokens = dict.fromkeys(left, 0.0), 0
        for row in self.rows:
            hidden, more, whole = self._enter(row)
            tokens += whole.shape[1]
            for place, number in enumerate(left):
                branch = hidden
                for later in left[place + 1 :]:
                    branch = self._through(later, branch, more)
                totals[number] += self._squared_error(self._final(branch), whole)
                hidden = self._through(number, hidden, more)
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        return {number: total / (tokens * vocabulary) for number, total in totals.items()}

    def _enter(self, row: Row) -> tuple[Tensor, dict[int, dict[str, Any]], Tensor]:
        """What enters the first block, what each block gets besides, and the whole model's last hidden states."""
        entered: list[Tensor] = []
        more: dict[int, dict[str, Any]] = {}

        def watch(number: int) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                entered.append(args[0] if args else kwargs["hidden_states"])
                more[number] = {key: value for key, value in kwargs.items() if key != "hidden_states"}

            return hook

        hooks = [layer.register_forward_pre_hook(watch(number), with_kwargs=True)
                 for number, layer in enumerate(self.layers)]  # fmt: skip
        try:
            out = self.model.base_model(**inputs(row, self.model.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return entered[0], more, out.last_hidden_state

    def _through(self, number: int, hidden: Tensor, more: Mapping[int, dict[str, Any]]) -> Tensor:
        out = self.layers[number](hidden, **more[number])
        return out[0] if isinstance(out, tuple) else out

    def _final(self, hidden: Tensor) -> Tensor:
        base = self.model.base_model
        return (base.norm_f if hasattr(base, "norm_f") else base.norm)(hidden)

    def _squared_error(self, hidden: Tensor, whole: Tensor) -> float:
        difference = hidden[0].float() - whole[0].float()
        return float(((difference @ self.gram) * difference).sum(dtype=torch.float64))

    @property
    def gram(self) -> Tensor:
        """W^T W of the head (D, D), in fp32."""
        if self._gram is None:
            head = self.model.get_output_embeddings().weight
            total = torch.zeros(head.shape[1], head.shape[1], device=head.device)
            for part in head.split(8192):
                total += part.float().T @ part.float()
            self._gram = total
        return self._gram


def iterative(removal: Removal, kinds: Sequence[str], quotas: Quotas, protect: Iterable[int] = ()) -> list[Step]:
    """Removes blocks one by one, each time the one of the least error whose kind still has some to lose.

    ``kinds`` are those of all blocks (:func:`compress.shapes.units`). The steps of two quotas share their
    measurements as far as they agree.
    """
    steps: list[Step] = []
    gone: set[int] = set()
    left = dict(quotas)
    protected = set(protect)
    while any(left.values()):
        errors = removal.errors(frozenset(gone))
        open_kinds = {kind for names, count in left.items() if count for kind in names}
        candidates = {n: error for n, error in errors.items() if kinds[n] in open_kinds and n not in protected}
        if not candidates:
            what = ", ".join(sorted(open_kinds))
            raise ConfigError(f"protect: no {what} block is left to remove, and the grid asks for fewer")
        block = min(candidates, key=lambda number: (candidates[number], number))
        gone.add(block)
        names = next(names for names in left if kinds[block] in names)
        left[names] -= 1
        steps.append(Step(block, candidates[block], candidates))
    return steps


def one_shot(removal: Removal, count: int) -> list[int]:
    """The ``count`` blocks of the least error when each alone is removed, the least first: a comparison."""
    errors = removal.errors(frozenset())
    return sorted(errors, key=lambda number: (errors[number], number))[:count]
