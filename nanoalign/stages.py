"""From a stage's kind to the function of its room. Only a stage's own process calls this."""

from collections.abc import Mapping
from typing import Any

from nanoalign.common.stage import StageContext
from nanoalign.recipe.checks import suites_of
from nanoalign.recipe.schema import Recipe


def run_stage(recipe: Recipe, context: StageContext) -> Mapping[str, Any]:
    """Runs the stage ``context.name`` of a recipe and returns its figures. Imports torch and what the stage needs."""
    config = recipe.stages[context.name]
    suites = {name: recipe.suites[name] for _, name in suites_of(config)}
    match config.kind:
        case "pretrain":
            from nanoalign.sft.pretrain import run as pretrain

            return pretrain(config, context)
        case "sft":
            from nanoalign.sft.stage import run as sft

            return sft(config, recipe.data, context)
        case "dpo":
            from nanoalign.rl.dpo import run as dpo

            return dpo(config, recipe.data, context)
        case "reward_model":
            from nanoalign.rl.reward_model import run as reward_model

            return reward_model(config, recipe.data, context)
        case "grpo":
            from nanoalign.rl.grpo import run as grpo

            return grpo(config, recipe.data, context)
        case "merge":
            from nanoalign.merge.stage import run as merge

            return merge(config, recipe.data, context, suites)
        case "evaluate":
            from nanoalign.evaluation.stage import run as evaluate

            return evaluate(config, recipe.data, context, suites)
