"""``kind: compress``, top to bottom: importance, order of removal, search, surgery, choice."""

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.stage import StageContext
from nanoalign.compress.config import CompressStage
from nanoalign.compress.search import search
from nanoalign.compress.shapes import Depth, check_protected, depths, quotas, units
from nanoalign.data_recipes.config import Mixture
from nanoalign.evaluation.config import Suite
from nanoalign.models.model_folder import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from nanoalign.compress.calibrate import Rows
    from nanoalign.compress.depth import Step
    from nanoalign.compress.importance import Scores
    from nanoalign.data_recipes.prepared import Prepared


def run(
    config: CompressStage,
    mixtures: Mapping[str, Mixture],
    context: StageContext,
    suites: Mapping[str, Suite] | None = None,
) -> dict[str, Any]:
    """Prunes ``context.inputs["from"]``; writes ``model/``, ``search.json`` (every candidate, the order of removal) and
    ``tensors.jsonl`` (what became of each tensor).

    A stage that was stopped takes up what it finished: importance, removals and candidates. The candidates that are
    compared lie under ``candidates/`` until one is chosen.

    Returns:
        The figures of :meth:`compress.record.Record.figures`.

    Raises:
        ConfigError: the grid does not fit the model, or nothing in it the budget or the floor of throughput.
        DataError: the mixture has nothing to calibrate on.
        CheckpointError: a tensor of the model is unknown or missing.
    """
    from nanoalign.compress.calibrate import calibration_rows, mean_loss
    from nanoalign.compress.finalists import Finalists
    from nanoalign.compress.importance import choose
    from nanoalign.compress.live import pruned_model
    from nanoalign.compress.record import Record
    from nanoalign.models.hybrid import install
    from nanoalign.models.loading import load_model, load_tokenizer
    from nanoalign.models.training import resolve_device

    source, device = context.inputs["from"], resolve_device(context.device)
    shape = read_config(source)
    with naming(context.name):  # nothing is read or loaded for a grid that cannot fit
        search(shape, config.grid, config.memory, config.throughput)
        check_protected(shape, config.grid, config.protect)
    prepared = _prepared(config, mixtures, context)
    rows = calibration_rows(config.calibration, config.data, prepared, load_tokenizer(source).pad_token_id,
                            context.seed)  # fmt: skip

    # What matters, and which blocks go first.
    on_gpu = device.startswith("cuda")
    model = load_model(source, config.dtype if on_gpu else "float32", device)
    install(model, "auto" if on_gpu else "torch")
    scores = _importance(model, rows, context)
    with naming(context.name):
        steps = _removals(model, shape, config, rows, context)
        found = search(shape, config.grid, config.memory, config.throughput,
                       lambda depth: _stays(shape, steps[depth]))  # fmt: skip

    # The largest candidates as pruned; those with the least loss are written and compared.
    record = Record.open(context, config, shape, found, steps, rows)
    record.measure_whole(partial(mean_loss, model, rows.held_out))
    screened = found[: config.screen]
    for number, candidate in enumerate(screened, 1):
        if "loss" not in record.row(candidate):
            kept = choose(scores, shape, candidate.blocks, candidate.sizes)
            loss = mean_loss(pruned_model(model, shape, kept, candidate.sizes), rows.held_out)
            record.note(candidate, loss=loss)
            context.log.metrics(number, len(screened), phase="screening", loss=loss)
    del model
    gc.collect()
    best = sorted(screened, key=lambda each: record.row(each)["loss"])[: config.best]
    finalists = Finalists(config, mixtures, suites or {}, context, record, scores, prepared, device)
    with naming(context.name):
        return record.figures(finalists.choose(best))


@contextmanager
def naming(stage: str) -> Iterator[None]:
    """Puts ``stages.NAME.`` before the key that a ConfigError names."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"stages.{stage}.{error}") from error


def _prepared(config: CompressStage, mixtures: Mapping[str, Mixture], context: StageContext) -> "Prepared":
    """The calibration set, in a folder beside the stage's."""
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.data_recipes.prepared import prepare
    from nanoalign.models.loading import load_tokenizer
    from nanoalign.sft.data import progress_log

    beside = context.folder.with_name(f"{context.folder.name}.prepared")
    return prepare(mixtures[config.data], chat_format(context.chat), load_tokenizer(context.inputs["from"]), beside,
                   context.data_root, context.seed, progress=progress_log(context.log))  # fmt: skip


def _importance(model: "PreTrainedModel", rows: "Rows", context: StageContext) -> "Scores":
    """Measured once; kept in ``importance.safetensors``."""
    from nanoalign.common.files import atomic_file
    from nanoalign.compress.importance import Scores, measure

    file = context.folder / "importance.safetensors"
    if not file.exists():
        context.log.metrics(0, len(rows.scoring), phase="importance")
        scores = measure(model, rows.scoring, lambda done: context.log.metrics(done, len(rows.scoring),
                                                                             phase="importance"))  # fmt: skip
        with atomic_file(file) as temporary:
            scores.save(temporary)
    return Scores.load(file)


def _removals(
    model: "PreTrainedModel", shape: Mapping[str, Any], config: CompressStage, rows: "Rows", context: StageContext
) -> dict[Depth, list["Step"]]:
    """The order of removal for each depth of the grid; every measured error is kept in ``removals.jsonl``."""
    from nanoalign.compress.depth import Removal, iterative

    file = context.folder / "removals.jsonl"
    if file.exists() and not (text := file.read_text(encoding="utf-8")).endswith("\n"):  # a kill cut the last line
        file.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")

    def keep(gone: frozenset[int], errors: Mapping[int, float]) -> None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"gone": sorted(gone), "errors": errors}) + "\n")
        context.log.metrics(len(gone), phase="order of removal", least_error=min(errors.values()))

    removal = Removal(model, rows.scoring[: config.calibration.depth_rows], known_errors(file), keep)
    return {depth: iterative(removal, units(shape), quotas(shape, depth), config.protect)
            for depth in depths(shape, config.grid)}  # fmt: skip


def known_errors(file: Path) -> dict[frozenset[int], dict[int, float]]:
    """What ``removals.jsonl`` holds: for each set of blocks that are gone, the error of every further removal."""
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines() if file.exists() else [])
    return {frozenset(row["gone"]): {int(block): error for block, error in row["errors"].items()} for row in rows}


def _stays(shape: Mapping[str, Any], steps: Sequence["Step"]) -> list[int]:
    gone = {step.block for step in steps}
    return [number for number in range(len(units(shape))) if number not in gone]
