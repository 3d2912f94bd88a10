"""TRL's RewardTrainer on token ids: a Bradley-Terry model, as in InstructGPT (arXiv 2203.02155). Its only importer."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import RewardConfig, RewardTrainer

from nanoalign.common.stage import StageLog
from nanoalign.models.config import Training
from nanoalign.models.training import training_arguments
from nanoalign.models.zero3 import gather_blocks
from nanoalign.rl.each_pair_once import EachPairOnce

CENTERING = 0.01
"""Weight of (r_chosen + r_rejected)^2 (Eisenstein et al. 2023, arXiv 2312.09244): pairs fix differences alone, and
GRPO's `preference` reward takes a score of 0 for as good as not."""


class PreferenceTrainer(EachPairOnce, RewardTrainer):
    """Reward training with this suite's schedules, checkpoints and log."""


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[list[int], list[int]]],
    train: Training,
    folder: Path,
    log: StageLog,
    device: str,
    seed: int,
) -> PreferenceTrainer:
    """A trainer over pairs of (chosen, rejected) token ids.

    Raises:
        ConfigError: as :func:`models.training.training_arguments`.
    """
    arguments = training_arguments(
        train, folder, len(pairs), device, seed, cls=RewardConfig,
        max_length=None, center_rewards_coefficient=CENTERING,
    )  # fmt: skip
    if is_deepspeed_zero3_enabled():
        gather_blocks(model)
    rows = {"chosen_ids": [chosen for chosen, _ in pairs], "rejected_ids": [rejected for _, rejected in pairs]}
    return PreferenceTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer, train=train,
        log=log,
    )  # fmt: skip
