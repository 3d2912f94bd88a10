"""A recipe with rewards of a user's own: what is wrong is said before anything runs; a changed reward runs again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.graph import code_of, nodes
from nanoalign.recipe.load import RecipeError, dump, load
from nanoalign.recipe.schema import Recipe
from nanoalign.reward import make_reward

RECIPE = """\
name: mine
seed: 1
model: builtin:miniature-base
chat: nemotron-nano-v2
data:
  asks: {sources: {miniature:instruction: 8}}
  held_out: {sources: {miniature:math: {samples: 4, split: test}}}
suites:
  held: {data: held_out, reward: {"suite_rewards.py:right": 1.0}}
stages:
  polite:
    kind: grpo
    from: base
    data: asks
    reward:
      instruction: 1.0
      "my_rewards.py:brevity": 0.5
    group_size: 4
    rollouts: {max_tokens: 12, grace: 2}
    train: {learning_rate: 1e-4, batch_size: 8, steps: 1, dtype: float32}
  verdict: {kind: evaluate, of: [polite], suites: [held], rollouts: {max_tokens: 12, temperature: 0.0}}
"""
BREVITY = """def brevity(samples, target=200):
    return [min(1.0, target / max(1, sample.answer_tokens)) for sample in samples]
"""
RIGHT = """def right(completions, answer, **kwargs):
    return [float(text.endswith(str(known))) for text, known in zip(completions, answer)]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "my_rewards.py").write_text(BREVITY)
    (tmp_path / "suite_rewards.py").write_text(RIGHT)
    (tmp_path / "pack").mkdir()
    return tmp_path


def changed(folder: Path, key: str, value: str = "0.5", source: str | None = None) -> str:
    text = RECIPE.replace('"my_rewards.py:brevity": 0.5', f'"{key}": {value}')
    (folder / "recipe.yaml").write_text(text)
    if source is not None:
        (folder / "my_rewards.py").write_text(source)
    return str(folder / "recipe.yaml")


