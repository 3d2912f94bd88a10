"""The command line. Every command imports what it needs when it is called: --help answers at once.

Exit status: 0 done; 1 a stage crashed; 2 something that the user can act upon; 130 Ctrl-C, 143 SIGTERM.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from common.errors import NanoalignError, StageError


class Group(TyperGroup):
    """Turns the suite's errors into messages and exit statuses."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except NanoalignError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1 if isinstance(error, StageError) else 2) from None
        except KeyboardInterrupt as stop:
            print("stopped; the same command goes on from here", file=sys.stderr)
            raise typer.Exit(143 if type(stop).__name__ == "Terminated" else 130) from None


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="One recipe runs the whole post-training of a reasoning model.",
)
recipes_app = typer.Typer(cls=Group, no_args_is_help=True, help="The recipes that come with nanoalign.")
app.add_typer(recipes_app, name="recipes")

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


@app.command()
def run(
    recipe: RecipeArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    set_: SetOption = None,
    data_root: DataRootOption = None,
    device: DeviceOption = None,
    root: RootOption = Path("runs"),
    force: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run anew, with all after it.")] = None,
    until: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Stop once this stage is done.")] = None,
    ignore_code: Annotated[
        bool, typer.Option("--ignore-code", help="Keep what other versions of the code have made.")
    ] = False,
) -> None:
    """Run a recipe: every stage that is new, changed or unfinished."""
    if dry_run:
        plan(recipe, set_=set_, data_root=data_root, device=device, root=root, ignore_code=ignore_code)
        return
    import time

    from rich.console import Console

    from nanoalign import runner

    begun = time.monotonic()
    loaded = _load(recipe, set_, device, data_root)
    for name in [*(force or []), *(until or [])]:
        _known_stage(loaded, name)
    options = runner.Options(root, data_root, tuple(force or ()), tuple(until or ()), ignore_code)
    ran = runner.run(loaded, options, Console())
    seconds = time.monotonic() - begun
    if ran:
        print(f"{loaded.name}: {len(ran)} stage{'s' * (len(ran) > 1)} run in {seconds:.0f} s")
    else:
        print(f"{loaded.name}: nothing to do, every stage is finished ({root / loaded.name}, {seconds:.1f} s)")


@app.command()
def plan(
    recipe: RecipeArgument,
    set_: SetOption = None,
    data_root: DataRootOption = None,
    device: DeviceOption = None,
    root: RootOption = Path("runs"),
    ignore_code: Annotated[
        bool, typer.Option("--ignore-code", help="Keep what other versions of the code have made.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as JSON.")] = False,
    resolved: Annotated[bool, typer.Option("--resolved", help="Only the resolved recipe, as YAML.")] = False,
) -> None:
    """Show what a run would do, without torch, in a second or two."""
    loaded = _load(recipe, set_, device, data_root)
    if resolved:
        from nanoalign.recipe.load import dump

        print(dump(loaded), end="")
        return
    from nanoalign import plan as planning
    from nanoalign.plan_text import as_text

    made = planning.make(loaded, root / loaded.name, data_root, ignore_code=ignore_code)
    print(json.dumps(planning.as_json(made), indent=2) if as_json else as_text(made))


@recipes_app.command("ls")
def recipes_ls() -> None:
    """List them."""
    import yaml

    from nanoalign.recipe.load import shipped

    for name, path in shipped().items():
        about = yaml.safe_load(path.read_text(encoding="utf-8")).get("about", "")
        print(f"{name:<24} {about}".rstrip())


@recipes_app.command("cp")
def recipes_cp(
    name: Annotated[str, typer.Argument(help="A shipped recipe's name.")],
    to: Annotated[Path, typer.Argument(help="A folder, or the new file's name.")] = Path("."),
) -> None:
    """Copy one to start from, with the schema that editors complete and check it by."""
    from nanoalign.recipe.copy import copy_recipe

    for path in copy_recipe(name, to):
        print(path)


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write it there instead of printing it.")] = None,
) -> None:
    """The recipe's JSON Schema, for editors."""
    from nanoalign.recipe.json_schema import json_schema

    if out is None:
        print(json_schema(), end="")
    else:
        out.write_text(json_schema(), encoding="utf-8")


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="runs/NAME")],
) -> None:
    """Write report.json and report.html of a run anew."""
    from nanoalign.report import write

    write(run_folder)
    print(run_folder / "report.html")


def _load(recipe: str, overrides: list[str] | None, device: str | None, data_root: Path | None) -> Any:
    from nanoalign.recipe.load import load

    overrides = [*(overrides or []), *([f"device={device}"] if device else [])]
    return load(recipe, overrides, data_root=data_root, check_files=True)


def _known_stage(recipe: Any, name: str) -> None:
    from common.errors import ConfigError
    from nanoalign.recipe.explain import nearest

    if name not in recipe.stages:
        raise ConfigError(f"unknown stage `{name}`{nearest(name, recipe.stages)}")


def main() -> None:
    """The `nanoalign` command."""
    app()
