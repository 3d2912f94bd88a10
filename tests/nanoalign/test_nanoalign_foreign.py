"""Keys of other suites lead to ours: every target exists, and the hint is seen from where the mistake was made."""

from pathlib import Path

import pytest

from nanoalign.recipe.foreign import KINDS, STAGE, TOP, exists, hint
from nanoalign.recipe.load import RecipeError, load
from nanoalign.recipe.schema import Recipe


@pytest.mark.parametrize("path", STAGE)
def test_every_target_is_a_key_of_a_stage(path: str) -> None:
    assert any(exists(path, kind) for kind in KINDS)


@pytest.mark.parametrize("path", TOP)
def test_every_target_is_a_key_at_the_top(path: str) -> None:
    assert exists(path, Recipe)


def test_a_foreign_word_is_no_key_of_ours_in_the_same_place() -> None:
    """Else it would never be looked up there."""
    for path, words in STAGE.items():
        for word in words.split():
            for kind in KINDS:
                assert not (exists(path, kind) and exists(word, kind)), f"{word} is a key of {kind.__name__} itself"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("stages.instruct.num_generations=8", "`group_size`"),
        ("stages.workplace.num_generations=8", "`samples_per_task`"),
        ("stages.instruct.max_completion_length=256", "`rollouts.max_tokens`"),
        ("stages.instruct.rollouts.max_completion_length=256", "`max_tokens`"),
        ("stages.instruct.lr=1e-5", "`train.learning_rate`"),
        ("stages.instruct.train.lr=1e-5", "`learning_rate`"),
        ("stages.instruct.reward_funcs=[math]", "`reward`"),
        ("stages.instruct.beta=0.04", "`kl`"),
        ("stages.instruct.train.num_generations=8", "`stages.NAME.group_size`"),
        ("stages.foundation.sample_packing=true", "`pack`"),
        ("stages.foundation.train.lora_r=8", "`lora.rank`"),
        ("stages.foundation.train.lora={r: 8}", "`rank`"),
        ("stages.foundation.deepspeed=zero3.json", "`launch.zero`, at the top of the recipe"),
        ("stages.foundation.dataset=mine", "`data`"),
        ("base_model=me/mine", "`model`"),
        ("lr=1e-5", "`stages.NAME.train.learning_rate`"),
        ("gizmo=1e-5", "known:"),  # no table knows it; the nearest by spelling is asked for, and there is none
        ("suites.chat.dataset=mine", "`data`"),
        ("stages.instruct.reward_gpus=1", "`reward_gpu`"),  # ours, misspelt
    ],
)
def test_the_hint_is_seen_from_where_it_was_written(override: str, meant: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("miniature", [override])
    assert f"did you mean {meant}" in str(caught.value) or meant in str(caught.value), str(caught.value)


def test_a_section_outside_of_recipes_gets_no_hint_into_one() -> None:
    from nanoalign.data_recipes.synthetic.config import LongContext

    assert hint("lr", LongContext) == ""


def test_a_copied_recipe_of_another_suite(tmp_path: Path) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text("base_model: me/mine\ndatasets: []\nnum_epochs: 3\nlr_scheduler: cosine\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(str(file))
    for meant in ("`model`", "`data`", "`stages.NAME.train.epochs`", "`stages.NAME.train.schedule`"):
        assert f"did you mean {meant}?" in str(caught.value)


THEIRS = {
    "TRL": {
        "stages.foundation": "lr_scheduler_type=train.schedule num_train_epochs=train.epochs max_steps=train.steps "
        "per_device_train_batch_size=train.micro_batch_size gradient_accumulation_steps=train.micro_batch_size "
        "bf16=train.dtype packing=pack max_seq_length=pack.length save_steps=train.checkpoint_every "
        "eval_steps=train.evaluate_every load_best_model_at_end=train.early_stop peft_config=train.lora "
        "model_name_or_path=from dataset_name=data activation_offloading=train.offload_gb truncation_mode=over_long",
        "stages.instruct": "num_generations=group_size max_completion_length=rollouts.max_tokens epsilon=clip beta=kl "
        "loss_type=loss reward_funcs=reward reward_weights=reward "
        "temperature=rollouts.temperature top_p=rollouts.top_p "
        "use_vllm=rollouts.engine vllm_mode=rollouts.engine vllm_server_base_url=rollouts.engine.server "
        "vllm_gpu_memory_utilization=rollouts.engine.gpu_memory vllm_tensor_parallel_size=rollouts.engine.gpus "
        "vllm_enable_sleep_mode=rollouts.engine.sleep generation_batch_size=rollouts.batch_size",
        "stages.workplace": "environment_factory=environment max_tool_calling_iterations=max_turns",
        "": "run_name=name output_dir=name chat_template=chat deepspeed=launch.zero",
    },
    "axolotl": {
        "stages.foundation": "sample_packing=pack sequence_len=pack.length micro_batch_size=train.micro_batch_size "
        "num_epochs=train.epochs lr_scheduler=train.schedule warmup_steps=train.warmup_ratio adapter=train.lora "
        "lora_r=train.lora.rank lora_alpha=train.lora.alpha lora_dropout=train.lora.dropout "
        "lora_target_modules=train.lora.targets evals_per_epoch=train.evaluate_every "
        "saves_per_epoch=train.checkpoint_every "
        "early_stopping_patience=train.early_stop.patience cosine_min_lr_ratio=train.min_lr_ratio "
        "context_parallel_size=pack.sequence_parallel excess_length_strategy=over_long datasets=data",
        "": "base_model=model wandb_project=report_to wandb_entity=report_to use_wandb=report_to "
        "mlflow_experiment_name=report_to comet_project_name=report_to",
        "data.tools": "path=sources dataset_exact_deduplication=deduplicate",
    },
    "verl": {
        "stages.instruct": "ppo_mini_batch_size=train.batch_size ppo_micro_batch_size_per_gpu=train.micro_batch_size "
        "clip_ratio=clip clip_ratio_low=clip clip_ratio_high=clip kl_loss_coef=kl use_kl_loss=kl loss_agg_mode=loss "
        "adv_estimator=kind response_length=rollouts.max_tokens gpu_memory_utilization=rollouts.engine.gpu_memory "
        "tensor_model_parallel_size=rollouts.engine.gpus free_cache_engine=rollouts.engine.sleep "
        "use_dynamic_bsz=pack_tokens ppo_max_token_len_per_gpu=pack_tokens custom_reward_function=reward "
        "reward_manager=reward grad_clip=train.max_grad_norm total_training_steps=train.steps test_freq=",
        "stages.workplace": "tool_config_path=environment max_assistant_turns=max_turns",
        "": "logger=report_to project_name=name experiment_name=name n_gpus_per_node=launch.processes "
        "nnodes=launch.nodes "
        "actor_rollout_ref=stages",
    },
}  # fmt: skip


@pytest.mark.parametrize("suite", THEIRS)
def test_the_usual_names_of_other_suites_are_answered(suite: str) -> None:
    for place, pairs in THEIRS[suite].items():
        for word, _, meant in (pair.partition("=") for pair in pairs.split()):
            with pytest.raises(RecipeError) as caught:
                load("miniature", [f"{place}.{word}=1".lstrip(".")], note=lambda _: None)
            if meant:
                assert f"did you mean `{meant}`" in str(caught.value), f"{word}: {caught.value}"


def test_they_are_many() -> None:
    counts = {suite: sum(len(pairs.split()) for pairs in places.values()) for suite, places in THEIRS.items()}
    assert min(counts.values()) >= 20 and sum(counts.values()) >= 60


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("push_to_hub=true", "unknown key; `nanoalign push RUN STAGE --to USER/NAME`"),
        ("stages.foundation.train.resume_from_checkpoint=true", "resumes by itself"),
        ("stages.foundation.train_on_inputs=false", "the assistant's turns alone are trained on"),
        ("stages.foundation.train.optim=adamw_torch", "the optimizer is AdamW"),
        ("stages.instruct.train.logging_steps=1", "every step is logged"),
        ("load_in_4bit=true", "nothing is quantized"),
        ("trust_remote_code=true", "never run"),
        ("data.tools.dataset_text_field=text", "docs/data.md"),
        ("val_set_size=0.05", "held out by itself"),
    ],
)
def test_what_has_no_key_is_answered_in_words(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("miniature", [override])
    assert said in str(caught.value)