FILE = "my_rewards.py:brevity"
WRONG = {
    "no such file": ("my_reward.py:brevity", "0.5", None, "no such file: .*my_reward.py; did you mean `my_rewards.py`"),
    "a folder": ("pack/:brevity", "0.5", None, "pack is a folder, not a Python file"),
    "no function named": ("my_rewards.py", "0.5", None, "which function of it. write `my_rewards.py:FUNCTION`"),
    "an empty name": ("my_rewards.py:", "0.5", None, "expected FILE.py:NAME or package.module:NAME"),
    "no such function": ("my_rewards.py:brevty", "0.5", None, "defines no `brevty`; did you mean `brevity`"),
    "no Python": (FILE, "0.5", "\ndef brevity(samples:\n    return 1\n", r"my_rewards.py:2: not valid Python: "),
    "null bytes": (FILE, "0.5", "x = '\0'", "my_rewards.py:1: not valid Python"),
    "a number": (FILE, "0.5", "brevity = 3\n", "my_rewards.py:1: `brevity` is not a function"),
    "a module": (FILE, "0.5", "import json as brevity\n", "my_rewards.py:1: `brevity` is not a function"),
    "a class": (FILE, "0.5", "class brevity:\n    pass\n", "my_rewards.py:1: `brevity` is a class"),
    "neither signature": (
        FILE,
        "0.5",
        "\ndef brevity(answers): ...\n",
        "py:2: its signature takes neither `samples` nor",
    ),
    "no arguments": (FILE, "0.5", "def brevity(): ...\n", "its signature takes neither `samples` nor"),
    "positional only": (FILE, "0.5", "def brevity(samples, /): ...\n", "`samples` takes no keyword"),
    "a parameter not set": (FILE, "0.5", "def brevity(samples, target): ...", "`target` has no default and is not set"),
    "an unknown parameter": (
        FILE,
        "{weight: 0.5, tagret: 3}",
        None,
        "no parameter of the function; did you mean `target`",
    ),
    "an unknown setting": (
        FILE,
        "{weight: 0.5, worker: 3}",
        None,
        "no parameter of the function; did you mean `workers`",
    ),
    "a typo that **kwargs would swallow": (
        FILE,
        "{weight: 1, deadlines: 3}",
        "def brevity(completions, **kw): ...",
        "no parameter that the function names; did you mean `deadline_s`",
    ),
    "a parameter that is ours": (
        FILE,
        "{weight: 1, prompts: 3}",
        "def brevity(prompts, **kw): ...",
        "is what we give the function, not a parameter to set",
    ),
    "a weight that is no number": (FILE, "much", None, "expected a number, got 'much'"),
    "no weight": (FILE, "{target: 3}", None, "required but missing"),
    "too large a weight": (FILE, "1e999", None, "too large a number"),
    "a setting of a wrong kind": (
        FILE,
        "{weight: 0.5, on_error: ignore}",
        None,
        "on_error: expected 'stop' or 'count'",
    ),
    "a setting out of range": (
        FILE,
        "{weight: 0.5, deadline_s: 0}",
        None,
        "deadline_s: expected greater than 0|greater",
    ),
    "no such package": (
        "no_such_package.rewards:f",
        "0.5",
        None,
        "no module `no_such_package.rewards`: neither beside",
    ),
    "no such module": ("nanoalign.rewards:f", "0.5", None, "no module `nanoalign.rewards` in .*; did you mean"),
    "a module without source": ("math:sqrt", "0.5", None, "module `math` has no Python source"),
    "a package it needs": (
        FILE,
        "0.5",
        "import json\nimport numppy\ndef brevity(samples): ...",
        "my_rewards.py:2: imports `numppy`, which is not installed",
    ),
    "a relative import": (
        FILE,
        "0.5",
        "from . import x\ndef brevity(samples): ...",
        "relative import needs its package",
    ),
    "more than a weight for ours": (
        "format",
        "{weight: 0.5}",
        None,
        "takes a number, its weight; only rewards of your own",
    ),
    "twice": (FILE, '0.5\n      "./my_rewards.py:brevity": 0.5', None, "is given twice"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_reward_is_said_with_line_and_key(folder: Path, kind: str) -> None:
    key, value, source, message = WRONG[kind]
    with pytest.raises(RecipeError, match=message) as caught:
        load(changed(folder, key, value, source))
    problem = caught.value.problems[0]
    assert len(caught.value.problems) == 1 or kind == "too large a weight", caught.value
    assert problem.place.file == str(folder / "recipe.yaml") and problem.place.line in (17, 18)
    assert problem.path.startswith(f"stages.polite.reward.{key}") or kind in ("twice", "too large a weight")


def test_a_suites_reward_is_checked_alike(folder: Path) -> None:
    (folder / "suite_rewards.py").write_text("def wrong(completions): ...")
    with pytest.raises(
        RecipeError, match=r"recipe.yaml:9: suites.held.reward.suite_rewards.py:right: .* defines no `right`"
    ):
        load(str(folder / "recipe.yaml"))


def test_the_users_code_does_not_run_and_torch_is_not_imported_in_a_plan(folder: Path) -> None:
    (folder / "my_rewards.py").write_text("raise SystemExit('it ran')\n" + BREVITY)
    recipe = changed(folder, FILE, "{weight: 0.5, target: 3, workers: 2, deadline_s: 20, on_error: count}")
    code = (
        "import sys\nfrom nanoalign.cli import main\n"
        f"sys.argv = ['nanoalign', 'plan', {recipe!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'trl' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_package_is_found_without_being_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pack/__init__.py").write_text("raise SystemExit('it ran')")
    (folder / "pack/rewards.py").write_text("from .inner import right\n")
    (folder / "pack/inner.py").write_text(RIGHT)
    monkeypatch.syspath_prepend(str(folder))
    recipe = load(changed(folder, "pack.rewards:right"))
    assert recipe.stages["polite"].weights == {"instruction": 1.0, "right": 0.5}
    before = code_of(recipe, "polite")
    (folder / "pack/inner.py").write_text(RIGHT.replace("endswith", "startswith"))
    assert code_of(recipe, "polite") != before
    load(changed(folder, "trl.rewards.accuracy_rewards:accuracy_reward"))


def test_a_path_starts_at_the_file_that_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/mine.yaml").write_text(
        'extends: ../recipe.yaml\nstages: {polite: {reward: {"own.py:short": 2.0}}}\n'
    )
    (folder / "elsewhere/own.py").write_text(BREVITY.replace("brevity", "short"))
    monkeypatch.chdir(folder.parent)
    recipe = load(f"{folder.name}/elsewhere/mine.yaml")
    keys = ["instruction", f"{folder}/my_rewards.py:brevity", f"{folder}/elsewhere/own.py:short"]
    assert list(recipe.stages["polite"].reward) == keys
    (folder / "written.yaml").write_text(dump(recipe))
    assert load(str(folder / "written.yaml")) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json(by_alias=True)) == recipe
    changes = ['stages.polite.reward."my_rewards.py:brevity"={weight: 1, target: 3}',
               'stages.polite.reward."my_rewards.py:brevity".weight=2']  # fmt: skip
    more = load(f"{folder.name}/recipe.yaml", changes)
    value: Any = more.stages["polite"].reward[f"{folder}/my_rewards.py:brevity"]
    assert (value.weight, value.parameters) == (2, {"target": 3})
    one = load(f"{folder.name}/recipe.yaml", ['stages.polite.reward={"my_rewards.py:brevity": 2}'])
    assert list(one.stages["polite"].reward) == [f"{folder}/my_rewards.py:brevity"]


