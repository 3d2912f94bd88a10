"""TRL's SFTTrainer on documents that are tokenized, masked and packed already. The one module of the room with trl."""

import time
from pathlib import Path
from typing import Any

import torch
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
from trl import SFTConfig, SFTTrainer

from common.errors import ConfigError
from common.stage import StageLog
from models.adapters import require_trained
from models.config import Training
from models.isolation import full_precision, require_isolation
from models.training import RecipeTrainer, training_arguments
from sft.collate import Collator

HELD_OUT = "held_out_loss"


class DocumentTrainer(RecipeTrainer, SFTTrainer):
    """Trains on a :class:`sft.collate.Collator`'s rows.

    The loss is the mean over the trained tokens of the whole optimizer step, over all its micro batches and devices,
    and never sees the logits of all positions at once (TRL's fused language-model head).
    """

    held_out: Collator
    """Documents that are not trained on."""
    began: tuple[float, int] = (0.0, 0)
    ended: tuple[float, int] = (0.0, 0)
    """When this process began and ended to train (perf_counter), and the tokens seen by then."""

    def check(self) -> None:
        """Before the first step: documents of a real batch must not see each other, and every adapter must learn.

        Raises:
            IsolationError: packed (or padded) documents differ from themselves alone.
            ConfigError: an adapter gets no gradient.
        """
        collator = self.data_collator
        concatenated = not collator.isolate and bool((collator.rows.sizes > 1).any())  # plainly, as asked for
        batch = self._prepare_inputs(collator([{"row": row} for row in telling_rows(collator)]))
        self.model.train()
        if not concatenated and not self.is_deepspeed_enabled:
            with full_precision(self.model):  # exactly, then once more as it is trained
                require_isolation(self.model, batch)
        with self.accelerator.autocast():
            if not concatenated:
                require_isolation(self.model, batch)
            if isinstance(self.model, PeftModel) and not self.is_deepspeed_enabled:
                require_trained(self.model, batch)

    def log_held_out_loss(self) -> None:
        """Logs the loss on the held-out documents, if there are any, each alone."""
        if len(self.held_out.rows):
            at_once = self.args.per_device_train_batch_size
            self.log({HELD_OUT: self.loss_on(self.held_out, at_once)})

    def loss_on(self, collator: Collator, at_once: int) -> float:
        """Mean negative log-likelihood (nats) a trained token, over all rows of ``collator``."""
        training = self.model.training
        self.model.eval()
        total = tokens = 0.0
        for start in range(0, len(collator.rows), at_once):
            rows = range(start, min(start + at_once, len(collator.rows)))
            batch = self._prepare_inputs(collator([{"row": row} for row in rows]))
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = self.model(**batch, use_cache=False, fused_lm_head=True)
            total -= float(outputs.log_probs.double().sum())
            tokens += float(outputs.label_mask.sum())
        self.model.train(training)
        return total / tokens

    def figures(self) -> dict[str, float]:
        """Losses, steps, tokens and tokens/s of the training; those before a resume count, except for the speed."""
        history = self.state.log_history
        losses = [row["loss"] for row in history if "loss" in row]
        unseen = [row[HELD_OUT] for row in history if HELD_OUT in row]
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
        if unseen:
            found |= {f"{HELD_OUT}_first": unseen[0], f"{HELD_OUT}_last": unseen[-1]}
        return found

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: checkpoints are for resuming only."""


class _Bounds(TrainerCallback):
    """Runs a trainer's checks when model and optimizer stand ready and no step has been made; keeps the time."""

    trainer: DocumentTrainer

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


def telling_rows(collator: Collator) -> list[int]:
    """The rows in which documents could see each other most easily: the pack with most documents, or the shortest and
    the longest of single documents, where most is padded."""
    sizes = collator.rows.sizes
    if sizes.max() > 1:
        return [int(sizes.argmax())]
    lengths = collator.documents.lengths[collator.rows.samples]
    return [int(lengths.argmin()), int(lengths.argmax())]


def sft_arguments(train: Training, folder: Path, collator: Collator, device: str, seed: int) -> SFTConfig:
    """The trainer's arguments.

    Raises:
        ConfigError: as :func:`models.training.training_arguments`, or ZeRO-3 is asked for.
    """
    arguments = training_arguments(
        train,
        folder,
        len(collator.rows),
        device,
        seed,
        cls=SFTConfig,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        include_num_input_tokens_seen="all" if collator.isolate else "non_padding",
    )
    plugin = arguments.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        raise ConfigError("launch.zero: this stage gathers no parameters that ZeRO-3 has split; use 1 or 2")
    return arguments


def make_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: SFTConfig,
    train: Training,
    collator: Collator,
    held_out: Collator,
    log: StageLog,
) -> DocumentTrainer:
    """A trainer over all rows of ``collator``, in an order drawn from seed and epoch."""
    bounds = _Bounds()
    trainer = DocumentTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=Dataset.from_dict({"row": range(len(collator.rows))}),
        processing_class=tokenizer,
        callbacks=[bounds],
        train=train,
        log=log,
    )
    trainer.held_out = held_out
    bounds.trainer = trainer
    return trainer
