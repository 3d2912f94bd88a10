"""Keys as other suites name them, and their equivalents here.

Gathered from TRL, transformers' TrainingArguments, axolotl, LLaMA-Factory, verl, OpenRLHF and NeMo-RL. A word may mean
several keys: of those, the first that the section has is meant.
"""

from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from nanoalign.recipe.schema import Recipe
from nanoalign.stages import STAGES

KINDS = [entry.section for entry in STAGES.values()]
"""The sections of stages."""

STAGE = {
    "train.learning_rate": "lr actor_lr critic_lr max_lr peak_lr",
    "train.schedule": "lr_scheduler lr_scheduler_type scheduler scheduler_type lr_schedule lr_decay_style",
    "train.warmup_ratio": "lr_warmup_ratio warmup_steps lr_warmup_steps lr_warmup_steps_ratio num_warmup_steps warmup",
    "train.min_lr_ratio": "min_lr lr_min cosine_min_lr_ratio min_lr_rate",
    "train.decay_ratio": "num_decay_steps decay_steps cosine_constant_lr_ratio",
    "train.epochs": "num_epochs num_train_epochs total_epochs max_epochs n_epochs",
    "train.steps": "max_steps total_training_steps num_steps max_num_steps train_steps total_steps",
    "train.batch_size": "global_batch_size train_batch_size ppo_mini_batch_size mini_batch_size effective_batch_size "
    "train_global_batch_size total_batch_size",
    "train.micro_batch_size": "per_device_train_batch_size ppo_micro_batch_size ppo_micro_batch_size_per_gpu "
    "micro_train_batch_size train_micro_batch_size gradient_accumulation_steps per_device_batch_size",
    "train.weight_decay": "wd l2",
    "train.betas": "adam_beta1 adam_beta2 adam_betas",
    "train.max_grad_norm": "grad_clip gradient_clipping clip_grad max_norm gradient_clip_val grad_norm",
    "train.dtype": "bf16 fp16 torch_dtype precision mixed_precision compute_dtype",
    "train.gradient_checkpointing": "activation_checkpointing enable_gradient_checkpointing recompute",
    "train.checkpoint_every": "save_steps save_freq save_strategy save_interval saves_per_epoch save_period",
    "train.evaluate_every": "eval_steps eval_strategy evaluation_strategy evals_per_epoch test_freq eval_interval "
    "val_period eval_freq do_eval val_check_interval",
    "train.early_stop.patience": "early_stopping_patience early_stopping early_stopping_rounds",
    "train.early_stop.min_improvement": "early_stopping_threshold early_stopping_min_delta",
    "train.early_stop": "load_best_model_at_end metric_for_best_model",
    "train.lora": "adapter peft use_peft peft_config finetuning_type lora_config",
    "train.lora.rank": "lora_r lora_rank r",
    "train.lora.alpha": "lora_alpha",
    "train.lora.dropout": "lora_dropout",
    "train.lora.targets": "lora_target lora_target_modules target_modules lora_target_linear",
    "pack": "packing sample_packing neat_packing eval_packing padding_free packing_strategy",
    "pack.length": "cutoff_len sequence_len max_seq_length max_seq_len block_size seq_length",
    "pack.sequence_parallel": "sequence_parallel_size context_parallel_size sequence_parallel_degree cp_size "
    "ulysses_sequence_parallel_size context_parallel",
    "max_length": "max_sequence_length max_tokens_per_sample model_max_length",
    "from": "base_model model_name_or_path pretrained_model_name_or_path actor_model pretrain_model",
    "data": "dataset datasets dataset_name train_files train_dataset train_data prompt_data",
    "kind": "stage trainer rl_type algorithm adv_estimator advantage_estimator rl",
    "group_size": "num_generations n_samples_per_prompt num_generations_per_prompt rollout_n num_samples_per_prompt "
    "n_rollouts generations_per_prompt num_return_sequences",
    "reward": "reward_funcs reward_functions reward_weights reward_fn reward_manager verifiers",
    "reward_model": "reward_model_path reward_pretrain remote_rm_url reward_model_name_or_path rm",
    "loss": "loss_type policy_loss loss_agg_mode importance_sampling_level",
    "clip": "epsilon epsilon_high epsilon_low clip_ratio clip_ratio_low clip_ratio_high cliprange eps_clip clip_range",
    "kl": "beta kl_coef init_kl_coef kl_loss_coef kl_penalty use_kl_loss reference_policy_kl_penalty kl_beta",
    "beta": "pref_beta dpo_beta rl_beta",
    "rollouts.max_tokens": "max_completion_length max_new_tokens response_length generate_max_len max_response_length "
    "max_gen_len generation_max_length",
    "rollouts.temperature": "sampling_temperature",
    "rollouts.engine": "use_vllm vllm_mode generation_backend backend rollout_engine",
    "rollouts.engine.gpu_memory": "vllm_gpu_memory_utilization gpu_memory_utilization",
    "rollouts.engine.server": "vllm_server_base_url vllm_server_host vllm_server_port base_url",
    "rollouts.engine.sleep": "vllm_enable_sleep_mode vllm_sleep free_cache_engine enforce_sleep",
    "rollouts.top_p": "nucleus_p",
    "thinking.budgets": "thinking_budget thinking_budgets reasoning_budget",
    "thinking": "enable_thinking reasoning_effort",
    "environment": "env env_name environments env_cls",
    "rounds": "iterations num_rounds",
    "max_turns": "max_tool_calling_iterations max_assistant_turns max_steps_per_episode",
    "samples_per_task": "num_samples n_samples num_generations n_samples_per_prompt",
    "suites": "eval_dataset eval_datasets benchmarks val_files val_data test_data",
}
"""Key, as a path from a stage, to foreign names."""
TOP = {
    "model": "base_model model_name_or_path pretrained_model_name_or_path model_name model_path",
    "chat": "chat_template template prompt_template conversation_template",
    "launch.processes": "num_processes nproc_per_node num_gpus n_gpus_per_node world_size",
    "launch.zero": "deepspeed zero_stage deepspeed_config fsdp fsdp_config",
    "data": "dataset datasets dataset_name train_files dataset_mixer",
    "name": "run_name output_dir experiment_name project_name exp_name",
    "seed": "random_seed data_seed manual_seed",
    "stages": "pipeline phases",
}
"""The same, from the top of the recipe."""