def stale(folder: Path, recipe: str, name: str = "polite", ignore_code: bool = False) -> str | None:
    """Why a stage of a finished run is stale; None where it is not."""
    from nanoalign.artifacts import StageRecord, write_record

    loaded, run = load(recipe), folder / "run"
    made = {node.name: node for node in nodes(loaded, run, ignore_code=ignore_code)}
    if not (run / name / "stage.json").exists():
        for each, node in made.items():
            (run / each / "model").mkdir(parents=True)
            write_record(run / each, StageRecord(
                each, node.stage.kind, "finished", node.fingerprint, dict(node.parts), dict(node.code),
                dict(node.inputs), dict(node.config), 1, {}, 0.0,
            ))  # fmt: skip
        return None
    return made[name].reason


def test_a_changed_reward_makes_its_stage_stale_and_a_moved_one_does_not(folder: Path) -> None:
    recipe = str(folder / "recipe.yaml")
    assert stale(folder, recipe) is None and stale(folder, recipe) is None
    (folder / "my_rewards.py").write_text(BREVITY + "# a note\n")
    assert (reason := stale(folder, recipe)) is not None and "the code changed: my_rewards.py:brevity" in reason
    assert stale(folder, recipe, ignore_code=True) is None
    (folder / "my_rewards.py").write_text(BREVITY)
    assert stale(folder, recipe) is None
    assert stale(folder, changed(folder, FILE, "{weight: 0.5, workers: 3, deadline_s: 9}")) is None
    assert "brevity.target null -> 3" in str(stale(folder, changed(folder, FILE, "{weight: 0.5, target: 3}")))
    changed(folder, FILE)
    (folder / "suite_rewards.py").write_text(RIGHT + "\n")
    assert stale(folder, recipe) is None and "the code changed: suite_rewards.py:right" in str(
        stale(folder, recipe, "verdict")
    )
    (folder / "suite_rewards.py").write_text(RIGHT)
    other = folder / "moved"
    other.mkdir()
    for name in ("recipe.yaml", "my_rewards.py", "suite_rewards.py"):
        (folder / name).rename(other / name)
    assert stale(folder, str(other / "recipe.yaml")) is None


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_reward_try_shows_scores_time_and_failures(folder: Path) -> None:
    recipe = str(folder / "recipe.yaml")
    code, said = call("reward", "try", recipe, "--samples", "2")
    assert code == 0 and "rewards of asks" in said and "NOTE brevity: an empty answer gets as much" in said
    assert said.count("│ reference") == said.count("│ empty") == 2
    code, said = call("reward", "try", recipe, "--stage", "verdict", "--samples", "2")
    assert code == 0 and "rewards of suite held" in said and "right" in said
    code, said = call("reward", "try", recipe, "--stage", "verdct")
    assert code == 2 and "did you mean `verdict`?" in said
    changed(folder, FILE, source="def brevity(samples):\n    return [1 / len(s.answer.content) for s in samples]\n")
    code, said = call("reward", "try", recipe, "--samples", "2")
    assert code == 2 and "2 raised ZeroDivisionError" in said
    assert f"{folder}/my_rewards.py:2), for the prompt" in said and "and the answer ''" in said
    changed(folder, FILE, source="def brevity(samples):\n    return 1.0\n")
    code, said = call("reward", "try", recipe, "--samples", "2")
    assert code == 2 and "returned float 1.0, not a list of scores" in said


