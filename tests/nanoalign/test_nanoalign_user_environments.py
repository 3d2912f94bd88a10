"""A user's environment in a recipe: checked without being run, anchored to the recipe, and part of what a stage is."""

from pathlib import Path

import pytest

from nanoalign.graph import code_of, nodes, resolved
from nanoalign.recipe.load import RecipeError, dump, load

RECIPE = """\
name: mine
seed: 1
model: builtin:miniature-base
chat: nemotron-nano-v2
suites:
  shop:
    environment: ENVIRONMENT
stages:
  agent:
    kind: dpo
    from: base
    environment: {name: "my_env.py:Shop", params: {largest: 3}}
    tasks_per_round: 2
    held_out_tasks: 2
    rollouts: {max_tokens: 16}
    train: {learning_rate: 1.0e-4}
  verdict: {kind: evaluate, of: [base], suites: [shop], rollouts: {max_tokens: 16}}
"""
CODE = """
raise RuntimeError("a plan runs no user code")
import helper

class Shop:
    def __init__(self, largest): ...
    def tasks(self, split): ...
    def reset(self, task): ...
class Half:
    def tasks(self, split): ...
    def rest(self, task): ...
async def later(): ...
def make(size=1): ...
def tool(x): ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_env.py").write_text(CODE)
    (tmp_path / "helper.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "server.py").write_text("x = 1\n")
    return tmp_path


def written(folder: Path, environment: str) -> Path:
    (folder / "recipe.yaml").write_text(RECIPE.replace("ENVIRONMENT", environment))
    return folder / "recipe.yaml"


RIGHT = [
    'my_env.py:make',
    '"my_env.py:Shop"',
    '{name: "my_env.py:make", params: {size: 3}, tools: [{mcp: python server.py}], deadline_s: 2}',
    '{name: reasoning-gym, params: {dataset: chain_sum}}',
    "miniature-workplace",
]  # fmt: skip


@pytest.mark.parametrize("environment", [text for text in RIGHT if "Shop" not in text])
def test_a_right_one_is_planned_without_being_run(folder: Path, environment: str) -> None:
    recipe = load(str(written(folder, environment)))
    (folder / "resolved.yaml").write_text(dump(recipe))
    assert load(str(folder / "resolved.yaml")) == recipe
    assert recipe.stages["agent"].environment.name == f"{folder}/my_env.py:Shop"


WRONG = [
    ("my_env.py", "suites.shop.environment: expected FILE.py:NAME"),
    ("my_enw.py:Shop", "no such file: .*/my_enw.py; did you mean `my_env.py`"),
    ("my_env.py:Shpo", "defines no `Shpo`; did you mean `Shop`"),
    ("broken.py:f", "broken.py:1: not valid Python"),
    ("no_package.envs:make", "no module `no_package.envs`: neither beside the recipe"),
    ("miniature-workplaces", "unknown environment `miniature-workplaces`; did you mean `miniature-workplace`"),
    ('"my_env.py:Shop"', "needs the parameter `largest`"),
    ('{name: "my_env.py:Shop", params: {largest: 1, larges: 1}}', "params.larges: .*; did you mean `largest`"),
    ('"my_env.py:Half"', "`Half` .*my_env.py:9\\) has no method `reset`; is `rest` it"),
    ('"my_env.py:later"', "`later` .* is async"),
    ("{name: miniature-workplace, params: {size: 1}}", "environment.params: `miniature-workplace` takes no parameters"),
    ('{name: miniature-workplace, tools: ["my_env.py:tool"]}', "environment.tools: .* has its own tools"),
    ("{name: reasoning-gym, params: {dataset: chain_sums}}", "unknown data set `chain_sums`; did you mean `chain_sum`"),
    ("{name: reasoning-gym}", "needs the parameter `dataset`"),
    ('{name: "my_env.py:make", tools: ["my_env.py:tol"]}', "environment.tools.0: .* no `tol`; did you mean `t"),
    ('{name: "my_env.py:make", tools: ["my_env.py:tool"]}', "my_env.py:14: tool `tool`: parameter `x` has no type"),
    ('{name: "my_env.py:make", tools: ["my_env.py:Shop"]}', "`Shop` is a class; a tool is a function"),
    ('{name: "my_env.py:make", tools: [{mcp: python serve.py}]}', "no such file: .*/serve.py; did you mean `serv"),
    ('{name: "my_env.py:make", tools: [{mcp: python broken.py}]}', "mcp: .*broken.py:1: not valid Python"),
    ('{name: "my_env.py:make", tools: [{mcp: no-such-command}]}', "mcp: no command `no-such-command` on the PATH"),
    ("""{name: "my_env.py:make", tools: [{mcp: "python 'x"}]}""", "mcp: .* cannot be read as a command"),
    ('{name: "my_env.py:make", deadline_s: 0}', "environment.deadline_s: expected greater than 0"),
    ('{nam: "my_env.py:make"}', "environment.nam: unknown key; did you mean `name`"),
    ("{params: {size: 1}}", "environment.name: required but missing"),
    ("3", "environment: expected a mapping, got 3"),
]  # fmt: skip


@pytest.mark.parametrize("environment, message", WRONG)
def test_a_wrong_one_is_named_with_its_line(folder: Path, environment: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load(str(written(folder, environment)))
    (problem,) = caught.value.problems
    assert problem.place.line == 7 and problem.path.startswith("suites.shop.environment"), problem


def test_names_are_relative_to_the_file_that_says_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(folder, "my_env.py:make")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/above.yaml").write_text("extends: ../recipe.yaml\nname: above\n")
    monkeypatch.chdir(folder / "elsewhere")
    recipe = load("above.yaml")
    assert recipe.suites["shop"].environment.name == f"{folder}/my_env.py:make"
    with pytest.raises(RecipeError, match=f"no such file: {folder}/elsewhere/my_env.py"):
        load("above.yaml", ["suites.shop.environment=my_env.py:make"])
    recipe = load("above.yaml", ["suites.shop.environment=../my_env.py:make"])
    assert Path(recipe.suites["shop"].environment.name).resolve() == folder / "my_env.py:make"


def test_a_package_beside_the_recipe_is_found_by_its_dotted_name(folder: Path) -> None:
    package = folder / "my_package_of_envs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "envs.py").write_text("def make(): ...\n")
    recipe = load(str(written(folder, "my_package_of_envs.envs:make")))
    assert recipe.suites["shop"].environment.name == f"{package}/envs.py:make"


@pytest.mark.parametrize("changed", ["my_env.py", "helper.py"])
def test_a_changed_source_makes_the_stage_stale(folder: Path, changed: str) -> None:
    recipe = load(str(written(folder, "my_env.py:make")))
    before = {node.name: dict(node.code) for node in nodes(recipe, folder / "runs")}
    assert set(before["agent"]) > {"my_env.py:Shop", "rl"} and "my_env.py:make" in before["verdict"]
    (folder / changed).write_text((folder / changed).read_text() + "y = 2\n")
    after = {node.name: dict(node.code) for node in nodes(recipe, folder / "runs")}
    assert after["agent"] != before["agent"] and after["verdict"] != before["verdict"]


def test_a_changed_server_makes_the_stage_stale(folder: Path) -> None:
    recipe = load(str(written(folder, '{name: "my_env.py:make", tools: [{mcp: python server.py}]}')))
    before = code_of(recipe, "verdict")
    (folder / "server.py").write_text("x = 2\n")
    assert code_of(recipe, "verdict") != before


def test_a_moved_folder_is_the_same_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    use = '{name: "my_env.py:make", tools: [{mcp: python server.py}]}'
    here = load(str(written(folder, use)))
    other = tmp_path_factory.mktemp("moved")
    for file in folder.glob("*.py"):
        (other / file.name).write_text(file.read_text())
    there = load(str(written(other, use)))
    for stage in here.stages:
        assert resolved(here, stage) == resolved(there, stage)
        assert code_of(here, stage) == code_of(there, stage)
