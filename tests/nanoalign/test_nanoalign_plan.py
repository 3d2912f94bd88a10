"""The plan: right where it says it is exact, and made without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nanoalign import plan as planning
from nanoalign.artifacts import StageRecord, write_record
from nanoalign.cli import app
from nanoalign.common.errors import ConfigError, DataError
from nanoalign.data_recipes.config import Mixture
from nanoalign.graph import nodes
from nanoalign.models.config import Training
from nanoalign.plan_cost import Share, generate_bytes, generate_seconds, train_bytes, train_seconds
from nanoalign.plan_data import plan_mixture
from nanoalign.plan_text import amount, count_text, render_plan
from nanoalign.recipe.load import load, shipped
from nanoalign.recipe.schema import Recipe

RECIPE = """\
name: tiny
seed: 1
model: builtin:miniature-base
chat: nemotron-nano-v2
device: cpu
data:
  mixed: {sources: {miniature:math: 30, miniature:tools: 10}}
  asks: {sources: {miniature:instruction: 12}}
  held_out: {sources: {miniature:math: {samples: 20, split: test}}}
suites: {math: {data: held_out, samples: 16}}
stages:
  whole: {kind: sft, from: base, data: mixed, max_length: 32, train: {learning_rate: 1e-3, batch_size: 8, epochs: 2}}
  packed: {kind: sft, from: whole, data: mixed, pack: {length: 512}, train: {learning_rate: 1e-3, steps: 7}}
  asked:
    kind: grpo
    from: packed
    data: asks
    reward: {instruction: 1.0}
    group_size: 4
    rollouts: {max_tokens: 16}
    train: {learning_rate: 1e-4, batch_size: 16}
  verdict:
    kind: evaluate
    of: [packed, asked]
    suites: [math]
    budget_suite: math
    budgets: [0, 8]
    rollouts: {max_tokens: 64, grace: 4}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return load(str(tmp_path / "tiny.yaml"))


