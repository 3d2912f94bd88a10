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
from nanoalign.models.labels import IGNORED
from nanoalign.models.training import training_arguments
from nanoalign.models.zero3 import gather_blocks
from nanoalign.rl.each_pair_once import EachPairOnce
from nanoalign.rl.pairs import PreferencePair
from nanoalign.rl.successes import WrittenTurn

TURNS = "turns"
"""Of the turns beside the pairs: their ids in a row of the data set and in a batch; `turns_mask` says which are trained
on."""


class PairTrainer(EachPairOnce, DPOTrainer):
    """DPO on rows of token ids; reference log-probabilities are computed before the first step."""

    _precompute_engine: Any
    fp8_in_eval = True

    def __init__(self, *args: Any, nll_weight: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.nll_weight = nll_weight
        """Of the turns that a batch holds beside its pairs."""
        if isinstance(self.model, PeftModel):
            # TRL's copy of the adapter, which has given the reference's log-probabilities: the weights that ZeRO-3
            # gathers are to be those of the model that takes them
            self.model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """TRL's, and the negative log-likelihood of the turns beside the pairs, a mean over tokens of the batch."""
        if TURNS not in inputs:
            return super()._compute_loss(model, inputs, return_outputs)
        turns = {name: inputs.pop(f"{TURNS}{name}") for name in ("", "_attention", "_mask")}
        loss = super()._compute_loss(model, inputs, return_outputs)
        labels = turns[""].masked_fill(turns["_mask"] == 0, IGNORED)
        given = model(
            input_ids=turns[""], attention_mask=turns["_attention"], labels=labels, use_cache=False, fused_lm_head=True
        )
        nll = -given.log_probs.sum() / turns["_mask"][:, 1:].sum().clamp(min=1)
        self._metrics["train" if self.model.training else "eval"]["nll"].append(nll.item())
        if return_outputs:
            return loss[0] + self.nll_weight * nll, loss[1]
        return loss + self.nll_weight * nll

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
        if TURNS in examples[0] and "ref_chosen_logps" in examples[0]:  # the reference has no part in them
            batch |= _turns(examples, self.pad_token_id)
        return batch


def _turns(examples: Sequence[dict[str, Any]], padding: int) -> dict[str, torch.Tensor]:
    """The turns beside each pair of a batch, padded on the right: as many rows for each pair, those of the first turns
    first, so that a batch can be cut to its first pairs (:func:`rl.each_pair_once.cut`)."""
    most = max(1, *(len(example[TURNS]) for example in examples))
    places = [(example, turn) for turn in range(most) for example in examples]
    rows = [example[TURNS][turn] if turn < len(example[TURNS]) else [padding] for example, turn in places]
    masks = [example[f"{TURNS}_mask"][turn] if turn < len(example[TURNS]) else [0] for example, turn in places]
    longest = max(map(len, rows))

    def padded(values: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
        return torch.tensor([[*each, *[fill] * (longest - len(each))] for each in values])

    return {
        TURNS: padded(rows, padding),
        f"{TURNS}_attention": padded([[1] * len(row) for row in rows], 0),
        f"{TURNS}_mask": padded(masks, 0),
    }


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
    beside: Sequence[Sequence[WrittenTurn]] = (),
    nll_weight: float = 0.0,
) -> PairTrainer:
    """A trainer whose reference is ``model`` as it is now; figures under ``phase``. ``beside``: for each pair the turns
    whose negative log-likelihood, ``nll_weight`` times, is added to its batch's loss."""
    if is_deepspeed_zero3_enabled():
        gather_blocks(model)
    rows: dict[str, list[Any]] = {
        "prompt_ids": [list(pair.prompt_ids) for pair in pairs],
        "chosen_ids": [list(pair.chosen.token_ids) for pair in pairs],
        "rejected_ids": [list(pair.rejected.token_ids) for pair in pairs],
        "chosen_mask": [[int(not forced) for forced in pair.chosen.forced] for pair in pairs],
        "rejected_mask": [[int(not forced) for forced in pair.rejected.forced] for pair in pairs],
    }
    if any(beside):
        rows |= {
            TURNS: [[[*turn.prompt_ids, *turn.token_ids] for turn in turns] for turns in beside],
            f"{TURNS}_mask": [
                [[0] * len(turn.prompt_ids) + [int(not each) for each in turn.forced] for turn in turns]
                for turns in beside
            ],
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
        nll_weight=nll_weight,
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
