"""The model card (``README.md``) of a stage's model: what it was made from and how, its figures, how to use it.

A merge writes its own (merge/model_card.py).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nanoalign.common.errors import NanoalignError
from nanoalign.common.files import atomic_file
from nanoalign.graph import BASE, inputs_of, needed_by, order, seed_of
from nanoalign.models.loading import HUB_ID
from nanoalign.recipe.schema import Recipe
from nanoalign.stages import STAGES

USE = """\
```python
from transformers import pipeline

model = pipeline("text-generation", "FOLDER_OR_HUB_ID")
print(model([{"role": "user", "content": "What is 17 + 25?"}], max_new_tokens=512))
```

The chat template takes `enable_thinking` (true or false; left out, the last `/think` or `/no_think` in the messages
decides) and `tools`; earlier reasoning goes under `reasoning_content`. `vllm serve FOLDER_OR_HUB_ID` takes the same as
`chat_template_kwargs` of a request."""


def write_card(
    recipe: Recipe, stage: str, figures: Mapping[str, Any], folder: Path, data_root: Path | None = None
) -> None:
    """Writes ``README.md`` into a model's folder, unless the stage wrote one.

    Args:
        figures: the stage's own.
        data_root: where mirrored data sets are, for their licences.
    """
    if not (folder / "README.md").exists():
        with atomic_file(folder / "README.md") as temporary:
            temporary.write_text("\n".join(_lines(recipe, stage, figures, data_root)) + "\n", encoding="utf-8")


def _lines(recipe: Recipe, stage: str, figures: Mapping[str, Any], data_root: Path | None) -> Iterator[str]:
    kind = recipe.stages[stage].kind
    judges = STAGES[kind].makes == "reward model"
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if judges else "text-generation",
        "tags": ["nanoalign", kind],
    }
    if HUB_ID.fullmatch(recipe.model):
        front["base_model"] = recipe.model
    yield from ("---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(), "---")
    yield f"# {recipe.name}, {stage}"
    yield f"\nMade by nanoalign: stage `{stage}` ({STAGES[kind].about}) of the recipe `{recipe.name}`, seed "
    yield f"{seed_of(recipe, stage)}, chat format `{recipe.chat}`, base model `{recipe.model}`."
    yield from ("\n## Stages", "| stage | kind | from | data |", "|---|---|---|---|")
    before = needed_by(recipe, [stage])
    for name in (name for name in order(recipe) if name in before):
        sources = ", ".join(dict.fromkeys(inputs_of(recipe, name).values())) or BASE
        yield f"| {name} | {recipe.stages[name].kind} | {sources} | {getattr(recipe.stages[name], 'data', '')} |"
    if mixtures := dict.fromkeys(filter(None, (getattr(recipe.stages[name], "data", None) for name in before))):
        yield from ("\n## Data", "| source | samples | licence |", "|---|---|---|")
        for mixture in sorted(mixtures):
            for source, use in recipe.data[mixture].uses.items():
                yield f"| {source} | {use.samples:,} | {_licence(source, use.split, data_root)} |"
    numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    if numbers:
        yield from ("\n## Figures", "| figure | value |", "|---|---|")
        yield from (f"| {name.replace('_', ' ')} | {value:,.6g} |" for name, value in numbers.items())
    if not judges:
        yield from ("\n## Use", USE)


def _licence(source: str, split: str, data_root: Path | None) -> str:
    from nanoalign.data_recipes.sources import describe_source

    try:
        return str(describe_source(source, data_root, "test" if split == "test" else "train")["licence"])
    except NanoalignError:
        return "unknown"
