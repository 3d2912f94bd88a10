"""``nanoalign reward``: see what a recipe's rewards give, before a model is trained on them."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanoalign.cli_shared import DataRootOption, RecipeArgument, SetOption, load_recipe
from nanoalign.common.printable import known, printable

if TYPE_CHECKING:
    from nanoalign.recipe.schema import Recipe
    from nanoalign.reward.base import Sample

app = typer.Typer(no_args_is_help=True, help="Try a recipe's rewards.")
EXCERPT = 40
"""Characters of a prompt in the table."""


@app.callback()
def _group() -> None:
    """Try a recipe's rewards."""


@dataclass
class Trial:
    """What one reward gave."""

    weight: float
    scores: list[float] = field(default_factory=list)
    """One a sample; none where it gave no scores at all."""
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    """Why samples were not judged on their merits."""
    error: str = ""
    """What would end a run."""


@app.command("try")
def try_(
    recipe: RecipeArgument,
    stage: Annotated[str | None, typer.Option(help="The stage; default: the first with rewards.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples of the data, drawn from all sources.")] = 8,
    set_: SetOption = None,
    data_root: DataRootOption = None,
) -> None:
    """Score the data's own samples with a stage's rewards.

    Each is scored with its reference answer, where the data has one, and with an empty answer. An environment's
    training tasks are played with an empty answer. The exit status is 2 where a reward would end a run.
    """
    from rich.console import Console

    loaded = load_recipe(recipe, set_, None, data_root)
    rewarded = [name for name, section in loaded.stages.items() if next(_rewards(loaded, section), None)]
    name = known("stage with rewards", stage or next(iter(rewarded), "stage"), rewarded)
    console, failed = Console(), False
    for title, mixture, section in _rewards(loaded, loaded.stages[name]):
        if mixture is None:
            tried = _episodes(section, samples, data_root)
        else:
            tried = _samples(loaded, name, mixture, samples, data_root)
        trials = dict(_trials(section, [each for _, each in tried]))
        _show(console, title, tried, trials)
        failed = failed or any(trial.error for trial in trials.values())
    if failed:
        raise typer.Exit(2)


def _rewards(recipe: "Recipe", stage: Any) -> Iterator[tuple[str, str | None, Any]]:
    """A stage's rewards: a title, the mixture that they judge (None: episodes), and the section that has them."""
    from nanoalign.stages import suites_of

    if getattr(stage, "reward", None):
        yield f"rewards of {stage.data or Path(stage.environment.name).name}", stage.data, stage
    for name in dict.fromkeys(name for _, name in suites_of(stage)):
        if (suite := recipe.suites[name]).data is not None:
            yield f"rewards of suite {name}", suite.data, suite


def _samples(
    recipe: "Recipe", stage: str, mixture: str, count: int, data_root: Path | None
) -> "list[tuple[str, Sample]]":
    """(what the answer is, sample) of about ``count`` samples: each with its reference, and with an empty answer."""
    from nanoalign.cli_data import smaller
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.data_recipes.chat.answers import as_answer
    from nanoalign.data_recipes.conversation import Answer
    from nanoalign.data_recipes.selection import build
    from nanoalign.graph import stage_seed
    from nanoalign.reward.base import Sample

    few = smaller(recipe.data[mixture], count)
    built = build(few, data_root, stage_seed(recipe, stage), chat=chat_format(recipe.chat))
    encode = _encoder(recipe)
    found = []
    for each in built.conversations[:count]:
        *before, last = each.messages
        prompt, task = tuple(before) if last.role == "assistant" else each.messages, each.task or {}
        reference = as_answer(last) if last.role == "assistant" else None
        if reference is None and isinstance(task.get("answer"), str | int | float):
            reference = Answer(str(task["answer"]))
        for what, answer in (("reference", reference), ("empty", Answer(""))):
            if answer is not None:
                thought, said = encode(answer.reasoning), encode(answer.content)
                found.append((what, Sample(prompt, answer, task, thinking_tokens=len(thought), answer_tokens=len(said),
                                           completion_ids=(*thought, *said))))  # fmt: skip
    return found


