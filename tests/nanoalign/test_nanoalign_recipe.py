"""The recipe: what is wrong is said with file, line, key and the nearest valid one; what is right loads back equal."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.recipe.json_schema import json_schema
from nanoalign.recipe.load import RecipeError, dump, load, shipped
from nanoalign.recipe.source import YamlTree, merge_trees, parse_yaml

RECIPE = """\
name: small
seed: 1
model: builtin:miniature-base
chat: nemotron-nano-v2
data:
  mixed: {sources: {miniature:math: 10, miniature:tools: {samples: 5}}}
  asks: {sources: {miniature:instruction: 8}}
  pairs: {sources: {miniature:preference: 8}}
  held_out: {sources: {miniature:math: {samples: 4, split: test}}}
suites:
  reasoning: {data: held_out}
  liked: {data: held_out, reward: {preference: 1.0}, reward_model: judge}
  office: {environment: miniature-workplace, samples: 4}
stages:
  first:
    kind: sft
    from: base
    data: mixed
    strip_reasoning: 0.1
    truncate_reasoning: {share: 0.05, tokens: [8, 16]}
    pack: {length: 64}
    train: {learning_rate: 1e-3, schedule: wsd, batch_size: 4, steps: 2}
  second:
    kind: sft
    from: first
    data: mixed
    max_length: 64
    train: {learning_rate: 1.0e-3, batch_size: 4, micro_batch_size: 2, lora: {rank: 4}}
  agent:
    kind: dpo
    from: second
    environment: miniature-workplace
    tasks_per_round: 4
    held_out_tasks: 4
    rollouts: {max_tokens: 32}
    train: {learning_rate: 1e-4}
  judge: {kind: reward_model, from: second, data: pairs, train: {learning_rate: 1e-4}}
  liked_one:
    kind: grpo
    from: second
    data: asks
    reward: {preference: 1.0, instruction: 0.5}
    reward_model: judge
    group_size: 4
    rollouts: {max_tokens: 32}
    thinking: {on: 0.5, budgets: [null, 16]}
    train: {learning_rate: 1e-4, batch_size: 16, steps: 1}
  merged:
    kind: merge
    reasoning: agent
    chat: liked_one
    alphas: [0.25, 0.5]
    reasoning_suite: reasoning
    chat_suite: liked
    rollouts: {max_tokens: 32}
  verdict:
    kind: evaluate
    of: [first, merged]
    suites: [reasoning, office]
    budgets: [0, 16, null]
    budget_suite: reasoning
    rollouts: {max_tokens: 32, grace: 4}