def hint(word: str, owner: type[BaseModel]) -> str:
    """``; did you mean `x`?`` for a key of another suite that was written in the section ``owner``: a key there or
    below it, else where in the recipe it is. Empty where the table does not know the word."""
    stages, top = _named(STAGE, word), _named(TOP, word)
    if owner is Recipe:
        return _asked(top[0]) if top else _asked(f"stages.NAME.{stages[0]}") if stages else ""
    for path in stages:
        keys = path.split(".")
        for below in (".".join(keys[start:]) for start in range(len(keys))):
            if exists(below, owner):
                return _asked(below)
    if owner not in _sections(Recipe):
        return ""
    if owner not in KINDS and stages:
        return _asked(f"stages.NAME.{stages[0]}")
    return _asked(top[0], ", at the top of the recipe") if top else ""


def exists(path: str, section: type[BaseModel]) -> bool:
    """Whether a dotted path of keys leads from a section to one of its fields."""
    key, _, rest = path.partition(".")
    field = next((each for name, each in section.model_fields.items() if (each.alias or name) == key), None)
    return field is not None and (not rest or any(exists(rest, inner) for inner in _direct(field.annotation)))


def _named(table: dict[str, str], word: str) -> list[str]:
    return [path for path, names in table.items() if word.lower().replace("-", "_") in names.split()]


def _asked(path: str, where: str = "") -> str:
    return f"; did you mean `{path}`{where}?"


def _direct(annotation: Any) -> list[type[BaseModel]]:
    """The sections in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _direct(inner)]


@cache
def _sections(section: type[BaseModel]) -> frozenset[type[BaseModel]]:
    """A section and all those within it."""
    inner = [each for field in section.model_fields.values() for each in _direct(field.annotation)]
    return frozenset({section}.union(*(_sections(each) for each in inner)))
