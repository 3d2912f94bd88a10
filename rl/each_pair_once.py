"""Pairs that do not fill the last batch of an epoch, shared out over several processes: each is trained on once.

accelerate evens an epoch out with pairs from its beginning, so that all processes have as many rows. They are its last
rows, and are left out of the batch here; what is left weighs as much as it would on one process.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from nanoalign.models.training import RecipeTrainer


@dataclass(frozen=True)
class Part:
    """A process's part of a micro-batch that not all processes fill."""

    pairs: int
    """Its pairs; with none, one that stands in is computed (all processes take part in collectives) and not counted."""
    weight: float
    """Of the mean over its pairs in the mean over the step's."""


def part_of(first: int, rows: int, pairs: int, alone: int) -> Part:
    """The part that holds the rows ``first`` to ``first + rows`` of a step of ``pairs``, as one process weighs them.

    It takes ``alone`` pairs at a time, and the mean of the means of these is TRL's loss; a multiple of ``rows``, or
    ``rows`` itself.
    """
    count = min(max(pairs - first, 0), rows)
    together = min(alone, pairs - first // alone * alone)
    return Part(count, count / together / -(-pairs // alone) if count else 0.0)


def cut(batch: dict[str, Tensor], rows: int, pairs: int) -> dict[str, Tensor]:
    """The first ``pairs`` of a collated batch of ``rows`` pairs: chosen answers, then rejected ones."""
    return {name: value.unflatten(0, (-1, rows))[:, :pairs].flatten(0, 1) for name, value in batch.items()}


class EachPairOnce(RecipeTrainer):
    """Mixin before a TRL trainer of pairs whose loss is their mean. On one process it changes nothing."""

    accelerator: Accelerator
    current_gradient_accumulation_steps: int

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of a step on this process; where pairs run out, with the part that each is."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        size, total = self.recipe.batch_size, len(self.train_dataset)  # type: ignore[arg-type]
        pairs = min(size, total - self.state.global_step % -(-total // size) * size)
        if self.accelerator.num_processes == 1 or pairs == size:
            return batches, items
        rows, ranks = self.args.per_device_train_batch_size, self.accelerator.num_processes
        parts = []
        for number, batch in enumerate(batches):
            first = (number * ranks + self.accelerator.process_index) * rows
            part = part_of(first, rows, pairs, self.recipe.micro_batch(1))
            parts.append({**cut(batch, rows, max(part.pairs, 1)), "part": part})
        return parts, items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        part: Part | None = inputs.pop("part", None)
        if part is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        with _gathering(self.accelerator, part.pairs > 0):
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        # the Trainer divides by the micro-batches of the step, and takes the mean over processes
        return loss * (part.weight * self.current_gradient_accumulation_steps * self.accelerator.num_processes)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        if (part := inputs.get("part")) is not None and not part.pairs:
            inputs = {**inputs, "attention_mask": torch.zeros_like(inputs["attention_mask"])}
        super()._track_num_input_tokens(inputs)


@contextmanager
def _gathering(accelerator: Accelerator, counts: bool) -> Iterator[None]:
    """TRL gathers what it logs; while this lasts from processes with different numbers of rows, and none of what does
    not count. accelerate would wait for equal ones, and cut what it gathers at an epoch's end."""
    gather = partial(_gather_rows, accelerator.gather, counts)
    saved = {name: vars(accelerator).get(name) for name in ("gather", "gather_for_metrics")}
    vars(accelerator).update(dict.fromkeys(saved, gather))
    try:
        yield
    finally:
        for name, value in saved.items():
            vars(accelerator).pop(name)
            if value is not None:
                vars(accelerator)[name] = value


def _gather_rows(gather: Callable[[Any], Any], counts: bool, value: Tensor) -> Tensor:
    """The rows of all processes, those that count, in the order of processes."""
    rows = (value if value.dim() else value[None])[: None if counts else 0]
    sizes: Sequence[int] = gather(torch.tensor([len(rows)], device=value.device)).tolist()
    padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])])
    parts = gather(padded).split(max(sizes))
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