def test_an_export_names_the_function_by_its_whole_path(folder: Path) -> None:
    recipe = changed(folder, FILE, "{weight: 0.5, target: 3}")
    code, said = call("export", "nemo-rl", recipe, "--stage", "polite", "--out", str(folder / "out"))
    assert code == 0, said
    reward = yaml.safe_load((folder / "out/config.yaml").read_text())["env"]["nanoalign"]["reward"]
    assert make_reward(reward).weights == {"instruction": 1.0, "brevity": 0.5}
    assert "your own functions are named by their absolute paths" in (folder / "out/README.md").read_text()


def test_a_stage_trains_on_a_users_reward_and_a_failing_one_ends_it(folder: Path) -> None:
    recipe, root = changed(folder, FILE, "{weight: 0.5, target: 3}"), str(folder / "runs")
    code, said = call("run", recipe, "--until", "verdict", "--root", root)
    assert code == 0, said
    row: dict[str, Any] = json.loads((folder / "runs/mine/polite/metrics.jsonl").read_text().splitlines()[0])
    assert 0 <= row["rewards/brevity/mean"] <= 1
    figures = json.loads((folder / "runs/mine/polite/stage.json").read_text())["figures"]
    assert {"reward_instruction", "reward_brevity"} <= set(figures)
    held = json.loads((folder / "runs/mine/verdict/stage.json").read_text())["figures"]["polite.held.on"]
    assert held["n"] == 4
    code, said = call("run", str(folder / "runs/mine/recipe.yaml"), "--root", root)
    assert code == 0 and "nothing to do" in said
    changed(folder, FILE, source="def brevity(samples):\n    raise KeyError('mine')\n")
    code, said = call("run", recipe, "--until", "polite", "--root", root)
    assert code == 2 and f"reward 'brevity' raised KeyError: 'mine' ({folder}/my_rewards.py:2), for the prompt" in said
    assert "raised KeyError" in (folder / "runs/mine/report.html").read_text()


@pytest.mark.slow
def test_of_two_processes_the_one_whose_reward_fails_is_told(folder: Path) -> None:
    source = """import os
def brevity(samples):
    if os.environ["RANK"] == "1":
        raise KeyError("mine")
    return [0.0] * len(samples)
"""
    recipe, root = changed(folder, FILE, source=source), str(folder / "runs")
    Path(recipe).write_text(Path(recipe).read_text() + "device: cpu\nlaunch: {kind: local, processes: 2}\n")
    code, said = call("run", recipe, "--until", "polite", "--root", root)
    assert code == 2 and f"stage polite: rank 1 of 2: reward 'brevity' raised KeyError: 'mine' ({folder}" in said
