"""What ``nanoalign merge`` does, as plain functions: checkpoints alone, outside a recipe.

``nanoalign merge A B --evaluate ...`` is the stage itself (:func:`merge.stage.run`) with A and B as
``context.inputs`` ``reasoning`` and ``chat``.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.merge.adapter import open_source
from nanoalign.merge.checkpoint import Checkpoint
from nanoalign.merge.interpolate import Progress, check_alphas, write_interpolations
from nanoalign.merge.mergekit_bridge import as_linear, load_config, merge_with_mergekit, mergekit_config, write_config
from nanoalign.merge.model_card import write_card
from nanoalign.merge.pair import make_pair


def parse_alphas(text: str) -> list[float]:
    """Alphas from ``0.5``, ``0.2,0.5`` or ``first:last:step`` (decimal, both ends included), sorted, each once.

    Raises:
        ConfigError: not of these forms, a step that is not positive or does not meet the last value, or an alpha
            outside [0, 1].
    """
    alphas: list[Decimal] = []
    for part in text.split(","):
        try:
            numbers = [Decimal(number.strip()) for number in part.split(":")]
        except InvalidOperation:
            numbers = []
        match numbers:
            case [value] if value.is_finite():
                alphas.append(value)
            case [first, last, step] if all(number.is_finite() for number in numbers):
                if step <= 0 or last < first or (last - first) % step or (last - first) / step > 10_000:
                    raise ConfigError(f"alphas {part!r}: {first} does not reach {last} in steps of {step}")
                alphas += [first + step * count for count in range(int((last - first) / step) + 1)]
            case _:
                raise ConfigError(f"alphas {part!r}: expected a number or first:last:step, e.g. 0.1:0.9:0.1")
    values = sorted({float(alpha) for alpha in alphas})
    check_alphas(values)
    return values


def parse_weights(text: str) -> list[float]:
    """One weight per model, ``0.5,0.3,0.2``.

    Raises:
        ConfigError: not numbers.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"weights {text!r}: expected numbers, e.g. 0.5,0.3,0.2") from None


def output_folders(output: Path, alphas: Sequence[float]) -> dict[float, Path]:
    """Where each merge goes: ``output`` itself for one alpha, else ``output/alpha-0.3`` and so on.

    Raises:
        ConfigError: one of them exists and is not empty.
    """
    folders = {alphas[0]: output} if len(alphas) == 1 else {alpha: output / f"alpha-{alpha}" for alpha in alphas}
    for folder in folders.values():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"output {folder} exists and is not empty")
    return folders


def merge_command(
    a: Path,
    b: Path,
    output: Path,
    alphas: Sequence[float],
    *,
    base: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """``nanoalign merge A B``: writes (1 - alpha) * A + alpha * B for every alpha in one pass, with cards.

    A and B are checkpoint folders or LoRA adapters on ``base``. A merge of checkpoints is written with the mergekit
    YAML that asks for the same. Returns the folders written.

    Raises:
        CheckpointError: an input is damaged or the two do not fit together.
        ConfigError: an alpha is out of range, an output exists, or the disk is too small.
    """
    folders = output_folders(output, alphas)
    pair = make_pair(open_source(a, base), open_source(b, base))

    def annotate(alpha: float, folder: Path) -> None:
        write_card(folder, {"A": pair.a, "B": pair.b}, "linear", {"alpha": alpha})
        if isinstance(pair.a, Checkpoint) and isinstance(pair.b, Checkpoint):
            same = mergekit_config("linear", [pair.a.folder, pair.b.folder], weights=[1 - alpha, alpha])
            write_config(same, folder / "mergekit_config.yml")

    write_interpolations(pair, folders, threads, progress, annotate)
    return list(folders.values())


def merge_many_command(
    method: str,
    models: Sequence[Path],
    output: Path,
    *,
    base: Path | None = None,
    weights: Sequence[float] | None = None,
    density: float | None = None,
    t: float | None = None,
    seed: int = 0,
) -> Path:
    """``nanoalign merge --method ties A B C --base D``: more than two models or more than linear, through mergekit."""
    config = mergekit_config(method, models, base=base, weights=weights, density=density, t=t)
    return _merge_config(config, output, seed, None)


def merge_yaml_command(config: Path, output: Path, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """``nanoalign merge --config mergekit.yml``: an existing mergekit configuration; plain linear ones run natively."""
    return _merge_config(load_config(config), output, seed, progress)


def _merge_config(config: Mapping[str, Any], output: Path, seed: int, progress: Progress | None) -> Path:
    linear = as_linear(config)
    if linear is not None:
        a, b, alpha = linear
        return merge_command(a, b, output, [alpha], progress=progress)[0]
    output_folders(output, [0.5])
    merge_with_mergekit(config, output, seed)
    return output


@contextmanager
def shown_progress(label: str = "merging") -> Iterator[Progress]:
    """A bar with throughput and time left on the terminal, to pass as ``progress``."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Bar(*columns) as bar:
        task = bar.add_task(label)
        yield lambda done, total: bar.update(task, completed=done, total=total)
