"""TRL's GRPOTrainer on completions, log-probabilities and rewards from outside. The only importer of its GRPO.

The route in is TRL's ``rollout_func``, which sees nothing but the prompts of a generation batch: so a prompt is the
number of its row, and one call brings token ids, engine log-probabilities, the mask of trained tokens, and the rewards.

Shapes: B completions, P prompt columns (padded on the left), C completion columns (padded on the right).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import add_fused_lm_head

from nanoalign.common.errors import ConfigError
from nanoalign.common.stage import StageLog
from nanoalign.models.config import Training
from nanoalign.models.hybrid import install
from nanoalign.models.training import RecipeTrainer, training_arguments
from nanoalign.rl.config import GRPOStage
from nanoalign.rl.prompts import row_schedule

LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "scale_rewards": "group"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "scale_rewards": "group"},
    "gspo": {"loss_type": "grpo", "scale_rewards": "group", "importance_sampling_level": "sequence"},
    "cispo": {"loss_type": "cispo", "scale_rewards": "group"},
}
"""What a recipe's `loss` means to TRL. GRPO: arXiv 2402.03300; Dr. GRPO: 2503.20783; DAPO: 2503.14476; GSPO:
2507.18071; CISPO: 2506.13585."""

MEAN_OVER_COMPLETIONS = ("grpo", "dr_grpo")
"""TRL's losses that divide by the number of completions (the others divide by the step's tokens)."""


@dataclass(frozen=True)
class Collected:
    """The completions of one optimizer step on this process, in the order of the prompts asked for."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    logprobs: list[list[float]]
    """The engine's, at temperature 1."""
    trained: list[list[int]]
    """0 where the budget rule wrote the token: out of the loss and of importance ratios."""
    rewards: dict[str, list[float]]
    """By reward name, unweighted."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Figures of the step for the log."""


Collect = Callable[[Sequence[int], int, int], Collected]
"""(rows of the prompts, repeated; optimizer step; number of the first one among all processes') to completions."""


class PolicyTrainer(RecipeTrainer, GRPOTrainer):
    """GRPO on a :data:`Collect`, without work for rows and columns that move nothing."""

    def __init__(self, *args: Any, collect: Collect, correct_engine: bool, **kwargs: Any) -> None:
        """``correct_engine``: the engine's log-probabilities are the old ones of the importance ratio, so that clipping
        bounds what a difference between engine and trainer can do (for engines with weights of their own).
        """
        self.collect, self.correct_engine = collect, correct_engine
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*rollout_func.*"
            )  # "experimental": our contract test watches it
            super().__init__(*args, rollout_func=lambda prompts, trainer: trainer.rollout(prompts), **kwargs)
        if self.args.bf16:
            # The head in float32, as rollouts/hf.py has it: bfloat16 rounds a logit of 20 by up to 0.06, which is
            # most of what engine and trainer would differ by. TRL's own switch for it does not know tied NemotronH.
            heads = [self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model, self.ref_model]
            for model in heads:
                if model is not None:
                    add_fused_lm_head(
                        model, self.temperature, cast_lm_head_to_fp32=True, outputs=("log_probs", "entropy")
                    )

    def rollout(self, prompts: Sequence[str]) -> dict[str, Any]:
        """TRL's ``rollout_func``. ``prompts`` are row numbers, each as often as it has completions on this process."""
        first = self.accelerator.process_index * len(prompts)
        collected = self.collect([int(prompt) for prompt in prompts], self.state.global_step, first)
        return {
            "prompt_ids": collected.prompt_ids,
            "completion_ids": collected.completion_ids,
            "logprobs": collected.logprobs,
            "env_mask": collected.trained,
            "metrics": collected.metrics,
            **{f"reward {name}": values for name, values in collected.rewards.items()},
        }

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: checkpoints are for resuming only."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.correct_engine:
            # Engines report forced tokens as they like (-9999, over HTTP): their ratio could be infinite, and times the
            # mask's 0 no number.
            trained = batch["tool_mask"] * batch["completion_mask"] != 0
            batch["old_per_token_logps"] = batch["sampling_per_token_logps"].masked_fill(~trained, 0.0)
        return batch

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        rows = len(inputs["advantages"])
        trimmed = trim(inputs, drop_without_signal=self.beta == 0.0)
        loss: torch.Tensor = super()._compute_loss(model, trimmed)
        if self.loss_type in MEAN_OVER_COMPLETIONS:
            loss = loss * (len(trimmed["advantages"]) / rows)
        return loss


