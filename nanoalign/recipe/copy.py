"""Copies a shipped recipe to a user's folder, with the schema that editors check it against."""

import re
import shlex
from pathlib import Path

from nanoalign.common.errors import ConfigError
from nanoalign.common.files import atomic_file
from nanoalign.common.printable import nearest
from nanoalign.recipe.json_schema import json_schema
from nanoalign.recipe.load import shipped


def copy_recipe(name: str, to: Path) -> list[Path]:
    """Copies a shipped recipe, and ``schema.json`` beside it (its first line points there); returns the paths written.

    The commands in its header name the copy. What it extends is copied too, where it is not there yet.

    Raises ConfigError for an unknown name, and where the file exists: it may hold the user's changes.
    """
    recipes = shipped()
    if name not in recipes:
        raise ConfigError(f"no shipped recipe `{name}`{nearest(name, recipes)}")
    file = to if to.suffix in (".yaml", ".yml") else to / f"{name}.yaml"
    if file.exists():
        raise ConfigError(f"{file} exists already; give another name")
    text = recipes[name].read_text(encoding="utf-8").replace(f"recipes/{name}.yaml", shlex.quote(str(file)))
    files = {file: text, file.with_name("schema.json"): json_schema()}
    for base in _extended(text):
        if not (beside := file.with_name(base)).exists():
            files[beside] = (recipes[name].parent / base).read_text(encoding="utf-8")
    for path, content in files.items():
        with atomic_file(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return list(files)


def _extended(text: str) -> list[str]:
    """The file that a shipped recipe extends; none of those extends another."""
    return re.findall(r"^extends: (\S+)$", text, re.MULTILINE)
