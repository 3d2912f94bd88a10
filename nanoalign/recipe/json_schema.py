"""The recipe's JSON Schema: what editors complete and check recipes by."""

import json

from nanoalign.recipe.schema import Recipe


def json_schema() -> str:
    """The schema as JSON text. It also knows `extends`, which the loader resolves before the recipe is checked."""
    schema = Recipe.model_json_schema(by_alias=True)
    schema["title"] = "nanoalign recipe"
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "Path of the recipe that this one changes; mappings merge, anything else is replaced.",
    }
    schema["if"] = {"required": ["extends"]}
    schema["else"] = {"required": schema.pop("required")}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
