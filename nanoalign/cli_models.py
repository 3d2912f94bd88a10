"""Commands on models: merge, serve, chat and the budget curve."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from nanoalign.cli_shared import DataRootOption, RecipeArgument, RootOption, SetOption, load_recipe
from nanoalign.common.printable import known

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id, builtin:NAME or pip:NAME.")]
ChatOption = Annotated[str, typer.Option("--chat", help="The chat format.")]
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def add_commands(app: typer.Typer) -> None:
    """Adds these commands to the `nanoalign` command."""
    app.command()(merge)
    app.command(context_settings=PASSED_ON)(serve)
    app.command()(chat)
    app.command("budget-curve")(budget_curve)


def merge(
    models: Annotated[
        list[Path] | None, typer.Argument(metavar="[A B ...]", help="Model folders; two for a linear merge.")
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of the merged model (of one folder each, if several).")
    ],
    alphas: Annotated[
        str | None, typer.Option(help="Weights of B: 0.5 (the default), 0.2,0.4 or first:last:step.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="The model that A and B are adapters on, or task vectors from.")
    ] = None,
    method: Annotated[str, typer.Option(help="linear, or a mergekit method: ties, dare_ties, slerp ...")] = "linear",
    weights: Annotated[str | None, typer.Option(help="For other methods: a weight per model, 0.5,0.3,0.2.")] = None,
    density: Annotated[float | None, typer.Option(help="For ties and dare: the share of parameters kept.")] = None,
    t: Annotated[float | None, typer.Option(help="For slerp: the position between the two.")] = None,
    seed: Annotated[int, typer.Option(help="For methods with randomness.")] = 0,
    config: Annotated[
        Path | None, typer.Option(dir_okay=False, help="A mergekit YAML, in place of the other options.")
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Sweep: score every alpha as this recipe's merge stage does.")
    ] = None,
    set_: SetOption = None,
    data_root: DataRootOption = None,
    root: RootOption = Path("runs"),
) -> None:
    """Merge models, or sweep merges and keep the best.

    Linear: (1 - alpha) * A + alpha * B, written for every alpha. With --evaluate every alpha is scored and only the
    best one written.
    """
    from nanoalign.common.errors import ConfigError
    from nanoalign.merge import cli as merging

    if evaluate is None and set_:
        raise ConfigError("--set changes the recipe of --evaluate, which is not given")
    if config is not None:
        _refuse("with --config", models=models, alphas=alphas, base=base, weights=weights, density=density, t=t,
                evaluate=evaluate)  # fmt: skip
        with merging.shown_progress() as progress:
            print(merging.merge_yaml_command(config, out, seed=seed, progress=progress))
    elif not models:
        raise ConfigError("give model folders to merge, or a mergekit YAML as --config")
    elif evaluate is not None:
        _refuse("in a sweep", base=base, weights=weights, density=density, t=t)
        if method != "linear":
            raise ConfigError(f"a sweep is linear, not {method}")
        figures = _sweep(evaluate, models, merging.parse_alphas(alphas or "0.5"), out, set_, data_root, root)
        print(json.dumps(figures, indent=2))
    elif method == "linear" and len(models) == 2:
        _refuse("in a linear merge of two, which has alphas", weights=weights, density=density, t=t)
        with merging.shown_progress() as progress:
            for folder in merging.merge_command(
                models[0], models[1], out, merging.parse_alphas(alphas or "0.5"), base=base, progress=progress
            ):
                print(folder)
    else:
        _refuse("except in a linear merge of two", alphas=alphas)
        numbers = None if weights is None else merging.parse_weights(weights)
        print(
            merging.merge_many_command(method, models, out, base=base, weights=numbers, density=density, t=t, seed=seed)
        )


def _refuse(where: str, **options: Any) -> None:
    """Raises ConfigError for an option that was given but would have no effect."""
    from nanoalign.common.errors import ConfigError

    for name, value in options.items():
        if value not in (None, []):
            raise ConfigError(f"{name if name == 'models' else '--' + name} has no meaning {where}")


def _sweep(
    recipe: str,
    models: list[Path],
    alphas: list[float],
    out: Path,
    overrides: list[str] | None,
    data_root: Path | None,
    root: Path,
) -> dict[str, Any]:
    """The merge stage of a recipe on two models of the user's; its judges are those of the recipe's run."""
    from nanoalign.artifacts import finite
    from nanoalign.common.errors import ConfigError
    from nanoalign.common.stage import StageContext, StageLog
    from nanoalign.graph import inputs_of, stage_seed
    from nanoalign.merge.stage import run
    from nanoalign.stages import suites_of

    loaded = load_recipe(recipe, overrides, None, data_root)
    name = next((name for name, stage in loaded.stages.items() if stage.kind == "merge"), None)
    if name is None or len(models) != 2:
        raise ConfigError(f"a sweep takes two models and a recipe with a merge stage; {recipe} has stage {name}")
    stage = loaded.stages[name].model_copy(update={"alphas": alphas})
    judges = {role: root / loaded.name / source / "model" for role, source in inputs_of(loaded, name).items()}
    context = StageContext(
        name=name,
        folder=out,
        inputs={**judges, "reasoning": models[0], "chat": models[1]},
        chat=loaded.chat,
        seed=stage_seed(loaded, name),
        data_root=data_root,
        device=loaded.device,
        log=StageLog(out),
    )
    suites = {suite: loaded.suites[suite] for _, suite in suites_of(stage)}
    return dict(finite(run(stage, loaded.data, context, suites)))


def serve(
    context: typer.Context,
    model: ModelArgument,
    host: Annotated[str, typer.Option(help="Addresses other than loopback require a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="NANOALIGN_API_KEY", help="Key that requests must carry.")
    ] = None,
    chat: ChatOption = "nemotron-nano-v2",
) -> None:
    """Serve a model with thinking budgets (vLLM).

    Requests may carry thinking_budget. Further options are passed to vLLM unchanged.
    """
    from nanoalign.budget_control.serve import serve as start
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.loading import resolve

    form = chat_format(chat)
    tags = (form.think_open, form.think_close)
    start(str(resolve(model)), host=host, port=port, api_key=api_key, tags=tags, vllm_arguments=context.args)


def chat(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, a hub id, builtin:NAME, pip:NAME or a server's URL.")
    ],
    budget: Annotated[int | None, typer.Option(min=0, help="Thinking tokens per answer; default: unlimited.")] = None,
    grace: Annotated[int, typer.Option(min=0, help="Tokens past the budget to wait for a line end.")] = 500,
    form: ChatOption = "nemotron-nano-v2",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, including thinking.")] = 4096,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.6,
    tokenizer: Annotated[str | None, typer.Option(help="For a server: its model's tokenizer.")] = None,
    served_name: Annotated[str | None, typer.Option(help="For a server: its model's name.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="NANOALIGN_API_KEY", help="For a server: its key.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Talk to a model in the terminal.

    Thinking is folded and counted against its budget. A server (http://127.0.0.1:8000/v1) needs no plugin: the budget
    is enforced by the client.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from nanoalign.budget_control.terminal import run_chat

    run_chat(
        model, form, budget=budget, grace=grace, max_tokens=max_tokens, temperature=temperature, tokenizer=tokenizer,
        served_name=served_name, api_key=api_key, device=device,
    )  # fmt: skip


def budget_curve(
    model: ModelArgument,
    recipe: RecipeArgument,
    suite: Annotated[str | None, typer.Option(help="The recipe's suite to measure on; default: the first.")] = None,
    budgets: Annotated[str, typer.Option(help="Thinking budgets in tokens.")] = "0,32,64,128,256",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, including thinking.")] = 1024,
    grace: Annotated[int, typer.Option(min=0, help="Tokens past a budget to wait for a line end.")] = 16,
    enforcement: Annotated[
        str,
        typer.Option(
            help="Budget enforcements to compare: rule; hard (closed at the budget itself); none (as many tokens in "
            "total as under the rule, nothing closed)."
        ),
    ] = "rule",
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw accuracy by budget (.svg, .png).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences generated together.")] = 64,
    engine: Annotated[str, typer.Option(help="hf, vllm or vllm_server.")] = "hf",
    set_: SetOption = None,
    data_root: DataRootOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The curve as JSON.")] = False,
) -> None:
    """Measure a model against its thinking budget.

    Accuracy, well-formedness, compensation and obedience on one of a recipe's suites.
    """
    from pydantic import ValidationError
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nanoalign.artifacts import finite
    from nanoalign.common.errors import ConfigError
    from nanoalign.evaluation.budget_curve import ENFORCED, accuracy_series, curve_table, run_budget_curve
    from nanoalign.rollouts.config import Rollouts
    from nanoalign.rollouts.engines import ENGINES

    loaded = load_recipe(recipe, set_, None, data_root)
    name = known("suite", suite or next(iter(loaded.suites), "suite"), loaded.suites)
    ways = {known("enforcement", way, ENFORCED) for way in enforcement.split(",")}
    if "rule" not in ways:
        raise ConfigError(f"--enforcement {enforcement}: the others are compared with `rule`; add it")
    try:
        limits = [int(part) for part in budgets.split(",")]
        settings = {"engine": known("engine", engine, ENGINES), "batch_size": batch_size}
        settings |= {"temperature": 0.0, "max_tokens": max_tokens, "grace": grace}
        rollouts = Rollouts.model_validate(settings)
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"budget-curve: {error}") from None
    curve = run_budget_curve(
        model, loaded.suites[name], loaded.data, limits, rollouts, loaded.chat, data_root=data_root, device=device,
        seed=loaded.seed, peers=[way for way in ENFORCED if way in ways - {"rule"}],
    )  # fmt: skip
    if plot is not None:
        from nanoalign.report.plots import intervals

        series, ticks = accuracy_series(curve)
        intervals(series, "thinking budget, tokens", "accuracy, %", ticks).savefig(plot, dpi=150, facecolor="white")
    if as_json:
        print(json.dumps(finite(curve.as_dict()), indent=2))
        return
    rows = curve_table(curve)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table(*columns, title=Text(f"{model} on {name}"))
    for row in rows:
        table.add_row(*(row.get(column, "") for column in columns))
    Console().print(table)
