"""The command line. Every command imports what it needs when it is called: --help answers at once.

Exit status: 0 done; 1 a stage crashed; 2 an error that the user can fix; 130 Ctrl-C, 143 SIGTERM.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from nanoalign import cli_data, cli_evaluate, cli_export, cli_fit, cli_models, cli_reward, cli_runs
from nanoalign.cli_shared import (
    DataRootOption,
    DeviceOption,
    Group,
    RecipeArgument,
    RootOption,
    SetOption,
    load_recipe,
    warn,
)
from nanoalign.common.printable import known, printable

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(no_args_is_help=True, help="The recipes that come with nanoalign.")


def _version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        try:
            print(f"nanoalign {metadata.version('nanoalign')}")
        except metadata.PackageNotFoundError:
            print("nanoalign (run from its source, not installed)")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """One recipe runs the complete post-training of a reasoning model."""


@app.command()
def run(
    recipe: RecipeArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    set_: SetOption = None,
    data_root: DataRootOption = None,
    device: DeviceOption = None,
    root: RootOption = Path("runs"),
    force: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Rerun, with everything after it.")] = None,
    until: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Stop once this stage is done.")] = None,
    ignore_code: Annotated[
        bool, typer.Option("--ignore-code", help="Keep artifacts made by other versions of the code.")
    ] = False,
) -> None:
    """Run what is new, changed or unfinished."""
    if dry_run:
        plan(recipe, set_=set_, data_root=data_root, device=device, root=root, ignore_code=ignore_code)
        return
    import time

    from rich.console import Console

    from nanoalign import report, runner

    begun = time.monotonic()
    loaded = load_recipe(recipe, set_, device, data_root)
    for name in [*(force or []), *(until or [])]:
        known("stage", name, loaded.stages)
    options = runner.Options(root, data_root, tuple(force or ()), tuple(until or ()), ignore_code)
    ran = runner.run(loaded, options, Console())
    seconds = time.monotonic() - begun
    if ran:
        print(f"{loaded.name}: {len(ran)} stage{'s' * (len(ran) > 1)} run in {seconds:.0f} s")
    else:
        report.note_rerun(root / loaded.name, seconds)
        print(f"{loaded.name}: nothing to do, every stage is finished ({root / loaded.name}, {seconds:.1f} s)")


@app.command()
def plan(
    recipe: RecipeArgument,
    set_: SetOption = None,
    data_root: DataRootOption = None,
    device: DeviceOption = None,
    root: RootOption = Path("runs"),
    ignore_code: Annotated[
        bool, typer.Option("--ignore-code", help="Keep artifacts made by other versions of the code.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as JSON.")] = False,
    resolved: Annotated[bool, typer.Option("--resolved", help="Only the resolved recipe, as YAML.")] = False,
) -> None:
    """Show what a run would do, in a second or two."""
    notes: list[str] = []
    loaded = load_recipe(recipe, set_, device, data_root, warn if resolved else notes.append)
    if resolved:
        from nanoalign.recipe.load import dump

        print(dump(loaded), end="")
        return
    from nanoalign import plan as planning
    from nanoalign.plan_text import render_plan

    made = planning.make_plan(loaded, root / loaded.name, data_root, ignore_code=ignore_code)
    made.notes[:0] = notes
    print(json.dumps(planning.as_json(made), indent=2) if as_json else printable(render_plan(made)))


@recipes_app.command("ls")
def recipes_ls() -> None:
    """List the shipped recipes."""
    import yaml

    from nanoalign.recipe.load import shipped

    for name, path in shipped().items():
        print(f"{name:<24} {yaml.safe_load(path.read_text(encoding='utf-8'))['about']}")


@recipes_app.command("cp")
def recipes_cp(
    name: Annotated[str, typer.Argument(help="A shipped recipe's name.")],
    to: Annotated[Path, typer.Argument(help="A folder or a new file name.")] = Path("."),
) -> None:
    """Copy a recipe to start from, with the schema that editors use to complete and check it."""
    from nanoalign.recipe.copy import copy_recipe

    for path in copy_recipe(name, to):
        print(path)


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write it to a file instead.")] = None,
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
    """Rewrite a run's report.json and report.html from what exists, even for an unfinished run."""
    from nanoalign.report import write_report

    write_report(run_folder)
    print(run_folder / "report.html")


app.add_typer(cli_data.app, name="data")
app.add_typer(cli_export.app, name="export")
app.add_typer(recipes_app, name="recipes")
app.add_typer(cli_reward.app, name="reward")
cli_runs.add_commands(app)
cli_models.add_commands(app)
cli_fit.add_commands(app)
cli_evaluate.add_commands(app)


def main() -> None:
    """The `nanoalign` command."""
    app()


if __name__ == "__main__":
    main()