@pytest.mark.parametrize("name", shipped())
def test_no_torch_is_imported(name: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom nanoalign import plan, plan_text\n"
        "from nanoalign.recipe.load import load\n"
        "from nanoalign.common.errors import DataError\n"
        f"recipe = load({name!r})\n"
        "try:\n"
        f"    print(plan_text.render_plan(plan.make_plan(recipe, Path({str(tmp_path)!r}), None)))\n"
        "except DataError as error:\n"
        "    print('data is not here:', error)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'trl', 'vllm', 'reasoning_gym'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"{name} -> " in result.stdout or "data is not here" in result.stdout


def test_what_is_exact(recipe: Recipe, tmp_path: Path) -> None:
    plan = planning.make_plan(recipe, tmp_path / "runs", None)
    whole, packed, asked, verdict = plan.stages
    assert (whole.samples, whole.batch_size) == (planning.Amount(40), 8)
    assert whole.steps is not None and whole.steps.sign == "~" and whole.steps.value >= 10
    assert whole.length == planning.Amount(32) and len(whole.curve) == min(32, whole.steps.value)
    assert packed.steps == planning.Amount(7) and packed.length == planning.Amount(512)
    assert asked.steps == planning.Amount(3) and asked.samples == planning.Amount(48, "<=")
    assert verdict.samples == planning.Amount(2 * (2 * 16 + 2 * 16), "~") and verdict.steps is None
    assert plan.model is not None and plan.model["parameters"] > 1e6
    assert all(stage.memory_gb is not None and 0.7 < stage.memory_gb.value < 8 for stage in plan.stages)


def test_tokens_are_close_to_those_of_training(recipe: Recipe, tmp_path: Path) -> None:
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.data_recipes.selection import build
    from nanoalign.data_recipes.tokenize import encode_batch
    from nanoalign.models.loading import load_tokenizer

    planned = planning.make_plan(recipe, tmp_path / "runs", None).stages[0].data
    assert planned is not None and planned.tokenizer
    examples = encode_batch(build(recipe.data["mixed"], None, 5).conversations, chat_format(recipe.chat),
                            load_tokenizer(recipe.model))  # fmt: skip
    actual = sum(len(example.input_ids) for each in examples for example in each)
    assert planned.tokens == pytest.approx(actual, rel=0.3)


def test_samples_longer_than_a_sequence_are_shown(recipe: Recipe, tmp_path: Path) -> None:
    plan = planning.make_plan(recipe, tmp_path / "runs", None)
    assert plan.stages[0].too_long > 0 and plan.stages[1].too_long == 0
    assert f"WARNING   {plan.stages[0].too_long} of " in render_plan(plan)


counts = st.lists(st.lists(st.integers(1, 500), min_size=1, max_size=4), min_size=1, max_size=3)


@given(st.lists(st.tuples(st.integers(1, 1000), counts), min_size=1, max_size=4))
def test_the_mean_is_never_above_the_longest(sources: list[tuple[int, list[list[int]]]]) -> None:
    """Both are of examples: a conversation of many turns gives several, and sources of many weigh more."""
    measured = {f"file:{number}": lengths for number, (_, lengths) in enumerate(sources)}
    mixture = Mixture(sources={f"file:{number}": samples for number, (samples, _) in enumerate(sources)})
    about = {"rows": None, "where": "", "licence": "", "found": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanoalign.data_recipes.sources.describe_source", lambda *asked: about)
        patch.setattr("nanoalign.plan_data.first_samples", lambda source, *rest: source)
        patch.setattr("nanoalign.plan_data.measure", lambda source, *rest: measured[source])
        planned = plan_mixture("mixed", mixture, "chatml", None, None)
    shortest, slack = planned.lengths[0], 1 + 1 / planned.examples  # examples are rounded to a whole number
    assert shortest / slack <= planned.mean_example <= planned.longest * slack


@pytest.mark.parametrize(
    ("launch", "stages", "said"),
    [
        ("{kind: local, processes: 4, zero: 3}", ["verdict"], "launch sets 4 processes, zero: 3 without effect"),
        ("{kind: slurm, nodes: 2, gpus_per_node: 2}", ["verdict"], "launch sets 4 processes without effect"),
        ("{kind: local, processes: 1}", ["verdict"], ""),
        ("{kind: local, processes: 4, zero: 3}", ["whole", "verdict"], ""),
        ("{kind: local, processes: 4, zero: 2}", ["whole", "asked"], ""),
        ("{kind: local, processes: 4, zero: 3}", ["whole", "asked"], ""),
    ],
)
def test_a_launch_to_no_effect_is_said(launch: str, stages: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    recipe = load(
        str(tmp_path / "tiny.yaml"), [f"launch={launch}", "stages.asked.from=base", "stages.verdict.of=[base]"]
    )
    recipe = recipe.model_copy(update={"stages": {name: recipe.stages[name] for name in stages}})
    text = render_plan(planning.make_plan(recipe, tmp_path / "runs", None))
    assert (f"NOTE: {said}" in text) if said else ("NOTE" not in text)


def test_a_plan_says_what_multiplies_in_fp8(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    recipe = load(str(tmp_path / "tiny.yaml"), ["device=cuda", "stages.packed.train.precision=fp8"])
    said = [line for line in render_plan(planning.make_plan(recipe, tmp_path / "runs", None)).splitlines()
            if line.startswith("  precision")]  # fmt: skip
    assert len(said) == 1 and "bf16 in the first and the last block" in said[0]


def test_a_finished_stage_is_not_planned(recipe: Recipe, tmp_path: Path) -> None:
    node = nodes(recipe, tmp_path)[0]
    record = StageRecord(
        name="whole", kind="sft", status="finished", fingerprint=node.fingerprint, parts=dict(node.parts),
        code=dict(node.code), inputs=dict(node.inputs), config=dict(node.config), seed=0, versions={}, started=0.0,
        wall_s=65.0,
    )  # fmt: skip
    write_record(tmp_path / "whole", record)
    (tmp_path / "whole" / "model").mkdir()
    plan = planning.make_plan(recipe, tmp_path, None)
    assert [stage.reason for stage in plan.stages] == [None, "not run yet", "after packed", "after packed, asked"]
    text = render_plan(plan)
    assert "└─ whole [sft]: finished" in text and "took 1:05 before" in text and "would run 3 of 4 stages" in text
    assert "packed/model/{config.json," in text and "whole/{stage.json" not in text


def test_json_has_it_all(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    result = CliRunner().invoke(app, ["run", str(tmp_path / "tiny.yaml"), "--dry-run", "--root", str(tmp_path)])
    assert result.exit_code == 0 and "tiny -> " in result.output
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "tiny.yaml"), "--json", "--root", str(tmp_path)])
    plan = json.loads(result.output)
    assert [stage["name"] for stage in plan["stages"]] == ["whole", "packed", "asked", "verdict"]
    assert plan["stages"][1]["files"][0] == "packed/stage.json"
    assert {"packed/data.json", "packed/model/model.safetensors"} <= set(plan["stages"][1]["files"])
    assert "verdict/evaluation.json" in plan["stages"][3]["files"]
    assert not (tmp_path / "tiny").exists()


def test_missing_files_of_a_source_are_named_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NANOALIGN_DATA", raising=False)
    text = RECIPE.replace("miniature:math: 30", "file:nowhere.jsonl: 30")
    (tmp_path / "tiny.yaml").write_text(text, encoding="utf-8")
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "tiny.yaml")])
    assert result.exit_code == 2
    assert "tiny.yaml:7: data.mixed.sources.file:nowhere.jsonl: " in result.output and "no such file" in result.output


