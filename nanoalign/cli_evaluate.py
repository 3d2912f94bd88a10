"""Commands that measure models: evaluate, and compare two evaluations."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nanoalign.cli_shared import DataRootOption, RootOption, SetOption, load_recipe, print_table
from nanoalign.common.printable import known, printable


def add_commands(app: typer.Typer) -> None:
    """Adds these commands to the `nanoalign` command."""
    app.command()(evaluate)
    app.command()(benchmarks)
    app.command()(compare)


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Folders, hub ids, builtin:NAME or pip:NAME.")
    ],
    suite: Annotated[str, typer.Option(help="Public benchmarks (docs/names.md), or suites of --recipe.")],
    budget: Annotated[str, typer.Option(help="Thinking budgets in tokens; none is unlimited.")] = "none",
    modes: Annotated[str, typer.Option(help="think, no_think or both.")] = "think,no_think",
    samples: Annotated[
        int | None, typer.Option("--samples", "--limit", min=1, help="Tasks of each suite; default: all.")
    ] = None,
    completions: Annotated[
        int | None, typer.Option(min=1, help="Answers to each task, for avg@k and pass@k; default: the suite's.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, including thinking; default: by suite and mode.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Default: the suite's.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Default: the suite's.")] = None,
    grace: Annotated[int, typer.Option(min=0, help="Tokens past a budget to wait for a line end.")] = 500,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences generated together.")] = 64,
    engine: Annotated[str, typer.Option(help="hf, vllm or vllm_server.")] = "hf",
    chat: Annotated[str, typer.Option(help="The chat format.")] = "nemotron-nano-v2",
    judge_url: Annotated[str | None, typer.Option(help="The endpoint of benchmarks with a judge.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's name there.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Its suites may be named, and its training data are searched for the benchmarks' questions."),
    ] = None,
    set_: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder of the results; default: runs/evaluate/MODEL.")
    ] = None,
    root: RootOption = Path("runs"),
    seed: Annotated[int, typer.Option(min=0, help="Of the answers.")] = 0,
    data_root: DataRootOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The results as JSON.")] = False,
) -> None:
    """Measure models on public benchmarks.

    Every suite in every mode, through one engine. A stopped evaluation goes on where it was.
    """
    from nanoalign.artifacts import finite
    from nanoalign.common.errors import ConfigError
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.evaluation.command import Question, modes_of, named, run, table

    loaded = load_recipe(recipe, set_, None, data_root) if recipe is not None else None
    given: dict[str, Any] = {"samples": samples, "completions": completions, "temperature": temperature, "top_p": top_p}
    if judge_url is not None:
        given["judge"] = {"url": judge_url, "model": judge_model or "judge"}
    for option, text in (("--suite", suite), ("--modes", modes)):
        if not _listed(text):
            raise ConfigError(f"{option} {text!r}: name at least one")
    chat_format(loaded.chat if loaded is not None else chat)  # a wrong name is refused before torch is loaded
    specs = named(models)
    question = Question(
        specs,
        {name: _suite(name, {} if loaded is None else loaded.suites, given) for name in _listed(suite)},
        modes_of(_listed(modes), [_budget(part) for part in _listed(budget)]),
        _rollouts(engine, batch_size, grace, temperature, top_p, max_tokens),
        max_tokens, loaded.chat if loaded is not None else chat, device, seed, data_root,
        loaded.data if loaded is not None else {},
    )  # fmt: skip
    folder = out or root / "evaluate" / "+".join(specs)
    report = run(question, folder, lambda text: print(printable(text), file=sys.stderr))
    if as_json:
        print(json.dumps(finite(report), indent=2))
        return
    print_table(table(report), ", ".join(specs))
    print(f"{folder}/evaluation.json, {folder}/records/")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _budget(text: str) -> int | None:
    from nanoalign.common.errors import ConfigError

    if text.lower() in ("none", "unlimited"):
        return None
    if not text.isdigit():
        raise ConfigError(f"--budget {text}: expected a number of tokens, or none")
    return int(text)


def _suite(name: str, own: Any, given: dict[str, Any]) -> Any:
    """The recipe's suite of that name, else the public benchmark, with what the command line changes."""
    from pydantic import ValidationError

    from nanoalign.common.errors import ConfigError
    from nanoalign.evaluation.benchmarks import advice, benchmark, is_benchmark
    from nanoalign.evaluation.config import Suite

    if name not in own and not is_benchmark(name):
        raise ConfigError(f"unknown suite `{name}`{advice(name, own)}")
    section = own[name].model_dump(exclude_defaults=True) if name in own else {"benchmark": name}
    changed = {key: value for key, value in given.items() if value is not None}
    if "benchmark" not in section or not benchmark(section["benchmark"])[0].judged:
        changed.pop("judge", None)
    if section.get("environment") is not None:
        changed.pop("completions", None)
    try:
        return Suite.model_validate(section | changed)
    except ValidationError as error:
        said = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        raise ConfigError(f"suite {name}: {said}") from None


def _rollouts(
    engine: str, batch_size: int, grace: int, temperature: float | None, top_p: float | None, max_tokens: int | None
) -> Any:
    from pydantic import ValidationError

    from nanoalign.common.errors import ConfigError
    from nanoalign.rollouts.config import Rollouts
    from nanoalign.rollouts.engines import ENGINES

    settings = {
        "engine": known("engine", engine, ENGINES), "batch_size": batch_size, "grace": grace,
        "temperature": 0.0 if temperature is None else temperature, "top_p": 1.0 if top_p is None else top_p,
        "max_tokens": max_tokens or 1,
    }  # fmt: skip
    try:
        return Rollouts.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"evaluate: {error}") from None


def benchmarks(
    data_root: DataRootOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """List the public benchmarks, and where each one's tasks come from here."""
    from nanoalign.evaluation.benchmark_data import files_of, missing
    from nanoalign.evaluation.benchmarks import BENCHMARKS

    rows = []
    for name, entry in BENCHMARKS.items():
        files = files_of(entry, data_root)
        here = f"{files[0]}" + (f" and {len(files) - 1} more" if files[1:] else "") if files else ""
        hub = ", ".join(dict.fromkeys(f"hub: {each.hub}@{(each.revision or 'newest')[:8]}" for each in entry.data))
        rows.append({
            "suite": name, "what": entry.about, "tasks": f"{entry.tasks:,}", "answers a task": str(entry.completions),
            "licence": entry.licence,
            "read from": here or missing(name, entry, data_root) or hub or "made here",
        })  # fmt: skip
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(rows, "Public benchmarks")


def compare(
    a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A folder of `evaluate`, of a run, or of its stage.")],
    b: Annotated[Path, typer.Argument(metavar="RUN_B", help="The same; or a folder of records/CHECKPOINT.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Compare two evaluations, task by task.

    Per suite and mode: both scores, and B less A with the 95% interval of paired tasks.
    """
    from nanoalign.artifacts import finite
    from nanoalign.evaluation.command import points, shown
    from nanoalign.evaluation.compare import compare as compared

    found = compared(a, b)
    if as_json:
        print(json.dumps(finite([each.as_dict() for each in found]), indent=2))
        return
    rows = [
        {
            "A": each.a, "B": each.b, "suite": each.suite, "mode": each.mode, "tasks": str(each.difference.n),
            "score A": shown(each.scores[0].as_dict()), "score B": shown(each.scores[1].as_dict()),
            "B - A": points(each.difference), "better": str(each.better), "worse": str(each.worse),
            **({"only in one": str(each.left_out)} if each.left_out else {}),
        }
        for each in found
    ]  # fmt: skip
    print_table(rows, f"{a} and {b}")
