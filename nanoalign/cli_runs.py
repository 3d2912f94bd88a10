"""Commands around a run: begin a recipe, see where a run stands, give a stage's model away."""

import json
from pathlib import Path
from typing import Annotated

import typer

from nanoalign.cli_shared import RootOption
from nanoalign.common.printable import printable

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder (runs/NAME) or its name.")]


def add_commands(app: typer.Typer) -> None:
    """Adds these commands to the `nanoalign` command."""
    app.command()(status)
    app.command()(push)


def status(
    run: RunArgument,
    root: RootOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Show where a run stands.

    Stages done, running, failed and to come; step, time left and last figures; why a stage failed and how to go on.
    """
    from nanoalign.artifacts import finite
    from nanoalign.status import find_run, render, status_of

    found = status_of(find_run(run, root))
    print(json.dumps(finite(found.as_dict()), indent=2) if as_json else printable(render(found)))


def push(
    run: RunArgument,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A finished stage that makes a model.")],
    to: Annotated[str, typer.Option(metavar="USER/NAME", help="The hub's repository; made if it is not there.")],
    public: Annotated[bool, typer.Option("--public", help="Everybody may see it; default: private.")] = False,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    root: RootOption = Path("runs"),
) -> None:
    """Push a stage's model to the Hugging Face hub.

    Weights, tokenizer, chat template, generation settings and model card, as they are in STAGE/model. Needs a token
    (`hf auth login` or HF_TOKEN).
    """
    from nanoalign.push import push as upload
    from nanoalign.status import find_run

    print(printable(upload(find_run(run, root), stage, to, public=public, message=message)))