"""

# (what is replaced, by what, the line named by a piece of it, the dotted path, a piece of the message)
MUTATIONS = [
    ("name: small", "nmae: small", "nmae", "nmae", "did you mean `name`"),
    ("name: small", "name: ../up", "../up", "name", "../up"),
    ("seed: 1", "seed: one", "seed:", "seed", "a whole number"),
    ("seed: 1", "seed: -1", "seed:", "seed", "greater than or equal to 0, got -1"),
    ("seed: 1", "seed: true", "seed:", "seed", "a whole number, got true"),
    ("seed: 1", 'seed: "1"', "seed:", "seed", "a whole number, got '1'"),
    ("model: builtin:miniature-base", "model: /no/such/folder", "model:", "model", "no such folder"),
    ("model: builtin:miniature-base", "model: 7", "model:", "model", "a string, got 7"),
    ("model: builtin:miniature-base", "model: builtin:miniature-bass", "model:", "model", "did you mean"),
    ("chat: nemotron-nano-v2", "chat: 'hf:/no/such/folder'", "chat: 'hf", "chat", "no tokenizer at `/no/such/folder`"),
    ("chat: nemotron-nano-v2", "chat: 'hf:'", "chat: 'hf", "chat", "a folder or a hub id"),
    ("chat: nemotron-nano-v2", "chat: nemotron-nano-v3", "chat: nem", "chat", "did you mean `nemotron-nano-v2`"),
    ("name: small", "name: small\ndevice: gpu", "device", "device", "'auto', 'cpu' or 'cuda', got 'gpu'"),
    ("miniature:math: 10", "miniature:maths: 10", "maths", "data.mixed.sources.miniature:maths", "mean `math`"),
    ("miniature:math: 10", "miniature:math: 0", "math: 0", "data.mixed.sources.miniature:math", "equal to 1, got 0"),
    ("miniature:math: 10", "miniature:math: ten", "ten", "data.mixed.sources.miniature:math", "a whole number"),
    ("miniature:math: 10", "miniature:math: 1.5", "1.5", "data.mixed.sources.miniature:math", "a whole number"),
    ("{samples: 5}", "{sampels: 5}", "sampels", "data.mixed.sources.miniature:tools.sampels", "did you mean `samples`"),
    ("split: test", "split: dev", "split", "data.held_out.sources.miniature:math.split", "or 'test', got 'dev'"),
    ("mixed: {sources: {miniature:math: 10, miniature:tools: {samples: 5}}}", "mixed: {sources: {}}", "mixed:",
     "data.mixed.sources", "at least 1 item"),
    ("asks: {sources", "asks: {on_bad_row: ignore, sources", "asks:", "data.asks.on_bad_row", "'stop' or 'skip'"),
    ("  reasoning: {data: held_out}", "  reasoning: {data: held_ut}", "held_ut", "suites.reasoning.data", "`held_out`"),
    ("  reasoning: {data: held_out}", "  reasoning: {data: mixed}", "  reasoning: {", "suites.reasoning.data",
     "needs split: test"),
    ("  reasoning: {data: held_out}", "  reasoning: {samples: 3}", "  reasoning: {", "suites.reasoning", "exactly one"),
    ("reward_model: judge}", "reward_model: first}", "  liked:", "suites.liked.reward_model", "is of kind sft"),
    ("{environment: miniature-workplace", "{environment: miniature-wrkplace", "office", "suites.office.environment",
     "did you mean `miniature-workplace`"),
    ("    kind: sft\n    from: base", "    kind: stf\n    from: base", "  first:", "stages.first", "mean `sft`"),
    ("    kind: sft\n    from: base", "    from: base", "  first:", "stages.first", "`kind` is required"),
    ("    from: base", "    form: base", "form", "stages.first.form", "did you mean `from`"),
    ("    from: base\n", "", "  first:", "stages.first.from", "required but missing"),
    ("    from: first", "    from: frist", "frist", "stages.second.from", "did you mean `first`"),
    ("    from: first", "    from: verdict", "from: verdict", "stages.second.from", "is of kind evaluate"),
    ("    from: first", "    from: judge", "from: judge", "stages.second.from", "makes no language model"),
    ("    from: first", "    from: merged", "  second:", "stages.second", "depends on itself: second <- merged"),
    ("    from: base", "    from: first", "  first:", "stages.first", "depends on itself: first <- first"),
    ("    data: mixed\n    strip", "    data: mxed\n    strip", "mxed", "stages.first.data", "did you mean `mixed`"),
    ("    data: asks", "    data: held_out", "    data: held_out", "stages.liked_one.data", "needs split: train"),
    ("strip_reasoning: 0.1", "strip_reasoning: 1.1", "strip", "stages.first.strip_reasoning", "equal to 1, got 1.1"),
    ("strip_reasoning: 0.1", "strip_reasoning: 10%", "strip", "stages.first.strip_reasoning", "a number, got '10%'"),
    ("tokens: [8, 16]", "tokens: [16, 8]", "truncate", "stages.first.truncate_reasoning.tokens", "least <= most"),
    ("tokens: [8, 16]", "tokens: 8", "truncate", "stages.first.truncate_reasoning.tokens", "a list"),
    ("tokens: [8, 16]", "tokens: [8]", "truncate", "stages.first.truncate_reasoning.tokens.1", "but missing"),
    ("pack: {length: 64}", "pack: {length: -64}", "pack:", "stages.first.pack.length", "equal to 16, got -64"),
    ("pack: {length: 64}", "pack: {lenght: 64}", "pack:", "stages.first.pack.lenght", "did you mean `length`"),
    ("pack: {length: 64}", "pack: true", "pack:", "stages.first.pack", "a mapping, got true"),
    ("pack: {length: 64}", "pack: {length: 64}\n    max_length: 64", "max_length: 64", "stages.first.max_length",
     "only without packing"),
    ("learning_rate: 1e-3", "learning_rate: 0", "rate: 0", "stages.first.train.learning_rate", "greater than 0, got 0"),
    ("learning_rate: 1e-3", "learning_rate: 1e999", "1e999", "stages.first.train.learning_rate", "too large"),
    ("learning_rate: 1e-3, ", "", "    train: {schedule", "stages.first.train.learning_rate", "required but missing"),
    ("schedule: wsd", "schedule: wds", "wds", "stages.first.train.schedule", "did you mean `wsd`"),
    ("schedule: wsd", "precision: fp4", "fp4", "stages.first.train.precision", "did you mean `fp8`"),
    ("schedule: wsd", "precision: fp8, dtype: float32", "fp8", "stages.first.train.precision", "`dtype` is float32"),
    ("schedule: wsd", "schedule: wsd, decay_ratio: 1.0", "decay", "stages.first.train.decay_ratio", "exceed 1"),
    ("steps: 2}", "steps: 2, epochs: 1}", "epochs", "stages.first.train.steps", "not both"),
    ("micro_batch_size: 2", "micro_batch_size: 3", "micro", "stages.second.train.micro_batch_size", "does not divide"),
    ("lora: {rank: 4}", "lora: {rank: 0}", "lora", "stages.second.train.lora.rank", "equal to 1, got 0"),
    ("lora: {rank: 4}", "lora: {target: [x]}", "lora", "stages.second.train.lora.target", "did you mean `targets`"),
    ("    environment: miniature-workplace\n", "    environment: workbensh\n", "workbensh", "stages.agent.environment",
     "did you mean `workbench`"),
    ("    tasks_per_round: 4", "    tasks_per_round: 4\n    max_batches: 2", "max_batches",
     "stages.agent.max_batches", "`min_pairs`"),
    ("    tasks_per_round: 4", "    tasks_per_round: 4\n    pairs_per_task: 99", "99", "stages.agent.pairs_per_task",
     "at most 4 pairs"),
    ("    reward: {preference: 1.0, ", "    reward: {preferense: 1.0, ", "preferense",
     "stages.liked_one.reward.preferense", "did you mean `preference`"),
    ("    reward_model: judge\n", "", "    reward: {pref", "stages.liked_one.reward.preference", "needs `reward_m"),
    ("    reward_model: judge\n", "    reward_model: jugde\n", "jugde", "stages.liked_one.reward_model", "`judge`"),
    ("{preference: 1.0, instruction: 0.5}", "{judge: 1.0}", "judge: 1.0", "stages.liked_one.reward.judge",
     "needs `judge:`"),
    ("    reward_model: judge\n", "    reward_model: judge\n    judge: {url: 'http://x/v1', model: m}\n", "judge: {url",
     "stages.liked_one.judge", "only by the reward `judge`"),
    ("    reward: {preference: 1.0, instruction: 0.5}\n    reward_model: judge\n",
     "    reward: {instruction: 0.5}\n    reward_gpu: 1\n", "reward_gpu", "stages.liked_one.reward_gpu",
     "there is no `reward_model`"),
    ("    reward_model: judge\n", "    judge: {url: x, modle: m}\n", "judge: {url", "stages.liked_one.judge.modle",
     "did you mean `model`"),
    ("asks: {sources: {", "asks: {sources: {workbench: 1, ", "    data: asks", "stages.liked_one.data",
     "takes workbench, which no reward can judge: its tasks are played"),
    ("{preference: 1.0, instruction: 0.5}", "{instruction: 0.0}", "0.0}", "stages.liked_one.reward", "all weights"),
    ("group_size: 4", "group_size: 5", "batch_size: 16", "stages.liked_one.train.batch_size", "not a multiple of"),
    ("budgets: [null, 16]", "budgets: [null, -1]", "budgets: [null, -1", "stages.liked_one.thinking.budgets.1", "-1"),
    ("budgets: [null, 16]", "budgets: [null, 32]", "budgets: [null, 32", "stages.liked_one.thinking.budgets.1",
     "no room for an answer"),
    ("    reasoning: agent", "    reasoning: agnet", "agnet", "stages.merged.reasoning", "did you mean `agent`"),
    ("    reasoning: agent", "    reasoning: liked_one", "    chat: liked_one", "stages.merged.chat", "two models"),
    ("alphas: [0.25, 0.5]", "alphas: [0.25, 1.5]", "alphas", "stages.merged.alphas", "between 0 and 1"),
    ("alphas: [0.25, 0.5]", "alphas: [0.5, 0.5]", "alphas", "stages.merged.alphas.1", "twice"),
    ("chat_suite: liked", "chat_suite: likes", "likes", "stages.merged.chat_suite", "did you mean `liked`"),
    ("of: [first, merged]", "of: [first, mergd]", "mergd", "stages.verdict.of.1", "did you mean `merged`"),
    ("of: [first, merged]", "of: first", "of: first", "stages.verdict.of", "a list"),
    ("suites: [reasoning, office]", "suites: [reasoning, ofice]", "ofice", "stages.verdict.suites.1", "`office`"),
    ("budgets: [0, 16, null]", "budgets: [0, -16, null]", "-16", "stages.verdict.budgets.1", "got -16"),
    ("seed: 1", "seed: 1\nseed: 2", "seed: 2", "seed", "duplicate key `seed` (first on line 2)"),
    ("  judge: {", "  second: {", "  second: {", "stages.second", "duplicate key"),
    ("  judge: {", "  base: {", "  base: {", "stages.base", "give the stage another name"),
    ("  judge: {", "  the judge: {", "  the judge", "stages.the judge", "a name of letters"),
    ("reward_model: judge\n    group", "judge: {url: 'localhost:80', model: m}\n    group", "localhost",
     "stages.liked_one.judge.url", "expected an address that starts with http:// or https://, got 'localhost:80'"),
    ("reward_model: judge\n    group", "judge: {url: 'http://a', model: m, rubric: Good}\n    group", "Good}",
     "stages.liked_one.judge.rubric", "a text that contains {conversation} and, after it, {answer}, got 'Good'"),
    ("rollouts: {max_tokens: 32, grace: 4}",
     "rollouts: {max_tokens: 32, engine: {kind: vllm_server, server: 'h:80'}}", "h:80",
     "stages.verdict.rollouts.engine.server", "expected an address that starts with http"),
    ("seed: 1", "seed: 1\nlaunch: {kind: slrum}", "slrum", "launch", "did you mean `slurm`"),
    ("seed: 1", "seed: 1\nlaunch: {nodes: 2}", "nodes", "launch", "of them `slurm` can have what is here"),
    ("seed: 1", "seed: 1\nlaunch: {kind: local, procs: 2}", "procs", "launch.procs", "did you mean `processes`"),
    ("seed: 1", "seed: 1\nextends: nowhere.yaml", "nowhere", "extends", "no such file"),
    ("seed: 1", "seed: 1\nextends: small.yaml", "extends", "extends", "extends itself"),
    ("seed: 1", "seed: !!python/object:os.system 1", "seed:", "seed", "is not allowed"),
]  # fmt: skip


def write(folder: Path, text: str, name: str = "small.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_unmutated_recipe_is_right(tmp_path: Path) -> None:
    recipe: Any = load(str(write(tmp_path, RECIPE)))
    assert list(recipe.stages) == ["first", "second", "agent", "judge", "liked_one", "merged", "verdict"]
    assert recipe.stages["first"].train.learning_rate == 1e-3


@pytest.mark.parametrize(("old", "new", "line", "key", "message"), MUTATIONS)
def test_mutations(tmp_path: Path, old: str, new: str, line: str, key: str, message: str) -> None:
    assert old in RECIPE
    text = RECIPE.replace(old, new, 1)
    path = write(tmp_path, text)
    number = next(n for n, content in enumerate(text.splitlines(), 1) if line in content)
    result = CliRunner().invoke(app, ["plan", str(path)])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    said = [text for text in result.output.splitlines() if text.startswith(f"  {path}:{number}: {key}: ")]
    assert any(message in text for text in said), result.output


def every_path(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from every_path(inner, (*path, key))


@pytest.mark.parametrize("wrong", [5, [5], {"x": 5}])
def test_no_value_of_another_type_ends_the_checks(tmp_path: Path, wrong: Any) -> None:
    data = parse_yaml(RECIPE, "small.yaml")[0].data
    for path in every_path(data):
        changed = inner = copy.deepcopy(data)
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = wrong
        try:
            load(str(write(tmp_path, yaml.safe_dump(changed))))
        except RecipeError as error:
            assert error.problems


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = RECIPE
    for old, new in [("seed: 1", "sede: 1"), ("from: first", "from: frist"), ("rank: 4", "rank: 0"),
                     ("math: 10", "mth: x"), ("chat_suite: liked", "chat_suite: likd")]:  # fmt: skip
        text = text.replace(old, new, 1)
    with pytest.raises(RecipeError) as raised:
        load(str(write(tmp_path, text)))
    assert {problem.path for problem in raised.value.problems} == {
        "sede", "stages.second.from", "stages.second.train.lora.rank", "data.mixed.sources.miniature:mth",
        "stages.merged.chat_suite",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a recipe is a mapping"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("name: [", "not valid YAML"),
        ("name: a\n\tseed: 1\n", "not valid YAML"),
        ("name: a\n---\nname: b\n", "one file holds one"),
        ("name: &a [*a]\n", "an alias that contains itself"),
        ("? [a, b]\n: 1\n", "a key must be a word"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    result = CliRunner().invoke(app, ["run", str(write(tmp_path, text))])
    assert result.exit_code == 2
    assert f"{tmp_path / 'small.yaml'}:" in result.output and message in result.output


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        load(str(tmp_path / "a.yaml"))


def test_unknown_recipe_names_the_nearest() -> None:
    result = CliRunner().invoke(app, ["plan", "miniatur"])
    assert result.exit_code == 2 and "did you mean `miniature`?" in result.output


def test_extends_merges_and_points_into_the_right_file(tmp_path: Path) -> None:
    write(tmp_path, RECIPE)
    child = "extends: small.yaml\nname: child\nstages:\n  first:\n    pack: null\n    max_length: 32\n  verdict: null\n"
    recipe: Any = load(str(write(tmp_path, child, "child.yaml")))
    assert (recipe.name, recipe.stages["first"].pack, recipe.stages["first"].max_length) == ("child", None, 32)
    assert recipe.stages["first"].train.batch_size == 4 and "verdict" not in recipe.stages

    write(tmp_path, RECIPE.replace("group_size: 4", "group_sise: 4"))
    with pytest.raises(RecipeError) as raised:
        load(str(write(tmp_path, child.replace("max_length: 32", "max_lenght: 32"), "child.yaml")))
    places = {problem.path: (Path(problem.place.file).name, problem.place.line) for problem in raised.value.problems}
    wrong_line = RECIPE.splitlines().index("    group_size: 4") + 1
    assert places == {
        "stages.liked_one.group_sise": ("small.yaml", wrong_line),
        "stages.first.max_lenght": ("child.yaml", 6),
    }


def test_extends_replaces_a_stage_of_another_kind(tmp_path: Path) -> None:
    write(tmp_path, RECIPE)
    child = (
        "extends: small.yaml\nstages:\n  judge: {kind: sft, from: base, data: mixed, train: {learning_rate: 1e-4}}\n"
    )
    with pytest.raises(RecipeError) as raised:
        load(str(write(tmp_path, child, "child.yaml")))
    assert {problem.path for problem in raised.value.problems} == {
        "suites.liked.reward_model",
        "stages.liked_one.reward_model",
    }


def test_overrides(tmp_path: Path) -> None:
    path = str(write(tmp_path, RECIPE))
    overrides = ["stages.first.train.learning_rate=5e-6", "stages.first.pack=null", "stages.verdict.of.0=base",
                 "stages.second.pack.length=32", "stages.second.max_length=null"]  # fmt: skip
    recipe: Any = load(path, overrides)
    assert recipe.stages["first"].train.learning_rate == 5e-6 and recipe.stages["first"].pack is None
    assert recipe.stages["verdict"].of[0] == "base" and recipe.stages["second"].pack.length == 32


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.first.train.learning_ratee=1", "stages.first.train.learning_ratee: unknown key; did you mean"),
        ("stages.first.train.learning_rate=fast", "stages.first.train.learning_rate: expected a number, got 'fast'"),
        ("stages.frst.data=mixed", "`kind` is required"),
        ("stages.first", "expected KEY.KEY=VALUE"),
        ("=3", "expected KEY.KEY=VALUE"),
        ("stages.verdict.of.7=base", "has no `7`"),
        ("seed.low=3", "seed has no `low`"),
        ("seed=[1", "not valid YAML"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, message: str) -> None:
    result = CliRunner().invoke(app, ["plan", str(write(tmp_path, RECIPE)), "--set", override])
    assert result.exit_code == 2
    assert f"--set {override}: " in result.output and message in result.output


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_load_and_load_back_equal(name: str, tmp_path: Path) -> None:
    recipe: Any = load(name)
    text = dump(recipe)
    assert load(str(write(tmp_path, text))) == recipe
    first, second, *_ = shipped()[name].read_text(encoding="utf-8").splitlines()
    assert first == "# yaml-language-server: $schema=schema.json"
    assert "Launch" in second and f"recipes/{name}.yaml" in second


def test_plan_resolved_loads_back_equal(tmp_path: Path) -> None:
    path = write(tmp_path, RECIPE)
    arguments = ["plan", str(path), "--set", "stages.first.train.steps=7", "--resolved"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert load(str(write(tmp_path, result.output, "out.yaml"))) == load(str(path), ["stages.first.train.steps=7"])


@pytest.mark.parametrize(
    ("smi", "device", "fault"),
    [
        (None, "cpu", "fp8 needs a Hopper GPU (H100, H200), and `device` is cpu"),
        (None, "auto", "and this machine has none; --device cuda plans for another machine"),
        (None, "cuda", ""),
        ("NVIDIA H100 80GB HBM3, 9.0", "auto", ""),
        ("NVIDIA L4, 8.9", "cuda", "this machine has NVIDIA L4"),
    ],
)
def test_fp8_needs_a_card_that_has_it(
    smi: str | None, device: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    if smi is not None:
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '{smi}'\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin" if smi else str(tmp_path / "bin"))
    path = str(write(tmp_path, RECIPE.replace("schedule: wsd", "precision: fp8")))
    if not fault:
        assert load(path, [f"device={device}"], check_files=True).stages["first"].train.precision == "fp8"
        return
    with pytest.raises(RecipeError, match=r"stages\.first\.train\.precision") as raised:
        load(path, [f"device={device}"], check_files=True)
    assert fault in str(raised.value)


def test_committed_schema_is_current() -> None:
    assert (shipped()["miniature"].parent / "schema.json").read_text(encoding="utf-8") == json_schema()


def test_every_key_of_the_schema_is_described() -> None:
    schema = json.loads(json_schema())
    undescribed = [
        f"{name}.{key}"
        for name, section in {"Recipe": schema, **schema["$defs"]}.items()
        for key, value in section.get("properties", {}).items()
        if "description" not in value and "$ref" not in value and key not in ("kind", "train", "rollouts", "name")
    ]
    assert undescribed == ["GRPOStage.thinking", "DPOStage.thinking"] or undescribed == []


TEXT = st.text(
    st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=40
)  # an implicit key has at most 1,024 characters
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@given(PLAIN)
def test_yaml_text_of_json_gives_the_same_data(value: object) -> None:
    source, problems = parse_yaml(json.dumps(value), "x")
    assert not problems and source.data == value


@pytest.mark.parametrize(
    "text", ["on", "off", "yes", "no", "1_000", "0o17", "12:30", "2026-11-22", "1.2.3", ".inf", ".nan"]
)
def test_words_of_yaml_1_1_stay_words(text: str) -> None:
    assert parse_yaml(f"a: {text}", "x")[0].data == {"a": text}
    assert yaml.safe_load(f"a: {text}") != {"a": text} or text in ("0o17", "1.2.3")


DICTS = st.recursive(st.integers(0, 3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=8)


@given(st.dictionaries(st.sampled_from("abc"), DICTS), st.dictionaries(st.sampled_from("abc"), DICTS))
def test_merge_keeps_what_is_above_and_is_idempotent(below: dict, above: dict) -> None:
    merged = merge_trees(YamlTree(below), YamlTree(above)).data

    def holds(top: object, whole: object) -> bool:
        if isinstance(top, dict) and isinstance(whole, dict):
            return all(key in whole and holds(value, whole[key]) for key, value in top.items())
        return top == whole

    assert holds(above, merged)
    assert merge_trees(YamlTree(merged), YamlTree(above)).data == merged
    assert merge_trees(YamlTree(below), YamlTree({})).data == below
