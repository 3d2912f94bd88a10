"""``nanoalign data``: see what a recipe trains on."""

import json
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanoalign.cli_generate import generate
from nanoalign.cli_prepare import prepare
from nanoalign.cli_shared import DataRootOption, RecipeArgument, SetOption, load_recipe
from nanoalign.common.printable import known

if TYPE_CHECKING:
    from nanoalign.data_recipes.config import Mixture
    from nanoalign.recipe.schema import Recipe

app = typer.Typer(no_args_is_help=True, help="Inspect what a recipe trains on, and generate more.")
app.command()(prepare)
app.command()(generate)

WIDTH = 120
"""Characters of a line in an HTML page, whatever the terminal's."""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="UTF-8">
<title>{title}</title>
<style>
{stylesheet}
body {{ color: {foreground}; background-color: {background}; margin: 2em; }}
pre {{ font-family: Menlo, "DejaVu Sans Mono", Consolas, monospace; font-size: 14px; line-height: 1.2; }}
</style>
</head>
<body>
<pre><code style="font-family: inherit">{code}</code></pre>
</body>
</html>
"""
StageOption = Annotated[str | None, typer.Option(help="The SFT stage whose data to show; default: the first.")]


@app.command()
def show(
    recipe: RecipeArgument,
    stage: StageOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to show, drawn from all sources.")] = 8,
    packs: Annotated[bool, typer.Option("--packs", help="Group them into packs.")] = False,
    set_: SetOption = None,
    data_root: DataRootOption = None,
) -> None:
    """Show samples as the model sees them.

    Trained text is in colour; reasoning is stripped and cut as in the stage.
    """
    from rich.console import Console

    from nanoalign.common.errors import ConfigError
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.data_recipes.show import show as show_samples
    from nanoalign.data_recipes.tokenize import encode_batch
    from nanoalign.graph import stage_seed
    from nanoalign.models.loading import load_tokenizer
    from nanoalign.sft.data import packed

    loaded = load_recipe(recipe, set_, None, data_root)
    name = _stage(loaded, stage)
    section, tokenizer, chat = loaded.stages[name], load_tokenizer(loaded.model), chat_format(loaded.chat)
    conversations = _conversations(loaded, name, samples, tokenizer, data_root)
    console = Console()
    groups: Any = None
    if packs:
        if section.pack is None:
            raise ConfigError(f"stage {name} does not pack its samples")
        lengths = [len(e.input_ids) for each in encode_batch(conversations, chat, tokenizer) for e in each]
        fitting = [place for place, length in enumerate(lengths) if length <= section.pack.length]
        rows = packed([lengths[place] for place in fitting], section.pack, stage_seed(loaded, name))
        groups = [[fitting[place] for place in row.tolist()] for row in rows]
        if left := len(lengths) - len(fitting):
            console.print(f"{left} examples are longer than a pack of {section.pack.length} tokens: not shown")
    show_samples(conversations, chat, tokenizer, console, groups)


@app.command()
def stats(
    recipe: RecipeArgument,
    data: Annotated[str | None, typer.Option(help="The mixture to count; default: the recipe's first.")] = None,
    set_: SetOption = None,
    data_root: DataRootOption = None,
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the tables there as HTML.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Count a mixture exactly.

    Tokens by domain, source, language and licence; lengths; duplicates.
    """
    from rich.console import Console

    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.data_recipes.selection import build
    from nanoalign.data_recipes.stats import stats as count
    from nanoalign.data_recipes.stats import tables
    from nanoalign.models.loading import load_tokenizer

    loaded = load_recipe(recipe, set_, None, data_root)
    name = known("mixture", data or next(iter(loaded.data)), loaded.data)
    chat = chat_format(loaded.chat)
    built = build(loaded.data[name], data_root, loaded.seed, chat=chat)
    figures = count(built.conversations, chat, load_tokenizer(loaded.model))
    if as_json:
        print(json.dumps({"mixture": name, **figures.as_dict(), "loading": built.report.as_dict()}, indent=2))
        return
    console = Console()
    page = Console(record=True, width=WIDTH, file=StringIO())
    for table in tables(figures, built.report):
        console.print(table, "")
        page.print(table, "")
    if html is not None:
        html.write_text(page.export_html(code_format=PAGE.replace("{title}", name)), encoding="utf-8")


@app.command()
def sources(data_root: DataRootOption = None) -> None:
    """List the named sources and where they are."""
    from nanoalign.common.errors import NanoalignError
    from nanoalign.data_recipes.catalog import catalog
    from nanoalign.data_recipes.miniature import SOURCES
    from nanoalign.data_recipes.sources import describe_source

    for name, entry in catalog().items():
        try:
            about = describe_source(
                name, data_root, "train" if "test" not in entry.files or "train" in entry.files else "test"
            )
            where = "here" if about["found"] else f"hub: {entry.hub}"
            rows = f"{about['rows']:,}" if about["rows"] else "?"
        except NanoalignError:
            where, rows = "not here", "?"
        print(f"{name:<28} {entry.licence:<18} {rows:>9} rows  {where:<40} {entry.about}")
    print(f"miniature:NAME               generated: {', '.join([*SOURCES, 'tools'])}")
    print("reasoning-gym:DATASET        generated, with its own verifiers")
    print("file:PATH                    your rows, one JSON object a line (file:PATH#LAYOUT for another layout)")


def _stage(recipe: "Recipe", stage: str | None) -> str:
    taught = [name for name, section in recipe.stages.items() if section.kind in ("sft", "distill")]
    return known("SFT stage", stage or (taught[0] if taught else "sft"), taught)


def _conversations(recipe: "Recipe", name: str, samples: int, tokenizer: Any, data_root: Path | None) -> Any:
    """About ``samples`` conversations of a stage's mixture, taught as the stage teaches them."""
    from nanoalign.budget_control.transforms import teaching
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.data_recipes.selection import build
    from nanoalign.graph import stage_seed

    section: Any = recipe.stages[name]
    taught = teaching(section.strip_reasoning, section.truncate_reasoning, tokenizer)
    few = smaller(recipe.data[section.data], samples)
    chat = chat_format(recipe.chat)
    return build(few, data_root, stage_seed(recipe, name), taught, chat).conversations[:samples]


def smaller(mixture: "Mixture", samples: int) -> "Mixture":
    """The mixture with its sources in the same proportions, at least one sample of each, about ``samples`` in all."""
    share = samples / sum(use.samples for use in mixture.uses.values())
    fewer = {
        source: use.model_copy(update={"samples": max(1, min(use.samples, round(use.samples * share)))})
        for source, use in mixture.uses.items()
    }
    return mixture.model_copy(update={"sources": fewer})
