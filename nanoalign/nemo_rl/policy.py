"""A GRPO stage for NeMo-RL: prompts as token ids in their thinking mode, our rewards as its environment."""

import json
from collections.abc import Sequence
from typing import Any

from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.conversation import Message
from nanoalign.nemo_rl.settings import PLUGIN, Export, Target, common_notes, merged, training
from nanoalign.reward.config import is_own
from nanoalign.reward.table import REWARDS
from nanoalign.rl.collect import Prompt
from nanoalign.rl.config import GRPOStage

LOSSES: dict[str, dict[str, bool]] = {
    "grpo": {"token_level_loss": False, "sequence_level_importance_ratios": False},
    "dapo": {"token_level_loss": True, "sequence_level_importance_ratios": False},
    "gspo": {"token_level_loss": False, "sequence_level_importance_ratios": True},
}
"""Those of our losses that NeMo-RL v0.6 has."""
IN_PROCESS = ("preference",)
"""Rewards that need another model of the run besides the trainer's."""


def export_grpo(
    target: Target, stage: GRPOStage, prompts: Sequence[Prompt], chat: ChatFormat, chat_name: str, tokenizer: Any
) -> Export:
    """Raises ConfigError, naming the recipe's key, for what NeMo-RL v0.6 cannot do."""
    _refuse(target, stage, chat, tokenizer)
    groups = stage.train.batch_size // stage.group_size
    longest = max(len(prompt.ids) for prompt in prompts) + stage.rollouts.max_tokens
    judge = None if stage.judge is None else stage.judge.model_dump(mode="json")
    config = merged(
        training(target, "grpo", stage.train, len(prompts), groups, stage.train.batch_size, longest),
        {
            "grpo": {
                "num_prompts_per_step": groups,
                "num_generations_per_prompt": stage.group_size,
                "max_rollout_turns": 1,
                "normalize_rewards": True,
                "use_leave_one_out_baseline": False,
                "skip_reference_policy_logprobs_calculation": stage.kl == 0,
            },
            "loss_fn": {
                "reference_policy_kl_penalty": stage.kl,
                "reference_policy_kl_type": "k3",
                "ratio_clip_min": stage.clip[0],
                "ratio_clip_max": stage.clip[1],
                "use_importance_sampling_correction": True,
                **LOSSES[stage.loss],
            },
            "policy": {
                "generation": {
                    "backend": "vllm",
                    "max_new_tokens": stage.rollouts.max_tokens,
                    "temperature": stage.rollouts.temperature,
                    "top_p": stage.rollouts.top_p,
                    "stop_token_ids": [tokenizer.convert_tokens_to_ids(text) for text in chat.stop],
                    **({"vllm_kwargs": {"mamba_ssm_cache_dtype": "float32"}} if target.hybrid else {}),
                },
            },
            "data": {
                "train": {"split_validation_size": 0.0, "env_name": "nanoalign"},
                "default": {"prompt_file": None, "processor": "nanoalign_grpo", "env_name": "nanoalign"},
            },
            "env": {
                "nanoalign": {
                    "reward": stage.model_dump(mode="json")["reward"],
                    "judge": judge,
                    "chat": chat_name,
                    "tokenizer": target.model,
                    "max_tokens": stage.rollouts.max_tokens,
                }
            },
        },
    )
    return Export("grpo", config, [grpo_row(prompt) for prompt in prompts], _notes(target, stage))


def grpo_row(prompt: Prompt) -> dict[str, Any]:
    """Token ids, the mode, and as JSON (tasks differ in their keys) what the rewards need to know."""
    known = {"messages": [_message(message) for message in prompt.messages], "task": dict(prompt.task)}
    return {
        "prompt_ids": list(prompt.ids),
        "thinking": prompt.mode.thinking,
        "known": json.dumps(known, ensure_ascii=False),
    }


def _message(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}


def _refuse(target: Target, stage: GRPOStage, chat: ChatFormat, tokenizer: Any) -> None:
    if stage.loss not in LOSSES:
        raise target.refuse("loss", f"NeMo-RL v0.6 has no {stage.loss}; it has {', '.join(LOSSES)}")
    if any(budget is not None for budget in stage.thinking.budgets):
        raise target.refuse(
            "thinking.budgets", f"NeMo-RL v0.6 sets no budget per prompt, got {stage.thinking.budgets}; [null] works"
        )
    for name in stage.reward:
        if name in IN_PROCESS:
            possible = ", ".join(each for each in REWARDS if each not in IN_PROCESS)
            raise target.refuse(f"reward.{name}", f"our reward models do not run inside NeMo-RL; possible: {possible}")
    tags = chat.think_open + "x" + chat.think_close
    kept = tokenizer.decode(tokenizer.encode(tags, add_special_tokens=False), skip_special_tokens=True)
    if kept.replace(" ", "") != tags:
        raise target.refuse("thinking", f"NeMo-RL leaves special tokens out of what rewards see; {tags} reads {kept!r}")


def _notes(target: Target, stage: GRPOStage) -> list[tuple[str, str]]:
    return [
        *common_notes(target, stage.train),
        ("data, chat, thinking.on", "rendered here: `data.jsonl` holds each prompt's token ids in its thinking mode"),
        ("reward, judge", f"`env.nanoalign`, run by `{PLUGIN}.py`; it sees text, so that a turn counts as finished "
         "where it has fewer tokens than `max_tokens`"),
        *([("reward", "your own functions are named by their absolute paths: on the cluster they must lie there too")]
          if any(map(is_own, stage.reward)) else []),
        ("group_size, train.batch_size", "`grpo.num_generations_per_prompt` and `num_prompts_per_step`"),
        ("loss, clip, kl", "`loss_fn` (k3 estimate of the KL; advantages over the group's mean and deviation)"),
        ("rollouts.engine", "always vLLM, colocated; its log-probabilities correct the importance ratio"),
        ("rollouts.grace, batch_size", "no meaning there: no budgets, and vLLM batches by itself"),
        ("max_mismatch", "not a gate there: watch its metric `token_mult_prob_error`, which is the same figure"),
        *([("train.evaluate_every, early_stop, held_out", "not measured there: play or evaluate the checkpoint here")]
          if stage.train.evaluate_every is not None else []),
    ]  # fmt: skip
