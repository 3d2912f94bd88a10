"""``nanoalign data generate``: samples made with a served model, judged by our verifiers."""

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanoalign.cli_shared import DataRootOption, SetOption
from nanoalign.common.printable import printable

if TYPE_CHECKING:
    from nanoalign.data_recipes.conversation import Conversation, Message
    from nanoalign.data_recipes.synthetic.config import Generate, LongContext, Rejection, Trajectories, Translation
    from nanoalign.data_recipes.synthetic.driver import Maker
    from nanoalign.reward.compose import ComposedReward


def generate(
    settings: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE", help="What to make (YAML).")],
    set_: SetOption = None,
    data_root: DataRootOption = None,
) -> None:
    """Make samples with a served model.

    Rejection sampling, tool trajectories, questions across documents, translations. Run it again after a failure:
    replies already received are reused.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from nanoalign.data_recipes.synthetic.make import make

    config = read_settings(settings, set_ or ())
    console = Console()
    columns = (MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=config.generate.samples)
        report = make(
            config,
            makers(config, data_root),
            lambda now: bar.update(
                task,
                completed=now.started_from,
                description=f"{now.samples:,} samples, {now.requests:,} replies, {now.tokens:,} tokens",
            ),
        )
    made = f"{report['samples']:,} samples of {report['started_from']:,} tasks -> {config.out}"
    console.print(printable(made), markup=False, soft_wrap=True)
    console.print(
        f"{report['requests']:,} replies ({report['asked_now']:,} requested now), {report['tokens']:,} tokens"
    )
    for reason, count in report["not_kept"].items():
        console.print(printable(f"  {count:>8,} not kept: {reason}"), markup=False)


def read_settings(path: Path, overrides: Sequence[str] = ()) -> "Generate":
    """The settings in a YAML file, with ``a.b=value`` overrides.

    Raises ConfigError with all mistakes, each with its line and nearest key.
    """
    from pydantic import ValidationError

    from nanoalign.data_recipes.synthetic.config import Generate
    from nanoalign.recipe.load import RecipeError, explain
    from nanoalign.recipe.source import read_yaml, set_value

    source, problems = read_yaml(path)
    found = [set_value(source, text) for text in overrides] if isinstance(source.data, dict) else []
    problems += [problem for problem in found if problem is not None]
    try:
        config = Generate.model_validate(source.data if isinstance(source.data, dict) else {})
    except ValidationError as error:
        problems += explain(error, source, Generate)
    if problems:
        raise RecipeError(problems)
    return config


def makers(config: "Generate", data_root: Path | None) -> "Iterator[Maker]":
    """One maker per task. Raises ConfigError and DataError for unknown sources, environments and tasks."""
    made: Any = {
        "rejection": _rejection,
        "trajectories": _trajectories,
        "long_context": _long_context,
        "translation": _translation,
    }
    return made[config.generate.kind](config.generate, data_root)


def _rejection(config: "Rejection", data_root: Path | None) -> "Iterator[Maker]":
    from nanoalign.common.errors import ConfigError
    from nanoalign.data_recipes.synthetic.rejection import rejection
    from nanoalign.reward.instructions.augment import augment
    from nanoalign.reward.table import verifiers

    for number, task in enumerate(_drawn(config, data_root)):
        if config.instructions:
            task = augment(task, Random(f"{config.seed}/{number}/instructions"), most=config.instructions)
        if task.task is None or task.task["kind"] not in verifiers():
            kind = task.task["kind"] if task.task else "none"
            known = ", ".join(verifiers())
            raise ConfigError(f"{task.origin or config.source}: task of kind {kind}; verifiers know {known}")
        yield rejection(task, config.tries, config.keep, verify, config.seed)


def _trajectories(config: "Trajectories", data_root: Path | None) -> "Iterator[Maker]":
    from nanoalign.data_recipes.conversation import Conversation
    from nanoalign.data_recipes.synthetic.trajectories import trajectory
    from nanoalign.rollouts.environments import environment

    played = environment(config.environment, data_root)
    licence = "MIT" if config.environment.startswith("workbench") else "Apache-2.0"
    for task in played.tasks("train")[: config.samples]:
        known = Conversation(
            task.prompt, task.tools, "tools", f"trajectories:{config.environment}", licence, id=task.id
        )
        yield trajectory(known, partial(played.start, task), config.tries, config.turns, config.seed)


def _long_context(config: "LongContext", data_root: Path | None) -> "Iterator[Maker]":
    from nanoalign.data_recipes.conversation import Conversation
    from nanoalign.data_recipes.selection import load
    from nanoalign.data_recipes.synthetic.long_context import across, contexts

    loaded = [load(name, None, "train", data_root, config.seed) for name in config.sources]
    documents = [document for each in loaded for document in each.conversations]
    licences = " AND ".join(sorted({document.licence or "unknown" for document in documents}))
    drawn = contexts(documents, config.samples, config.documents, config.characters, config.seed)
    for number, chosen in enumerate(drawn):
        base = Conversation(
            (), domain="long context", source="long_context", licence=licences, id=f"{config.seed}-{number}"
        )
        yield across(base, chosen, config.tries, verify, config.seed)


def _translation(config: "Translation", data_root: Path | None) -> "Iterator[Maker]":
    from nanoalign.data_recipes.synthetic.translation import translation

    for sample in _drawn(config, data_root):
        yield translation(sample, config.language, config.tries, config.seed)


def _drawn(config: "Rejection | Translation", data_root: Path | None) -> "list[Conversation]":
    """The samples to start from, each once. Raises ConfigError where the source has fewer."""
    from nanoalign.common.errors import ConfigError
    from nanoalign.data_recipes.selection import load

    loaded = load(config.source, config.samples, config.split, data_root, config.seed)
    if loaded.report.epochs > 1:
        raise ConfigError(f"source {config.source} has only {loaded.report.samples} {config.split} samples")
    return loaded.conversations


def verify(task: "Conversation", answers: "Sequence[Message]") -> list[float]:
    """Scores of the verifier of the task's kind."""
    from nanoalign.data_recipes.chat.answers import as_answer
    from nanoalign.reward.base import Sample

    return _verifiers().score([Sample(task.messages, as_answer(answer), task.task or {}) for answer in answers])


@lru_cache(maxsize=1)
def _verifiers() -> "ComposedReward":
    from nanoalign.reward.compose import make_reward

    return make_reward({"task": 1.0})
