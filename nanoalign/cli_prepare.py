"""``nanoalign data prepare``: the tokens of SFT stages, before any GPU is needed."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanoalign.cli_shared import DataRootOption, RecipeArgument, RootOption, SetOption, load_recipe
from nanoalign.common.printable import known

if TYPE_CHECKING:
    from nanoalign.data_recipes.selection import ProgressFn
    from nanoalign.progress import Display
    from nanoalign.recipe.schema import Recipe


def prepare(
    recipe: RecipeArgument,
    stage: Annotated[str | None, typer.Option(help="One SFT stage; default: all.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render and tokenize.")] = 1,
    set_: SetOption = None,
    data_root: DataRootOption = None,
    root: RootOption = Path("runs"),
) -> None:
    """Render and tokenize what SFT stages train on.

    A run does this itself, with one process, and uses what already exists. Run it again after an interruption: it
    resumes where it was.
    """
    from rich.console import Console

    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.graph import stage_seed
    from nanoalign.progress import clock, display
    from nanoalign.sft.data import prepare_stage

    loaded = load_recipe(recipe, set_, None, data_root)
    names = [name for name, section in loaded.stages.items() if section.kind in ("sft", "distill")]
    if workers > 1:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes share the work already
    chosen = [known("SFT stage", stage, names)] if stage else names
    shown, chat = display(Console()), chat_format(loaded.chat)
    try:
        for number, name in enumerate(chosen, 1):
            section: Any = loaded.stages[name]
            begun = time.monotonic()
            shown.start(name, section.kind, number, len(chosen), "preparing")
            data = prepare_stage(
                section,
                loaded.data[section.data],
                chat,
                _tokenizer(loaded, section.from_, root),
                root / loaded.name / name,
                data_root,
                stage_seed(loaded, name),
                workers,
                _progress_row(shown),
            )
            counts = f"{len(data):,} examples, {data.index['tokens']:,} tokens"
            shown.note(f"{name}: {counts} -> {data.folder} ({clock(time.monotonic() - begun)})")
    finally:
        shown.close()


def _tokenizer(recipe: "Recipe", before: str, root: Path) -> Any:
    """The previous stage's, if it has run; it equals the base model's."""
    from nanoalign.models.loading import load_tokenizer

    model = root / recipe.name / before / "model"
    return load_tokenizer(model if model.is_dir() else recipe.model)


def _progress_row(shown: "Display") -> "ProgressFn":
    def progress(doing: str, done: int, total: int | None) -> None:
        shown.row({"time": time.time(), "step": done, "total_steps": total, "phase": doing})

    return progress
