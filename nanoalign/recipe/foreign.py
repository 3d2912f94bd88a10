"""Keys as other suites name them, and their equivalents here.

Gathered from TRL, transformers' TrainingArguments, axolotl, LLaMA-Factory, verl, OpenRLHF and NeMo-RL. A word may mean
several keys: of those, the first that the section has is meant.
"""

from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from nanoalign.data_recipes.config import Mixture, SourceUse
from nanoalign.recipe.schema import Recipe
from nanoalign.stages import STAGES

KINDS = [entry.section for entry in STAGES.values()]
"""The sections of stages."""

STAGE = {
    "train.learning_rate": "lr actor_lr critic_lr max_lr peak_lr learning_rate",
    "train.schedule": "lr_scheduler lr_scheduler_type scheduler scheduler_type lr_schedule lr_decay_style schedule",
    "train.warmup_ratio": "lr_warmup_ratio warmup_steps lr_warmup_steps lr_warmup_steps_ratio num_warmup_steps "
    "warmup warmup_ratio",
    "train.min_lr_ratio": "min_lr lr_min cosine_min_lr_ratio min_lr_rate",
    "train.decay_ratio": "num_decay_steps decay_steps cosine_constant_lr_ratio",
    "train.epochs": "num_epochs num_train_epochs total_epochs max_epochs n_epochs epochs",
    "train.steps": "max_steps total_training_steps num_steps max_num_steps train_steps total_steps steps",
    "train.batch_size": "global_batch_size train_batch_size ppo_mini_batch_size mini_batch_size "
    "effective_batch_size train_global_batch_size total_batch_size batch_size",
    "train.micro_batch_size": "per_device_train_batch_size ppo_micro_batch_size ppo_micro_batch_size_per_gpu "
    "micro_train_batch_size train_micro_batch_size gradient_accumulation_steps "
    "per_device_batch_size micro_batch_size ppo_micro_batch_size_per_device "
    "log_prob_micro_batch_size_per_gpu",
    "train.weight_decay": "wd l2 weight_decay",
    "train.betas": "adam_beta1 adam_beta2 adam_betas",
    "train.max_grad_norm": "grad_clip gradient_clipping clip_grad max_norm gradient_clip_val grad_norm max_grad_norm",
    "train.dtype": "bf16 fp16 torch_dtype precision mixed_precision compute_dtype dtype",
    "train.gradient_checkpointing": "activation_checkpointing enable_gradient_checkpointing recompute "
    "gradient_checkpointing",
    "train.checkpoint_every": "save_steps save_freq save_strategy save_interval saves_per_epoch save_period "
    "checkpoint_every",
    "train.evaluate_every": "eval_steps eval_strategy evaluation_strategy evals_per_epoch test_freq eval_interval "
    "val_period eval_freq do_eval val_check_interval",
    "train.early_stop.patience": "early_stopping_patience early_stopping early_stopping_rounds",
    "train.early_stop.min_improvement": "early_stopping_threshold early_stopping_min_delta",
    "train.early_stop": "load_best_model_at_end metric_for_best_model",
    "train.lora": "adapter peft use_peft peft_config finetuning_type lora_config use_lora lora",
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
    "reward": "reward_funcs reward_functions reward_weights reward_fn reward_manager verifiers "
    "custom_reward_function reward_func",
    "reward_model": "reward_model_path reward_pretrain remote_rm_url reward_model_name_or_path rm",
    "loss": "loss_type policy_loss loss_agg_mode importance_sampling_level",
    "clip": "epsilon epsilon_high epsilon_low clip_ratio clip_ratio_low clip_ratio_high cliprange eps_clip clip_range",
    "kl": "beta kl_coef init_kl_coef kl_loss_coef kl_penalty use_kl_loss reference_policy_kl_penalty kl_beta",
    "beta": "pref_beta dpo_beta rl_beta",
    "rollouts.max_tokens": "max_completion_length max_new_tokens response_length generate_max_len "
    "max_response_length max_gen_len generation_max_length max_tokens",
    "rollouts.temperature": "sampling_temperature temperature",
    "rollouts.engine": "use_vllm vllm_mode generation_backend backend rollout_engine",
    "rollouts.engine.gpu_memory": "vllm_gpu_memory_utilization gpu_memory_utilization",
    "rollouts.engine.server": "vllm_server_base_url vllm_server_host vllm_server_port base_url",
    "rollouts.engine.sleep": "vllm_enable_sleep_mode vllm_sleep free_cache_engine enforce_sleep",
    "rollouts.top_p": "nucleus_p top_p",
    "thinking.budgets": "thinking_budget thinking_budgets reasoning_budget",
    "thinking": "enable_thinking reasoning_effort",
    "environment": "env env_name environments env_cls tool_config_path interaction_config_path "
    "environment_factory rollout_func",
    "rounds": "iterations num_rounds",
    "max_turns": "max_tool_calling_iterations max_assistant_turns max_steps_per_episode max_user_turns max_env_steps",
    "samples_per_task": "num_samples n_samples num_generations n_samples_per_prompt",
    "suites": "eval_dataset eval_datasets benchmarks val_files val_data test_data",
    "train.offload_gb": "activation_offloading",
    "rollouts.batch_size": "gen_batch_size generation_batch_size val_batch_size max_num_seqs rollout_batch_size",
    "rollouts.engine.gpus": "vllm_tensor_parallel_size tensor_model_parallel_size tensor_parallel_size rollout_tp_size",
    "rollouts.engine.deadline_s": "vllm_server_timeout",
    "pack_tokens": "ppo_max_token_len_per_gpu use_dynamic_bsz max_token_len_per_gpu log_prob_max_token_len_per_gpu",
    "over_long": "truncation_mode truncation excess_length_strategy drop_long overlong_filter filter_overlong_prompts",
    "strip_reasoning": "no_think_ratio",
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
    "stages": "pipeline phases actor_rollout_ref actor rollout critic algorithm",
    "report_to": "wandb_project wandb_entity wandb_name wandb_run_id wandb_mode use_wandb logger loggers "
    "use_tensorboard mlflow_tracking_uri mlflow_experiment_name use_mlflow comet_project_name "
    "trackio_space_id use_trackio swanlab_project",
    "launch.nodes": "nnodes num_nodes num_machines",
}
"""The same, from the top of the recipe."""


