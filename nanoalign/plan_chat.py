"""What a plan says of a tokenizer's own chat template (`chat: hf:...`)."""

from nanoalign.common.errors import ConfigError
from nanoalign.plan_data import is_elsewhere
from nanoalign.recipe.schema import Recipe


def template_notes(recipe: Recipe) -> list[str]:
    """The template's gaps. Raises ConfigError where a stage needs what it cannot render, CheckpointError where the
    tokenizer has no template."""
    if not recipe.chat.startswith("hf:"):
        return []
    if is_elsewhere(recipe.chat):
        return [f"chat: {recipe.chat} is not on this machine yet: its template is checked when the run begins"]
    from nanoalign.data_recipes.chat.gaps import gaps, without_thinking
    from nanoalign.data_recipes.chat.template import HFTemplate

    chat = HFTemplate.load(recipe.chat)
    if fault := without_thinking(chat):
        for name, stage in recipe.stages.items():
            if getattr(stage, "strip_reasoning", 0) > 0:
                raise ConfigError(f"stages.{name}.strip_reasoning: answers without thinking cannot be trained: {fault}")
    return [f"chat: {recipe.chat}: {gap}" for gap in gaps(chat)]