def trim(inputs: dict[str, Any], drop_without_signal: bool) -> dict[str, Any]:
    """A micro batch without columns that are padding in every row and, if asked, without rows whose advantage is 0:
    they add nothing to the gradient where there is no KL term. One row is always kept, for a loss to differentiate.

    Tensors [B, P] start with ``prompt``; all other tensors of two dimensions are [B, C].
    """
    rows_B = inputs["advantages"] != 0
    if not drop_without_signal:
        rows_B = torch.ones_like(rows_B)
    elif not bool(rows_B.any()):
        rows_B[0] = True
    prompt = int(inputs["prompt_mask"][rows_B].sum(1).max())
    completion = int(inputs["completion_mask"][rows_B].sum(1).max())
    trimmed = {}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            value = value[rows_B]
            if value.dim() == 2:
                value = value[:, -prompt:] if name.startswith("prompt") else value[:, :completion]
        trimmed[name] = value
    return trimmed


def make_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    stage: GRPOStage,
    prompts: int,
    collect: Collect,
    folder: Path,
    log: StageLog,
    device: str,
    seed: int,
    *,
    correct_engine: bool = False,
) -> PolicyTrainer:
    """A trainer over ``prompts`` rows; checkpoints in ``folder``.

    Raises:
        ConfigError: the batch is no multiple of the group, the sampling is greedy, or as
            :func:`models.training.training_arguments`.
    """
    train: Training = stage.train
    if train.batch_size % stage.group_size:
        raise ConfigError(f"train.batch_size: {train.batch_size} is no multiple of group_size {stage.group_size}")
    if stage.rollouts.temperature == 0:
        raise ConfigError("rollouts.temperature: 0 samples the same completion every time; GRPO needs different ones")
    loss = dict(LOSSES[stage.loss])
    low, high = stage.clip
    arguments = training_arguments(
        train, folder, prompts * stage.group_size, device, seed, cls=GRPOConfig,
        include_num_input_tokens_seen="no",  # TRL counts what it generates
        num_generations=stage.group_size,
        max_completion_length=stage.rollouts.max_tokens,
        temperature=stage.rollouts.temperature,
        beta=stage.kl,
        epsilon=low,
        # TRL caps CISPO's ratio at epsilon_high itself, that of the others at 1 + epsilon_high.
        epsilon_high=1 + high if stage.loss == "cispo" else high,
        reward_weights=list(stage.reward.values()),
        shuffle_dataset=False,
        **loss,
    )  # fmt: skip
    schedule = row_schedule(prompts, arguments.max_steps * (train.batch_size // stage.group_size), seed)
    trainer = PolicyTrainer(
        model=model,
        reward_funcs=[_reward_column(name, number == 0) for number, name in enumerate(stage.reward)],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [str(row) for row in schedule]}),
        processing_class=tokenizer,
        train=train,
        log=log,
        collect=collect,
        correct_engine=correct_engine,
    )
    if trainer.ref_model is not None:
        install(trainer.ref_model)
    return trainer


def _reward_column(name: str, logs_metrics: bool) -> Callable[..., list[float]]:
    """A TRL reward function that hands on what the rollout brought along."""

    def column(
        metrics: list[dict[str, float]], log_metric: Callable[[str, float], None], **columns: Any
    ) -> list[float]:
        if logs_metrics:
            for metric, value in metrics[0].items():
                log_metric(metric, value)
        values: list[float] = columns[f"reward {name}"]
        if not all(math.isfinite(value) for value in values):
            raise ConfigError(
                f"reward {name!r} returned {next(v for v in values if not math.isfinite(v))}: not a number"
            )
        return values

    column.__name__ = name
    return column
