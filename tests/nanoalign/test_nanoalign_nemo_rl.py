"""The NeMo-RL export: its schema table, what maps to what, what is refused, and the files it writes."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.conversation import Message
from nanoalign.data_recipes.tokenize import Example
from nanoalign.models.config import LoRA, Training
from nanoalign.models.loading import load_tokenizer
from nanoalign.models.schedules import schedule_curve
from nanoalign.nemo_rl.folder import write_export
from nanoalign.nemo_rl.policy import export_grpo
from nanoalign.nemo_rl.preference import export_dpo
from nanoalign.nemo_rl.schema import check_config, known_keys, require
from nanoalign.nemo_rl.settings import Target, schedule
from nanoalign.nemo_rl.supervised import Packing, export_sft
from nanoalign.rl.collect import Prompt
from nanoalign.rl.config import DPOStage, GRPOStage
from nanoalign.rollouts.base import Mode

PLAIN = {"int": 1, "float": 0.5, "bool": True, "str": "x", "list": [], "null": None, "any": 1}
TRAIN = Training(learning_rate=1e-3, batch_size=8, micro_batch_size=2, steps=10, lora=LoRA())
EXAMPLES = [Example([1, 2, 3, 4], [0, 0, 1, 1]), Example([5, 6, 7], [0, 1, 0])] * 10


def whole(algorithm: str) -> dict:
    """A config with every required key, of the first type its table names, and nothing else."""
    table = known_keys(algorithm)
    config: dict = {}
    for name, key in sorted(table.items()):
        if not key.required:
            continue
        *sections, last = name.split(".")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        kind = key.types[0]
        section.setdefault(last, {} if kind == "dict" else PLAIN.get(kind, kind.strip('"')))
    return config


def without(config: dict, name: str) -> dict:
    first, _, rest = name.partition(".")
    if not rest:
        return {key: value for key, value in config.items() if key != first}
    return {key: without(value, rest) if key == first else value for key, value in config.items()}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("builtin:miniature-base")


@pytest.fixture
def target(tmp_path) -> Target:
    return Target("instruct", "/models/base", False, 2, 2, 7, tmp_path / "out")


def grpo_stage(**changes) -> GRPOStage:
    settings = {
        "kind": "grpo", "from": "base", "data": "m", "reward": {"task": 1.0, "format": 0.5}, "group_size": 4,
        "rollouts": {"max_tokens": 64}, "train": {"learning_rate": 1e-3, "batch_size": 16, "steps": 5}, **changes,
    }  # fmt: skip
    return GRPOStage.model_validate(settings)


def grpo(target, tokenizer, **changes):
    prompts = [
        Prompt((1, 2, 3), (Message("user", "What is 6 * 7?"),), Mode(bool(n % 2)), {"kind": "math", "answer": "42"})
        for n in range(8)
    ]
    return export_grpo(
        target, grpo_stage(**changes), prompts, chat_format("nemotron-nano-v2"), "nemotron-nano-v2", tokenizer
    )


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "grpo"])
def test_whole_configs_pass_and_each_required_key_is_missed(algorithm: str) -> None:
    config = whole(algorithm)
    check_config(config, algorithm)
    require(config, algorithm)
    required = [name for name, key in known_keys(algorithm).items() if key.required]
    assert len(required) == {"sft": 57, "dpo": 62, "grpo": 100}[algorithm]
    for name in required:
        with pytest.raises(ConfigError, match=f"missing: .*{name}"):
            require(without(config, name), algorithm)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"grpo": {"max_num_stepz": 1}}, r"grpo\.max_num_stepz: unknown key; did you mean `grpo\.max_num_steps`\?"),
        ({"polcy": {}}, r"polcy: unknown key; did you mean `policy`\?"),
        ({"grpo": {"max_num_steps": "1"}}, r"grpo\.max_num_steps: expected int, got '1'"),
        ({"grpo": {"max_num_steps": True}}, "expected int, got True"),
        ({"grpo": {"normalize_rewards": 1}}, "expected bool, got 1"),
        ({"policy": {"optimizer": {"kwargs": {"learning_rate": 1.0}}}}, r"kwargs\.learning_rate: unknown key"),
        ({"policy": {"generation": {"vllm_cfg": {"kv_cache_dtype": "fp9"}}}}, "expected .*fp8.*got 'fp9'"),
        ({"policy": None}, "policy: expected dict, got None"),
    ],
)
def test_typos_and_wrong_types_are_named(config: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_config(config, "grpo")


def test_interpolations_integers_for_floats_and_free_sections_pass() -> None:
    check_config({"policy": {"generation": {"max_new_tokens": "${policy.max_total_sequence_length}"}}}, "grpo")
    check_config({"loss_fn": {"reference_policy_kl_penalty": 0}, "env": {"ours": {"any": {"thing": 1}}}}, "grpo")
    with pytest.raises(ConfigError, match="not a key of every version"):
        check_config({"data_plane": {"enabled": True}}, "grpo", exported=True)


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd"])
@pytest.mark.parametrize(("steps", "warmup"), [(40, 0.1), (7, 0.0), (1, 0.05), (3, 0.4)])
def test_the_schedule_is_ours_at_every_step(kind: str, steps: int, warmup: float) -> None:
    train = Training(learning_rate=2e-3, schedule=kind, warmup_ratio=warmup, decay_ratio=0.4, steps=steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=train.learning_rate)
    *parts, ends = schedule(train, steps)
    schedulers = [
        getattr(torch.optim.lr_scheduler, p["name"].rpartition(".")[2])(optimizer, **p["kwargs"]) for p in parts
    ]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers, ends["milestones"])
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(schedule_curve(train, steps))


def test_sft_rows_keep_ids_and_masks_and_packs_become_batches_of_documents(target: Target) -> None:
    export = export_sft(target, TRAIN, iter(EXAMPLES), 20, 4, None)
    assert list(export.rows)[:2] == [
        {"input_ids": [1, 2, 3, 4], "lengths": [2, 2], "trained": [0, 1]},
        {"input_ids": [5, 6, 7], "lengths": [1, 1, 1], "trained": [0, 1, 0]},
    ]
    check_config(export.config, "sft", exported=True)
    assert export.config["policy"]["dtensor_cfg"]["lora_cfg"]["dim"] == TRAIN.lora.rank
    assert export.config["sft"]["max_num_steps"] == 10 and export.config["sft"]["max_num_epochs"] == 5
    packing = Packing(tokens=8, packs=40 // 4)
    train = TRAIN.model_copy(update={"batch_size": 2, "steps": None})
    packed = export_sft(target, train, [], 20, 4, packing).config["policy"]
    assert packed["train_global_batch_size"] == 4 and packed["sequence_packing"]["train_mb_tokens"] == 8
    padded = export_sft(replace(target, hybrid=True), train, [], 20, 4, packing).config["policy"]
    assert padded["sequence_packing"]["enabled"] is False and padded["dtensor_cfg"]["automodel_kwargs"]["force_hf"]


def test_what_does_not_divide_or_fill_a_batch_is_named(target: Target) -> None:
    with pytest.raises(ConfigError, match=r"stages\.instruct\.train\.batch_size: 8 is not a multiple of 2 .* x 6"):
        export_sft(replace(target, nodes=3), TRAIN, EXAMPLES, 20, 4, None)
    with pytest.raises(DataError, match="5 rows do not fill a batch of 8"):
        export_sft(target, TRAIN, EXAMPLES, 5, 4, None)


def test_grpo_settings_map(target: Target, tokenizer) -> None:
    judge = {"url": "http://judge:8000/v1", "model": "m"}
    export = grpo(target, tokenizer, reward={"judge": 1.0, "math": 1.0}, judge=judge, loss="gspo", kl=0.01)
    config = export.config
    check_config(config, "grpo", exported=True)
    assert config["grpo"]["num_prompts_per_step"] == 4 and config["grpo"]["num_generations_per_prompt"] == 4
    assert config["loss_fn"]["sequence_level_importance_ratios"] and not config["loss_fn"]["token_level_loss"]
    assert config["policy"]["max_total_sequence_length"] == 3 + 64
    assert config["policy"]["generation"]["stop_token_ids"] == [tokenizer.convert_tokens_to_ids("<SPECIAL_12>")]
    assert config["env"]["nanoalign"]["judge"]["url"] == judge["url"]
    row = list(export.rows)[1]
    assert row["prompt_ids"] == [1, 2, 3] and row["thinking"] is True
    assert json.loads(row["known"])["task"] == {"kind": "math", "answer": "42"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": "cispo"}, r"stages\.instruct\.loss: NeMo-RL v0\.6 has no cispo"),
        ({"thinking": {"budgets": [None, 8]}}, r"stages\.instruct\.thinking\.budgets"),
        ({"reward": {"preference": 1.0}, "reward_model": "j"}, r"stages\.instruct\.reward\.preference"),
    ],
)
def test_what_nemo_rl_cannot_do_is_refused_by_its_key(target: Target, tokenizer, changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        grpo(target, tokenizer, **changes)


def test_dpo_takes_a_rounds_pairs_without_forced_tokens(target: Target, tmp_path: Path) -> None:
    stage = DPOStage.model_validate({
        "kind": "dpo", "from": "base", "environment": "workbench", "tasks_per_round": 4, "held_out_tasks": 4,
        "rollouts": {"max_tokens": 8}, "train": {"learning_rate": 1e-6, "batch_size": 4}, "beta": 0.2,
    })  # fmt: skip
    pairs = tmp_path / "round-1" / "pairs.jsonl"
    with pytest.raises(ConfigError, match=r"stages\.instruct\.rounds: .*no on-policy DPO.*round-1"):
        export_dpo(target, stage, pairs)
    pairs.parent.mkdir()
    pair = {"prompt_ids": [1], "chosen": {"token_ids": [2, 3], "forced": [False] * 2}}
    forced = [pair | {"rejected": {"token_ids": [4], "forced": [n == 0]}} for n in range(9)]
    pairs.write_text("\n".join(map(json.dumps, forced)))
    export = export_dpo(target, stage, pairs)
    check_config(export.config, "dpo", exported=True)
    assert list(export.rows) == [{"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]}] * 8
    assert export.config["dpo"]["reference_policy_kl_penalty"] == 0.2
    assert any("1 pairs with forced tokens" in note for _, note in export.notes)


def test_the_folder_is_whole_and_its_scripts_parse(target: Target, tokenizer) -> None:
    write_export(grpo(target, tokenizer), target, target.folder, {"partition": "batch", "account": None})
    names = {path.name for path in target.folder.iterdir()}
    assert names == {"config.yaml", "data.jsonl", "nanoalign_nemo_rl.py", "start.py", "launch.sh", "README.md"}
    config = yaml.safe_load((target.folder / "config.yaml").read_text())
    assert config["defaults"] == "${oc.env:NEMO_RL_ROOT}/examples/configs/grpo_math_1B.yaml"
    check_config(config, "grpo", exported=True)
    for name in ("nanoalign_nemo_rl.py", "start.py"):
        compile((target.folder / name).read_text(), name, "exec")
    assert subprocess.run(["bash", "-n", target.folder / "launch.sh"], check=False).returncode == 0
    launch = (target.folder / "launch.sh").read_text()
    assert "--nodes=2 --gres=gpu:2 --job-name=instruct --partition=batch ray.sub" in launch
    assert "`max_mismatch`" in (target.folder / "README.md").read_text()


def test_a_config_that_nemo_rl_does_not_know_is_not_written(target: Target, tokenizer) -> None:
    export = grpo(target, tokenizer)
    export.config["grpo"]["num_prompt_per_step"] = 1
    with pytest.raises(ConfigError, match=r"did you mean `grpo\.num_prompts_per_step"):
        write_export(export, target, target.folder, {})
    assert not target.folder.exists()
