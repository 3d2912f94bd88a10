"""TRL's SFTTrainer on documents that are tokenized, masked and packed already. The one module of the room with trl."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from common.stage import StageLog
from models.config import Training
from models.training import RecipeTrainer, training_arguments
from sft.collate import Collator


class DocumentTrainer(RecipeTrainer, SFTTrainer):
    """Trains on a :class:`sft.collate.Collator`'s rows.

    The loss is the mean over the trained tokens of the whole optimizer step, over all its micro batches and devices,
    and never sees the logits of all positions at once (TRL's fused language-model head).
    """

    def held_out_loss(self, collator: Collator, rows_at_once: int) -> float:
        """Mean negative log-likelihood (nats) a trained token, over all rows of ``collator``."""
        model = self.model
        training = model.training
        model.eval()
        total = tokens = 0.0
        for start in range(0, len(collator.rows), rows_at_once):
            rows = range(start, min(start + rows_at_once, len(collator.rows)))
            batch = self._prepare_inputs(collator([{"row": row} for row in rows]))
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = model(**batch, use_cache=False, fused_lm_head=True)
            total -= float(outputs.log_probs.double().sum())
            tokens += float(outputs.label_mask.sum())
        model.train(training)
        return total / tokens

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: checkpoints are for resuming only."""


def make_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    collator: Collator,
    train: Training,
    folder: Path,
    log: StageLog,
    device: str,
    seed: int,
) -> DocumentTrainer:
    """A trainer over all rows of ``collator``, in an order drawn from ``seed`` and epoch; checkpoints in ``folder``.

    Raises:
        ConfigError: as :func:`models.training.training_arguments`.
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
    rows = Dataset.from_dict({"row": range(len(collator.rows))})
    return DocumentTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=rows,
        processing_class=tokenizer,
        train=train,
        log=log,
    )


def losses(trainer: DocumentTrainer) -> Sequence[float]:
    """The training loss of every optimizer step, those before a resume included."""
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]
