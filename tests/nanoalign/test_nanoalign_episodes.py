"""A GRPO stage in an environment, in a recipe: planned, fingerprinted, and every wrong combination named."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.recipe.load import RecipeError, load

RECIPE = """\
name: agent
seed: 1
model: builtin:miniature-base
chat: nemotron-nano-v2
data:
  sums: {sources: {miniature:math: 20}}
stages:
  agent:
    kind: grpo
    from: base
    WHAT
    group_size: 4
    rollouts: {max_tokens: 16}
    train: {learning_rate: 1.0e-4, batch_size: 8, steps: 2}
"""
ENVIRONMENT = "environment: miniature-workplace"
EPISODES = f"{ENVIRONMENT}\n    reward: {{environment: 1.0, format: 0.1}}"


def written(folder: Path, what: str) -> Path:
    (folder / "recipe.yaml").write_text(RECIPE.replace("WHAT", what))
    return folder / "recipe.yaml"


def test_it_is_planned(tmp_path: Path) -> None:
    more = "max_turns: 4\n    episode_tokens: 60\n    budget_per: episode\n    thinking: {budgets: [8]}"
    recipe = written(tmp_path, f"{EPISODES}\n    {more}")
    planned = CliRunner().invoke(app, ["plan", str(recipe), "--root", str(tmp_path / "runs")])
    assert planned.exit_code == 0, planned.output
    assert "agent  grpo from base" in planned.output and "2 of 8 sequences" in planned.output
    stage = load(str(recipe)).stages["agent"]
    assert (stage.max_turns, stage.episode_tokens, stage.budget_per, stage.data) == (4, 60, "episode", None)


WRONG = {
    "data: sums\n    reward: {format: 1.0}\n    environment: miniature-workplace": (
        "stages.agent", "needs `data`, a mixture of prompts, or `environment`, whose tasks are played; one of them"),
    "reward: {format: 1.0}": ("stages.agent", "needs `data`, a mixture of prompts, or `environment`"),
    "data: sums\n    reward: {environment: 1.0}": (
        "stages.agent.reward.environment", "judges episodes; this stage answers prompts"),
    "data: sums\n    reward: {task: 1.0}\n    max_turns: 3": ("stages.agent.max_turns", "is for episodes"),
    "data: sums\n    reward: {task: 1.0}\n    episode_tokens: 30": ("stages.agent.episode_tokens", "is for episodes"),
    "data: sums\n    reward: {task: 1.0}\n    budget_per: episode": ("stages.agent.budget_per", "is for episodes"),
    f"{ENVIRONMENT}\n    reward: {{tools: 1.0}}": ("stages.agent.reward.tools", "reads the tasks of a mixture"),
    f"{ENVIRONMENT}\n    reward: {{length: 1.0}}": ("stages.agent.reward.length", "reads the tasks of a mixture"),
    f"{ENVIRONMENT}\n    reward: {{enviroment: 1.0}}": ("stages.agent.reward.enviroment", "mean `environment`"),
    "environment: miniature-workplac\n    reward: {environment: 1.0}": (
        "stages.agent.environment", "mean `miniature-workplace`"),
    f"{EPISODES}\n    max_turns: 0": ("stages.agent.max_turns", "greater than or equal to 1"),
    f"{EPISODES}\n    episode_tokens: 0": ("stages.agent.episode_tokens", "greater than or equal to 1"),
    f"{EPISODES}\n    budget_per: task": ("stages.agent.budget_per", "'turn' or 'episode'"),
    f"{EPISODES}\n    max_turn: 3": ("stages.agent.max_turn", "mean `max_turns`"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_combination_is_named(tmp_path: Path, what: str) -> None:
    path, message = WRONG[what]
    with pytest.raises(RecipeError) as refused:
        load(str(written(tmp_path, what)))
    (problem,) = refused.value.problems
    assert problem.path == path and problem.place.line is not None
    assert message in problem.message, problem