def _episodes(section: Any, count: int, data_root: Path | None) -> "list[tuple[str, Sample]]":
    """The same of a stage that plays: ``count`` training tasks, each answered with nothing."""
    from nanoalign.data_recipes.conversation import Answer
    from nanoalign.reward.base import Sample
    from nanoalign.rollouts.environments import environment
    from nanoalign.rollouts.environments.base import end_all, opening, start_all, step_all

    played = environment(section.environment, data_root)
    tasks, nothing = list(played.tasks("train"))[:count], Answer("")
    episodes = start_all(played, tasks)
    step_all(played, episodes, [nothing] * len(tasks))
    outcomes = end_all(played, episodes)
    return [
        ("empty", Sample(opening(episode, task)[0], nothing, task.data, environment=outcome.reward))
        for task, episode, outcome in zip(tasks, episodes, outcomes, strict=True)
    ]


def _encoder(recipe: "Recipe") -> Any:
    """A text's token ids, by the recipe's tokenizer; none of either where that is not here."""
    from nanoalign.common.errors import NanoalignError
    from nanoalign.models.loading import load_tokenizer

    try:
        tokenizer = load_tokenizer(recipe.model)
    except (NanoalignError, OSError):
        return lambda text: ()
    return lambda text: tuple(tokenizer.encode(text, add_special_tokens=False))


def _trials(section: Any, samples: "Sequence[Sample]") -> Iterator[tuple[str, Trial]]:
    """Each reward of a section, by its short name, tried alone. One that needs a trained model is left out."""
    from nanoalign.common.errors import NanoalignError
    from nanoalign.reward import make_reward
    from nanoalign.reward.config import is_own, section_of, short_names, weights_of

    names, weights = short_names(section.reward), weights_of(section.reward)
    for key, value in section.reward.items():
        trial = Trial(weights[names[key]])
        yield names[key], trial
        if key == "preference":
            trial.reasons["needs its reward model: not tried"] = len(samples)
            continue
        for attempt in [value] + ([section_of(value).model_copy(update={"on_error": "count"})] if is_own(key) else []):
            try:
                reward = make_reward({key: attempt}, judge=getattr(section, "judge", None))
                reward.know(sample.task for sample in samples)
                started = time.perf_counter()
                trial.scores = reward.components(samples)[names[key] if is_own(key) else key]
                trial.seconds = time.perf_counter() - started
            except NanoalignError as error:
                trial.error = trial.error or str(error)
                continue
            trial.reasons.update(reason for each in trial.scores if (reason := getattr(each, "reason", "")))
            break


def _show(console: Any, title: str, tried: "list[tuple[str, Sample]]", trials: Mapping[str, Trial]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    table = Table("prompt", "answer", *(Column(Text(name)) for name in trials), "sum", title=Text(title))
    for place, (what, sample) in enumerate(tried):
        prompt = printable(" ".join(sample.messages[-1].content.split()))
        row = [trial.scores[place] if trial.scores else None for trial in trials.values()]
        total = (
            None if None in row else sum(trial.weight * (score or 0.0) for trial, score in zip(trials.values(), row))
        )
        cells: list[Any] = [Text(prompt if len(prompt) <= EXCERPT else prompt[: EXCERPT - 3] + "..."), what]
        table.add_row(*cells, *("-" if score is None else f"{score:.3g}" for score in (*row, total)))
    console.print(table)
    table = Table("reward", "weight", "mean, reference", "mean, empty", "ms a sample", "not judged on their merits")
    notes = []
    for name, trial in trials.items():
        of = {what: [score for (kind, _), score in zip(tried, trial.scores) if kind == what]
              for what in ("reference", "empty")}  # fmt: skip
        means = {what: fmean(scores) for what, scores in of.items() if scores}
        reasons = ", ".join(f"{count} {reason}" for reason, count in trial.reasons.most_common()) or "0"
        shown = [f"{means[what]:.3g}" if what in means else "-" for what in of]
        table.add_row(
            Text(name), f"{trial.weight:g}", *shown, f"{1000 * trial.seconds / len(tried):.1f}", Text(reasons)
        )
        if trial.error:
            notes.append(f"ERROR {name}: {trial.error}")
        elif len(means) == 2 and trial.weight > 0 and means["reference"] <= means["empty"]:
            notes.append(f"NOTE {name}: an empty answer gets as much as the reference, or more")
    console.print(table)
    for note in notes:
        console.print(printable(note), markup=False, highlight=False, soft_wrap=True)
