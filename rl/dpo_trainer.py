"""TRL's DPOTrainer on token ids that came from the engine. The only importer of its DPO.

TRL would render and tokenize texts; here a row is ids and masks already, so that what is trained is what was sampled.
Tokens that the budget rule forced are outside the mask.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from nanoalign.common.stage import StageLog
from nanoalign.models.config import Training
from nanoalign.models.training import training_arguments
from nanoalign.models.zero3 import gather_blocks
from nanoalign.rl.each_pair_once import EachPairOnce
from nanoalign.rl.pairs import PreferencePair


class PairTrainer(EachPairOnce, DPOTrainer):
    """DPO on rows of token ids; reference log-probabilities are computed before the first step."""

    _precompute_engine: Any
    fp8_in_eval = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.model, PeftModel):
            # TRL's copy of the adapter, which has given the reference's log-probabilities: the weights that ZeRO-3
            # gathers are to be those of the model that takes them
            self.model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, *args: Any) -> Dataset:
        """TRL leaves the engine that it makes for this on the model: under ZeRO-3 its hooks would gather and split
        weights beside those of the engine that trains."""
        dataset: Dataset = super()._precompute_ref_logps(*args)
        if is_deepspeed_zero3_enabled() and self._precompute_engine is not None:
            self._precompute_engine.destroy()
            self._precompute_engine = None
        return dataset


class PairCollator(DataCollatorForPreference):
    """Pads pairs on the right, chosen ones first, and leaves forced tokens out of ``completion_mask``."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        masks = [example["chosen_mask"] for example in examples] + [example["rejected_mask"] for example in examples]
        for row, (mask, example) in enumerate(zip(masks, examples * 2, strict=True)):
            start = len(example["prompt_ids"])
            batch["completion_mask"][row, start : start + len(mask)] = torch.tensor(mask)
        return batch


def dpo_arguments(
    train: Training, pairs: int, beta: float, folder: Path, device: str, seed: int, nll_weight: float = 0.0
) -> DPOConfig:
    """Arguments of a round on so many pairs; checkpoints in ``folder``. Made before the model is loaded: ZeRO-3 then
    splits it while it loads.

    Raises:
        ConfigError: as :func:`models.training.training_arguments`.
    """
    nll: dict[str, Any] = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, nll_weight]} if nll_weight else {}
    arguments = training_arguments(
        train, folder, pairs, device, seed, cls=DPOConfig, **nll,
        beta=beta, max_length=None, precompute_ref_log_probs=True, disable_dropout=True,
    )  # fmt: skip
    assert isinstance(arguments, DPOConfig)
    return arguments


def make_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    arguments: DPOConfig,
    train: Training,
    log: StageLog,
    phase: str,
) -> PairTrainer:
    """A trainer whose reference is ``model`` as it is now; figures under ``phase``."""
    if is_deepspeed_zero3_enabled():
        gather_blocks(model)
    rows = {
        "prompt_ids": [list(pair.prompt_ids) for pair in pairs],
        "chosen_ids": [list(pair.chosen.token_ids) for pair in pairs],
        "rejected_ids": [list(pair.rejected.token_ids) for pair in pairs],
        "chosen_mask": [[int(not forced) for forced in pair.chosen.forced] for pair in pairs],
        "rejected_mask": [[int(not forced) for forced in pair.rejected.forced] for pair in pairs],
    }
    return PairTrainer(
        model=model,
        args=arguments,
        train_dataset=_on_disk(Dataset.from_dict(rows), Path(str(arguments.output_dir)).with_name("rows")),
        data_collator=PairCollator(pad_token_id=tokenizer.pad_token_id),
        processing_class=tokenizer,
        train=train,
        log=log,
        phase=phase,
    )


def _on_disk(dataset: Dataset, folder: Path) -> Dataset:
    """The data set; of several processes, one that lies in ``folder``: TRL's first process caches the reference's
    log-probabilities beside it, and the others look there."""
    processes = PartialState()
    if processes.num_processes == 1:
        return dataset
    if processes.is_main_process:
        dataset.save_to_disk(folder)
    processes.wait_for_everyone()
    return Dataset.load_from_disk(str(folder))
