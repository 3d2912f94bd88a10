"""Commands around a run: begin a recipe, see where a run stands, give a stage's model away."""

import json
from pathlib import Path
from typing import Annotated

import typer

from nanoalign.cli_shared import DataRootOption, RootOption
from nanoalign.common.printable import printable

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder (runs/NAME) or its name.")]


def add_commands(app: typer.Typer) -> None:
    """Adds these commands to the `nanoalign` command."""
    app.command()(new)
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


def new(
    name: Annotated[str, typer.Argument(help="The run's name.")] = "mine",
    goal: Annotated[
        str | None, typer.Option(help="sft, grpo, sft+grpo, tools, agent, distill or compress; default: asked.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A folder, a hub id, builtin:NAME or pip:NAME.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="FILE|SOURCE[=N]", help="Samples or prompts; N of them, default: all.")
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(metavar="FILE|SOURCE[=N]", help="Held-out tasks to measure on.")
    ] = None,
    reward: Annotated[str | None, typer.Option(help="GRPO's reward: a name or FILE.py:FUNCTION.")] = None,
    environment: Annotated[str | None, typer.Option(help="Where tools are called: a name or FILE.py:CLASS.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Whom `distill` learns from: a folder, a hub id.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of this machine; 0 is the CPU.")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train low-rank adapters, not all weights.")] = False,
    chat: Annotated[str | None, typer.Option(help="The chat format; default: the model's.")] = None,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="The recipe's file; default: NAME.yaml.")] = None,
    data_root: DataRootOption = None,
) -> None:
    """Begin a recipe: commented, from a few flags, or from questions for what they leave open.

    What is written loads and plans as it is; everything in it can be changed.
    """
    from nanoalign.new import GOALS, Choices, write_recipe

    if goal is None:
        for known_goal, about in GOALS.items():
            print(f"  {known_goal:<10} {about}")
        goal = _asked("goal", "sft")
        model = model or _asked("model (folder, hub id, builtin:NAME, pip:NAME)", "builtin:miniature-base")
        plays = goal in ("tools", "agent")
        data = data or _asked("data (files or sources)", f"miniature:{'tools' if plays else 'math'}=200").split()
        if "grpo" in goal:
            reward = reward or _asked("reward (a name or FILE.py:FUNCTION)", "task")
        if plays:
            environment = environment or _asked("environment (a name or FILE.py:CLASS)", "miniature-workplace")
        if goal == "distill":
            teacher = teacher or _asked("teacher (folder, hub id)", "builtin:miniature-base")
        gpus = int(_asked("GPUs", "0")) if gpus is None else gpus
    name = name.removesuffix(".yaml")
    file = out or Path(f"{name}.yaml")
    write_recipe(
        Choices(
            name, goal, model or "builtin:miniature-base", tuple(data or ()), tuple(test or ()), reward,
            environment, gpus or 0, lora, chat, teacher, data_root,
        ),
        file,
    )  # fmt: skip
    print(f"{file}\n  nanoalign plan {file}\n  nanoalign run {file}")


def _asked(question: str, default: str) -> str:
    return str(typer.prompt(question, default=default))