@pytest.mark.parametrize("fault", ["", "{oops"])
def test_bad_rows_are_met_as_the_run_meets_them(tmp_path: Path, fault: str) -> None:
    good = '{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}'
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join([good, fault or good.replace("2+2", "<SPECIAL_12>"), good]), encoding="utf-8")
    text = RECIPE.replace("miniature:math: 30, miniature:tools: 10", f"'file:{rows}': 2")
    (tmp_path / "tiny.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        planning.make_plan(load(str(tmp_path / "tiny.yaml")), tmp_path / "runs", None)
    (tmp_path / "tiny.yaml").write_text(text.replace("': 2}", "': 2}, on_bad_row: skip"), encoding="utf-8")
    data = planning.make_plan(load(str(tmp_path / "tiny.yaml")), tmp_path / "runs", None).stages[0].data
    assert data is not None and len(data.lengths) == 2 and data.samples == 2


def test_an_unknown_model_has_no_estimates(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("builtin:miniature-base", "some/model"), encoding="utf-8")
    plan = planning.make_plan(load(str(tmp_path / "tiny.yaml")), tmp_path / "runs", None)
    assert plan.model is None and all(stage.memory_gb is None for stage in plan.stages)
    assert "size unknown" in render_plan(plan) and "time unknown" in render_plan(plan)


MODEL = {"parameters": 10**7, "blocks": {"attention": 4}, "hidden_size": 64, "vocab_size": 512,
         "kv_bytes_per_token": 512, "state_bytes_per_sequence": 0}  # fmt: skip


@given(st.integers(1, 10**6), st.integers(1, 8), st.sampled_from(["cpu", "cuda"]))
def test_costs_grow_with_the_work(tokens: int, devices: int, device: str) -> None:
    train = Training.model_validate({"learning_rate": 1e-3})
    assert train_seconds(10**7, 2 * tokens, train, device, devices) > train_seconds(
        10**7, tokens, train, device, devices
    )
    assert train_seconds(10**7, tokens, train, device, 1) >= train_seconds(10**7, tokens, train, device, devices)
    assert generate_seconds(10**9, tokens, device) >= generate_seconds(10**7, tokens, device)
    share = Share(devices)
    assert train_bytes(MODEL, train, 2 * tokens, share) > train_bytes(MODEL, train, tokens, share)
    two, three = (train_bytes(MODEL, train, tokens, Share(devices, 1, zero)) for zero in (2, 3))
    assert three <= two <= train_bytes(MODEL, train, tokens, share)
    assert generate_bytes(MODEL, 2, tokens, device) > generate_bytes(MODEL, 1, tokens, device)


def test_full_training_of_12b_needs_what_adamw_needs() -> None:
    model = {**MODEL, "parameters": 12_310_000_000}
    lora = Training.model_validate({"learning_rate": 1e-5, "lora": {}, "micro_batch_size": 1})
    full = Training.model_validate({"learning_rate": 1e-5, "micro_batch_size": 1})
    assert 195e9 < train_bytes(model, full, 1024, Share()) < 205e9
    assert train_bytes(model, lora, 1024, Share()) < 60e9


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999"), (12_345, "12.3K"), (5_100_000, "5.1M"), (80e9, "80.0B"), (1.2e12, "1.2T")]
)
def test_counts_are_short(value: float, text: str) -> None:
    assert count_text(value) == text
    assert amount(planning.Amount(1234, "<=")) == "<= 1,234" and amount(planning.Amount(1234)) == "1,234"


def test_a_distillation_shows_its_teacher_and_its_phases(tmp_path: Path) -> None:
    taught, plain = (
        next(stage for stage in planning.make_plan(load("distillation", change), tmp_path, None).stages
             if stage.kind == "distill")
        for change in ([], ["stages.distilled.phases=[]", "stages.distilled.train.steps=20"])
    )  # fmt: skip
    assert taught.phases == [(512, 50, 8), (1024, 20, 4)] and plain.phases == []
    assert taught.steps.value == 70 and taught.length.value == 1024
    assert taught.inputs == {"from": "base", "teacher": "refine"}
    assert taught.teacher.startswith("refine, float32, beside the student: 3.8M parameters")
    assert taught.tokens.value > plain.tokens.value and taught.memory_gb.value > 0
    text = render_plan(planning.make_plan(load("distillation"), tmp_path, None))
    assert "distill from base, teacher refine" in text and "50 steps of 8 packs of 512 tokens" in text


def test_data_that_are_not_here_count_as_full_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NANOALIGN_DATA", raising=False)
    plan = planning.make_plan(load("compress-nano-v2"), tmp_path, None)
    distilled = plan.stages[-1]
    assert distilled.tokens.value == sum(steps * packs * length for length, steps, packs in distilled.phases)
    assert distilled.seconds.value > 3600 and distilled.memory_gb.value < 80
    assert "tokens not known before its sources are read" in render_plan(plan)


def test_protected_blocks_are_checked_without_weights(tmp_path: Path) -> None:
    for protect, said in (([62], "62 is no block of the model's 62"), ([*range(62)], "leaves 0 attention blocks")):
        with pytest.raises(ConfigError, match=rf"^stages\.compressed\.protect: {said}"):
            planning.make_plan(load("compress-nano-v2", [f"stages.compressed.protect={protect}"]), tmp_path, None)