MIXTURE = {
    "sources": "path paths dataset datasets data_files train_files files data_path dataset_name dataset_mixer",
    "deduplicate": "dedup dedupe dataset_exact_deduplication deduplication",
    "max_characters": "max_chars max_prompt_length",
    "on_bad_row": "skip_bad_rows ignore_errors on_error",
}
"""The same, in a mixture under `data`."""
SAID = {
    "`nanoalign push RUN STAGE --to USER/NAME` puts a stage's model on the hub":
        "push_to_hub hub_model_id hub_private_repo hub_strategy hub_token hub_revision",
    "a run that is started again resumes by itself":
        "resume_from_checkpoint auto_resume_from_checkpoints resume_mode resume_from_path resume",
    "the assistant's turns alone are trained on; `weight: 0` in a message leaves one out":
        "assistant_only_loss completion_only_loss train_on_inputs roles_to_train train_on_prompt mask_prompt",
    "every step is logged": "logging_steps logging_first_step log_freq logging_strategy log_every_n_steps",
    "the optimizer is AdamW": "optim optimizer optim_args adam_epsilon",
    "attention is chosen by itself, and packs are isolated with any":
        "attn_implementation flash_attention flash_attn use_flash_attention_2 sdp_attention xformers_attention",
    "nothing is quantized in training":
        "load_in_4bit load_in_8bit quantization quantization_config bnb_4bit_quant_type",
    "code of a model's repository is never run": "trust_remote_code",
    "data is always shuffled, by `seed`": "shuffle_dataset shuffle shuffle_merged_datasets",
    "the last two checkpoints are kept": "save_total_limit max_ckpt_to_keep keep_last_n",
    "rows of the usual layouts are recognised (docs/data.md), and `file:PATH#LAYOUT` names one":
        "dataset_text_field field_messages message_property_mappings prompt_key messages_key input_key",
    "the chat format brings its tokens": "special_tokens eos_token pad_token added_tokens",
    "one of 50 samples, 64 at most, is held out by itself": "val_set_size eval_split test_split_ratio val_size",
    "`nanoalign data prepare --workers N` renders and tokenizes ahead of a run":
        "dataset_num_proc dataset_processes preprocessing_num_workers dataset_prepared_path",
}  # fmt: skip
"""What has no key here, with the names that it has elsewhere."""


def hint(word: str, owner: type[BaseModel]) -> str:
    """``; did you mean `x`?`` for a key of another suite that was written in the section ``owner``: a key there or
    below it, else where in the recipe it is, else what there is in its place. Empty where no table knows the word."""
    return _key(word, owner) or next((f"; {said}" for said in _named(SAID, word)), "")


def _key(word: str, owner: type[BaseModel]) -> str:
    stages, top = _named(STAGE, word), _named(TOP, word)
    if owner in (Mixture, SourceUse) and (found := _named(MIXTURE, word)):
        return _asked(found[0])
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
