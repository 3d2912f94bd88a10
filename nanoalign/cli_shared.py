"""Shared by the command groups: errors as messages, and common arguments."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nanoalign.common.errors import NanoalignError, StageError
from nanoalign.common.printable import printable


class Group(TyperGroup):
    """Turns the suite's errors into messages and exit statuses."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except NanoalignError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            raise typer.Exit(1 if isinstance(error, StageError) else 2) from None
        except KeyboardInterrupt as stop:
            print("stopped", file=sys.stderr)
            raise typer.Exit(143 if type(stop).__name__ == "Terminated" else 130) from None


RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's file, or a shipped recipe's name.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value: stages.refine.train.learning_rate=1e-5."),
]
DataRootOption = Annotated[
    Path | None,
    typer.Option(envvar="NANOALIGN_DATA", exists=True, file_okay=False, help="Folder of mirrored data sets."),
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu or cuda, instead of the recipe's device.")]
RootOption = Annotated[Path, typer.Option(file_okay=False, help="Folder of all runs.")]


def warn(note: str) -> None:
    print(f"NOTE: {printable(note)}", file=sys.stderr)


def load_recipe(
    recipe: str,
    overrides: list[str] | None,
    device: str | None,
    data_root: Path | None,
    note: Callable[[str], object] = warn,
) -> Any:
    """A checked recipe; its sources' files must be there. ``note`` is told what should be written in another way."""
    from nanoalign.recipe.load import load

    overrides = [*(overrides or []), *([f"device={device}"] if device else [])]
    return load(recipe, overrides, data_root=data_root, check_files=True, note=note)


def print_table(rows: list[dict[str, str]], title: str) -> None:
    """Rows of text under the columns that any of them has. Nothing is cut: a narrow terminal folds cells, and a file or
    a pipe gets lines as long as it takes."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table(*(Column(Text(column), overflow="fold") for column in columns), title=Text(title))
    for row in rows:
        table.add_row(*(Text(printable(row.get(column, ""))) for column in columns))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, console.measure(table, options=console.options.update(width=10**6)).maximum)
    console.print(table)
