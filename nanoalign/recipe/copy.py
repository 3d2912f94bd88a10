"""A shipped recipe copied to a user's folder, checked by editors there as it is here."""

from pathlib import Path

from common.errors import ConfigError
from common.files import whole_file
from nanoalign.recipe.explain import nearest
from nanoalign.recipe.json_schema import json_schema
from nanoalign.recipe.load import shipped


def copy_recipe(name: str, to: Path) -> list[Path]:
    """Copies a shipped recipe, and ``schema.json`` beside it (its first line points there); returns both paths.

    Raises ConfigError for an unknown name, and where the file exists: it may hold the user's changes.
    """
    recipes = shipped()
    if name not in recipes:
        raise ConfigError(f"no shipped recipe `{name}`{nearest(name, recipes)}")
    file = to if to.suffix in (".yaml", ".yml") else to / f"{name}.yaml"
    if file.exists():
        raise ConfigError(f"{file} exists already; give another name")
    schema = file.with_name("schema.json")
    for path, text in ((file, recipes[name].read_text(encoding="utf-8")), (schema, json_schema())):
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [file, schema]
