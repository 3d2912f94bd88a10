"""From a stage's kind to the function of its room. Only a stage's own process calls this."""

from collections.abc import Mapping
from typing import Any

from common.stage import StageContext
from nanoalign.recipe.checks import suites_of
from nanoalign.recipe.schema import Recipe


def run_stage(recipe: Recipe, context: StageContext) -> Mapping[str, Any]:
    """Runs the stage ``context.name`` of a recipe and returns its figures. Imports torch and what the stage needs."""
    config = recipe.stages[context.name]
    suites = {name: recipe.suites[name] for _, name in suites_of(config)}
    match config.kind:
        case "pretrain":
            from sft import pretrain

            return pretrain.run(config, context)
        case "sft":
            from sft import stage as sft_stage

            return sft_stage.run(config, recipe.data, context)
        case "dpo":
            from rl import dpo

            return dpo.run(config, recipe.data, context)
        case "reward_model":
            from rl import reward_model

            return reward_model.run(config, recipe.data, context)
        case "grpo":
            from rl import grpo

            return grpo.run(config, recipe.data, context)
        case "merge":
            from merge import stage as merge_stage

            return merge_stage.run(config, recipe.data, context, suites)
        case "evaluate":
            from evaluation import stage as evaluation_stage

            return evaluation_stage.run(config, recipe.data, context, suites)
