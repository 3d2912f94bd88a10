"""`nanoalign export nemo-rl`: whole recipes' stages through the command line."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.nemo_rl.schema import check_config

RECIPE = """\
name: small
seed: 1
model: builtin:miniature-base
chat: nemotron-nano-v2
data:
  mixed: {sources: {miniature:math: 24, miniature:chat: 8}}
  asks: {sources: {miniature:instruction: 8}}
stages:
  packed: {kind: sft, from: base, data: mixed, pack: {length: 512}, train: {learning_rate: 1e-3, batch_size: 2}}
  joined: {kind: sft, from: base, data: mixed, pack: {length: 512, isolate: false}, train: {learning_rate: 1e-3, batch_size: 2}}
  single: {kind: sft, from: packed, data: mixed, train: {learning_rate: 1e-3, batch_size: 4}}
  grown:
    kind: grpo
    from: single
    data: asks
    reward: {instruction: 1.0}
    group_size: 4
    rollouts: {max_tokens: 32}
    thinking: {on: 0.5}
    train: {learning_rate: 1e-3, batch_size: 16, steps: 2}
  budgeted: {kind: grpo, from: single, data: asks, reward: {instruction: 1.0}, rollouts: {max_tokens: 32}, thinking: {budgets: [8]}, train: {learning_rate: 1e-3, batch_size: 16, steps: 2}}
  merged: {kind: merge, reasoning: grown, chat: single, reasoning_suite: held, chat_suite: held, alphas: [0.5], rollouts: {max_tokens: 32}}
suites:
  held: {environment: miniature-workplace}
launch: {kind: slurm, nodes: 1, gpus_per_node: 2, partition: batch}
"""  # noqa: E501


@pytest.fixture
def export(tmp_path: Path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE)

    def run(stage: str):
        arguments = ["export", "nemo-rl", str(recipe), "--stage", stage, "--root", str(tmp_path / "runs")]
        result = CliRunner().invoke(app, arguments)
        return result, tmp_path / "runs" / "small" / f"{stage}-nemo-rl"

    return run


def read(folder: Path) -> tuple[dict, list[dict]]:
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    return yaml.safe_load((folder / "config.yaml").read_text()), rows


def test_sft_stages_alone_packed_and_joined(export) -> None:
    exported = {}
    for stage in ("single", "packed", "joined"):
        result, folder = export(stage)
        assert result.exit_code == 0, result.output
        exported[stage] = read(folder)
        check_config(exported[stage][0], "sft", exported=True)
        assert "--partition=batch" in (folder / "launch.sh").read_text()
    single, packed, joined = (exported[stage] for stage in ("single", "packed", "joined"))
    assert len(packed[1]) > len(joined[1]) and len(single[1]) > len(joined[1])
    assert all(sum(row["lengths"]) == len(row["input_ids"]) <= 512 for row in joined[1])
    assert max(len(row["input_ids"]) for row in joined[1]) > max(len(row["input_ids"]) for row in packed[1])
    assert all(any(row["trained"]) and not row["trained"][0] for _, rows in exported.values() for row in rows)
    assert packed[0]["policy"]["sequence_packing"]["enabled"] is False, "the miniature is hybrid"
    assert packed[0]["policy"]["train_global_batch_size"] > joined[0]["policy"]["train_global_batch_size"] == 2
    assert single[0]["policy"]["model_name"].endswith("runs/small/packed/model")


def test_a_grpo_stage_holds_prompts_in_both_modes(export) -> None:
    result, folder = export("grown")
    assert result.exit_code == 0, result.output
    config, rows = read(folder)
    check_config(config, "grpo", exported=True)
    assert {row["thinking"] for row in rows} == {True, False} and len(rows) == 8
    assert config["cluster"] == {"gpus_per_node": 2, "num_nodes": 1}
    assert json.loads(rows[0]["known"])["task"]["kind"] == "instruction"


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("grwn", "did you mean `grown`"),
        ("merged", "stages.merged.kind: merge: NeMo-RL trains only sft, dpo and grpo"),
        ("budgeted", "stages.budgeted.thinking.budgets: NeMo-RL v0.6 sets no budget per prompt"),
    ],
)
def test_what_cannot_be_exported_is_named(export, stage: str, said: str) -> None:
    result, folder = export(stage)
    assert result.exit_code == 2 and said in result.output
    assert not folder.exists()
