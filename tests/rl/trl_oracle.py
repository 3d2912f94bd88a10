"""TRL's GRPOTrainer on the completions of a :data:`rl.collect.Collect`: what our step is compared with."""

import math
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from nanoalign.common.stage import StageLog
from nanoalign.models.hybrid import install
from nanoalign.models.training import RecipeTrainer, training_arguments
from nanoalign.rl.collect import Collect
from nanoalign.rl.config import GRPOStage

LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "scale_rewards": "group"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "scale_rewards": "group"},
    "gspo": {"loss_type": "grpo", "scale_rewards": "group", "importance_sampling_level": "sequence"},
    "cispo": {"loss_type": "cispo", "scale_rewards": "group"},
}


class Oracle(RecipeTrainer, GRPOTrainer):
    collect: Collect
    correct_engine: bool

    def rollout(self, prompts: list[str]) -> dict[str, Any]:
        collected = self.collect(self.state.global_step, 0, len(prompts))
        return {
            "prompt_ids": collected.prompt_ids, "completion_ids": collected.completion_ids,
            "logprobs": collected.logprobs, "env_mask": collected.trained,
            **{f"reward {name}": values for name, values in collected.rewards.items()},
        }  # fmt: skip

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.correct_engine:
            trained = batch["tool_mask"] * batch["completion_mask"] != 0
            batch["old_per_token_logps"] = batch["sampling_per_token_logps"].masked_fill(~trained, 0.0)
        return batch


def oracle(
    model: Any, tokenizer: Any, stage: GRPOStage, collect: Collect, folder: Path, correct_engine: bool
) -> Oracle:  # fmt: skip
    low, high = stage.clip
    arguments = training_arguments(
        stage.train, folder, stage.train.batch_size, "cpu", 3, cls=GRPOConfig,
        include_num_input_tokens_seen="no", num_generations=stage.group_size,
        max_completion_length=stage.rollouts.max_tokens, temperature=stage.rollouts.temperature, beta=stage.kl,
        epsilon=low, epsilon_high=1 + high if stage.loss == "cispo" else high,
        reward_weights=list(stage.reward.values()), shuffle_dataset=False, **LOSSES[stage.loss],
    )  # fmt: skip

    def column(name: str):
        def score(**columns: Any) -> list[float]:
            assert all(math.isfinite(value) for value in columns[f"reward {name}"])
            return columns[f"reward {name}"]

        score.__name__ = name
        return score

    groups = stage.train.steps * (stage.train.batch_size // stage.group_size)
    trainer = Oracle(
        model=model, reward_funcs=[column(name) for name in stage.reward], args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [str(group) for group in range(groups)]}),
        processing_class=tokenizer, train=stage.train, log=StageLog(folder),
        rollout_func=lambda prompts, trainer: trainer.rollout(prompts),
    )  # fmt: skip
    if trainer.ref_model is not None:
        install(trainer.ref_model)
    trainer.collect, trainer.correct_engine = collect, correct_engine
    return trainer
