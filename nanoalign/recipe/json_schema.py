"""The recipe's JSON Schema: what editors complete and check recipes by."""

import json
from collections.abc import Mapping
from typing import Any

from nanoalign.common.table import Entry
from nanoalign.data_recipes.chat import CHAT_FORMATS
from nanoalign.evaluation.benchmarks import BENCHMARKS
from nanoalign.recipe.schema import Recipe
from nanoalign.reward.table import REWARDS
from nanoalign.rollouts.engines import ENGINES
from nanoalign.rollouts.environments import ENVIRONMENTS


def json_schema() -> str:
    """The schema as JSON text. It also knows `extends`, which the loader resolves before the recipe is checked."""
    schema = Recipe.model_json_schema(by_alias=True)
    _list(schema, "chat", CHAT_FORMATS)
    for section in schema["$defs"].values():
        _list(section, "reward", REWARDS)
        _list(section, "environment", ENVIRONMENTS)
        _list(section, "engine", ENGINES)
        _list(section, "benchmark", BENCHMARKS)
    schema["title"] = "nanoalign recipe"
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "Path of the recipe that this one changes; mappings merge, anything else is replaced.",
    }
    schema["if"] = {"required": ["extends"]}
    schema["else"] = {"required": schema.pop("required")}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _list(section: dict[str, Any], key: str, table: Mapping[str, Entry]) -> None:
    """Adds the lines of the table that a section's key names to its description."""
    if described := section.get("properties", {}).get(key):
        described["description"] += "".join(f"\n- {name}: {entry.about}" for name, entry in table.items())
