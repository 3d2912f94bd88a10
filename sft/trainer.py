"""TRL's SFTTrainer on documents that are tokenized, masked and packed already. The only module of the room that imports
trl."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import SFTConfig, SFTTrainer

from nanoalign.common.stage import StageLog
from nanoalign.models.adapters import require_trained
from nanoalign.models.config import MeasuredTraining
from nanoalign.models.held_out import HeldOut
from nanoalign.models.isolation import full_precision, require_isolation
from nanoalign.models.training import RecipeTrainer, training_arguments
from nanoalign.models.zero3 import gather_blocks
from nanoalign.sft.collate import Collator

HELD_OUT = "held_out_loss"


class DocumentTrainer(RecipeTrainer, SFTTrainer):
    """Trains on a :class:`sft.collate.Collator`'s rows.

    The loss is the mean over the trained tokens of the whole optimizer step, over all its micro batches and devices,
    and never sees the logits of all positions at once (TRL's fused language-model head).
    """

    held_out_names: tuple[str, ...] = (HELD_OUT,)
    """What is measured on the held-out documents."""

    def __init__(self, *args: Any, held_out: Collator, **kwargs: Any) -> None:
        """``held_out``: documents that are not trained on."""
        self.held_out = held_out
        self.began = self.ended = (0.0, 0)
        """When this process began and ended to train (perf_counter), and the tokens seen by then."""
        super().__init__(*args, callbacks=[_Bounds(self)], **kwargs)

    def check(self) -> None:
        """Before the first step: documents of a real batch must not see each other, and every adapter must learn.

        Raises:
            IsolationError: packed (or padded) documents differ from unpacked ones.
            ConfigError: an adapter gets no gradient.
        """
        batch, concatenated = self.probe()
        self.model.train()
        if not concatenated and not self.is_deepspeed_enabled:
            with full_precision(self.model):  # exactly, then once more as it is trained
                require_isolation(self.model, batch)
        with self.accelerator.autocast():
            if not concatenated:
                require_isolation(self.model, batch)
            if isinstance(self.model, PeftModel) and not self.is_deepspeed_enabled:
                require_trained(self.model, {**batch, "use_cache": False, "fused_lm_head": True})

    def probe(self) -> tuple[dict[str, Any], bool]:
        """A real batch, and whether documents may see each other in it."""
        collator = replace(self.data_collator, rank=0, ranks=1)  # full packs, alike on every rank
        concatenated = not collator.isolate and bool((collator.rows.sizes > 1).any())  # without isolation, as requested
        return self._prepare_inputs(collator([{"row": row} for row in probe_rows(collator)])), concatenated

    def log_held_out_loss(self) -> float | None:
        """Logs the loss on the held-out documents, each alone; None where there are none."""
        if not len(self.held_out.rows):
            return None
        loss = self.loss_on(self.held_out, self.args.per_device_train_batch_size)
        self.log({HELD_OUT: loss})
        return loss

    def loss_on(self, collator: Collator, batch_size: int) -> float:
        """Mean negative log-likelihood (nats) per trained token, over all rows of ``collator``."""
        total = tokens = 0.0
        for batch in self.batches_of(collator, batch_size):
            outputs = self.model(**batch, fused_lm_head=True)
            total -= float(outputs.log_probs.double().sum())
            tokens += float(outputs.label_mask.sum())
        return total / tokens

    def batches_of(self, collator: Collator, batch_size: int) -> Iterator[dict[str, Any]]:
        """All rows of ``collator``, in batches, while the model is evaluated: without gradients."""
        training = self.model.training
        self.model.eval()
        for start in range(0, len(collator.rows), batch_size):
            rows = range(start, min(start + batch_size, len(collator.rows)))
            batch = self._prepare_inputs(collator([{"row": row} for row in rows]))
            with torch.no_grad(), self.compute_loss_context_manager():
                yield {**batch, "use_cache": False}
        self.model.train(training)

    def figures(self) -> dict[str, float]:
        """Losses, steps, tokens and tokens/s of the training; those before a resume count, except for the speed."""
        history = self.state.log_history
        losses = [row["loss"] for row in history if "loss" in row]
        tenth = max(1, len(losses) // 10)
        seconds, tokens = (end - start for start, end in zip(self.began, self.ended, strict=True))
        found = {
            "steps": self.state.global_step,
            "loss_first": sum(losses[:tenth]) / tenth,
            "loss_last": sum(losses[-tenth:]) / tenth,
            "tokens": self.state.num_input_tokens_seen,
            "tokens_per_s": tokens / seconds,
            "train_s": seconds,
        }
        for name in self.held_out_names:
            if unseen := [row[name] for row in history if name in row]:
                found |= {f"{name}_first": unseen[0], f"{name}_last": unseen[-1]}
        return found

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler | None:
        collator, arguments = self.data_collator, self.args
        if collator.ranks > 1:
            return SharedRows(
                len(collator.rows), arguments.per_device_train_batch_size, collator.ranks, arguments.data_seed
            )
        if collator.rows.sizes.max() == 1:
            step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
            lengths = collator.documents.lengths[collator.rows.samples]
            return LongestFirst(lengths, step, arguments.data_seed)
        return super()._get_train_sampler(train_dataset)


class _Bounds(TrainerCallback):
    """Runs a trainer's checks when model and optimizer are ready and no step has been made; keeps the time."""

    def __init__(self, trainer: DocumentTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.check()
        if state.global_step == 0:
            self.trainer.log_held_out_loss()
        self.trainer.began = (time.perf_counter(), state.num_input_tokens_seen)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.ended = (time.perf_counter(), state.num_input_tokens_seen)


class Ordered(torch.utils.data.Sampler[int]):
    """Rows in the order of accelerate's sampler, drawn from seed and epoch."""

    def __init__(self, rows: int, seed: int) -> None:
        self.order = SeedableRandomSampler(range(rows), generator=torch.Generator(), data_seed=seed)

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)


class LongestFirst(Ordered):
    """Rows of single documents, those of an optimizer step from long to short: its micro batches pad less, and its
    gradient is the same."""

    def __init__(self, lengths: np.ndarray, step: int, seed: int) -> None:
        super().__init__(len(lengths), seed)
        self.lengths, self.step = lengths, step

    def __iter__(self) -> Iterator[int]:
        rows = list(self.order)
        for start in range(0, len(rows), self.step):
            yield from sorted(rows[start : start + self.step], key=lambda row: -self.lengths[row])


class SharedRows(Ordered):
    """Each micro batch ``ranks`` times over: batches are dealt out to the processes one by one, so that neighbours get
    the same."""

    def __init__(self, rows: int, micro: int, ranks: int, seed: int) -> None:
        super().__init__(rows, seed)
        self.micro, self.ranks = micro, ranks

    def __iter__(self) -> Iterator[int]:
        rows = list(self.order)
        rows += [rows[i % len(rows)] for i in range(-len(rows) % self.micro)]  # as accelerate fills up a last batch
        for start in range(0, len(rows), self.micro):
            yield from rows[start : start + self.micro] * self.ranks

    def __len__(self) -> int:
        rows = len(self.order)
        return (rows + -rows % self.micro) * self.ranks


def probe_rows(collator: Collator) -> list[int]:
    """The rows in which documents could see each other most easily: the pack with most documents, or the shortest and
    the longest of single documents, where most is padded."""
    sizes = collator.rows.sizes
    if sizes.max() > 1:
        return [int(sizes.argmax())]
    lengths = collator.documents.lengths[collator.rows.samples]
    return [int(lengths.argmin()), int(lengths.argmax())]


def sft_arguments(train: MeasuredTraining, folder: Path, collator: Collator, device: str, seed: int) -> SFTConfig:
    """The trainer's arguments.

    Raises:
        ConfigError: as :func:`models.training.training_arguments`.
    """
    return training_arguments(
        train,
        folder,
        len(collator.rows),
        device,
        seed,
        cls=SFTConfig,
        ranks=collator.ranks,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        include_num_input_tokens_seen="all" if collator.isolate or collator.ranks > 1 else "non_padding",
    )


def make_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: SFTConfig,
    train: MeasuredTraining,
    collator: Collator,
    held_out: Collator,
    log: StageLog,
    cls: Callable[..., DocumentTrainer] = DocumentTrainer,
    phase: str | None = None,
) -> DocumentTrainer:
    """A trainer over all rows of ``collator``, in an order drawn from seed and epoch; ``phase`` names it in the log."""
    if is_deepspeed_zero3_enabled():
        gather_blocks(model)
    trainer = cls(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=Dataset.from_dict({"row": np.arange(len(collator.rows))}),
        processing_class=tokenizer,
        train=train,
        log=log,
        held_out=held_out,
        phase=phase,
    )
    if train.evaluate_every is not None:
        trainer.add_callback(HeldOut(trainer.log_held_out_loss, train.evaluate_every, train.early_stop, larger=False))
    return trainer
