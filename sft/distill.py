"""A distillation stage, top to bottom: phase after phase in SFT's trainer, towards a teacher."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoalign.common.files import write_json
from nanoalign.common.stage import StageContext
from nanoalign.data_recipes.config import Mixture
from nanoalign.models.config import MeasuredTraining
from nanoalign.models.vocabulary import require_one_vocabulary
from nanoalign.sft.config import DistillStage, Pack
from nanoalign.sft.stage import prepared_data, train_stage

if TYPE_CHECKING:
    from nanoalign.data_recipes.prepared import Prepared
    from nanoalign.models.distillation import Teacher

SUMMED = ("steps", "tokens", "train_s")


def run(config: DistillStage, mixtures: Mapping[str, Mixture], context: StageContext) -> dict[str, Any]:
    """Distils ``teacher`` into ``context.inputs["from"]`` on a mixture; writes ``model/`` and ``data.json``.

    Returns the figures of :func:`sft.stage.run` (losses are those of :class:`models.distillation.Divergence`), with
    ``held_out_kl_first`` and ``held_out_kl_last``: KL(teacher || student) in nats per token at temperature 1, over all
    tokens of the vocabulary; ``teacher_held_out_loss``, and ``gap_closed``, the share of the student's excess over it
    that is gone; with several phases also ``held_out_kl_phase_N``, ``loss_phase_N`` and ``tokens_phase_N``.

    Raises:
        ConfigError, DataError, IsolationError: as :func:`sft.stage.run`, for the teacher too; the two vocabularies
            differ.
    """
    from nanoalign.models.loading import load_tokenizer, resolve

    student = context.inputs["from"]
    teacher = context.inputs["teacher"] if "teacher" in context.inputs else resolve(config.teacher)
    require_one_vocabulary(student, teacher)
    prepared = prepared_data(config, mixtures, context, load_tokenizer(student))
    return distil(student, teacher, prepared, config, context)


def distil_briefly(
    student: Path,
    teacher: Path,
    prepared: "Prepared",
    train: MeasuredTraining,
    context: StageContext,
    pack: Pack,
    **settings: Any,
) -> dict[str, Any]:
    """Distils a candidate for a few steps, for stages that compare candidates.

    Args:
        student: the candidate's folder, in the Hugging Face layout, with its tokenizer.
        teacher: the folder of the model that it was made of.
        prepared: of :func:`data_recipes.prepared.prepare`; some samples are held out, as SFT does.
        train: give ``steps``.
        context: its ``folder`` is the candidate's own: ``model/`` and checkpoints go there, and a call that was killed
            resumes from them. ``seed``, ``device``, ``chat`` and ``log`` are used, ``inputs`` are not.
        settings: further keys of a :class:`sft.config.DistillStage`, such as ``temperature``.

    Returns:
        The figures of :func:`run`, among them ``held_out_kl_first`` and ``held_out_loss_first`` (before),
        ``held_out_kl_last`` and ``held_out_loss_last`` (after), ``steps``, ``tokens`` and ``train_s``. The held-out
        figures are absent where the data have fewer than 50 samples.

    Raises:
        ConfigError, DataError, IsolationError: as :func:`run`.
    """
    require_one_vocabulary(student, teacher)
    config = DistillStage(
        **{
            "kind": "distill",
            "from": "base",
            "data": "all",
            "teacher": "base",
            "pack": pack,
            "train": train,
            **settings,
        }
    )
    return distil(student, teacher, prepared, config, context)


def distil(
    student: Path, teacher: Path, prepared: "Prepared", config: DistillStage, context: StageContext
) -> dict[str, Any]:
    """The phases of a stage, one after the other; those that are finished are not run again.

    All phases but the last leave ``phase-N/`` with a model in fp32. Held-out documents are the same in all phases:
    those that fit the shortest.
    """
    import gc
    from dataclasses import replace
    from functools import partial

    from nanoalign.models.distillation import Divergence
    from nanoalign.models.loading import load_tokenizer
    from nanoalign.sft.data import sft_data
    from nanoalign.sft.distill_trainer import DistillTrainer

    phases, tokenizer, model = config.in_turn(), load_tokenizer(student), student
    lengths = [phase.limit[0] for phase in phases]
    shortest = min((length for length in lengths if length is not None), default=None)
    # before any trainer's arguments: ZeRO-3 would split what is loaded after them
    learn = partial(
        DistillTrainer, teacher=load_teacher(config, teacher, context.device),
        divergence=Divergence(config.temperature, config.top_k, config.cross_entropy),
    )  # fmt: skip
    done: list[dict[str, Any]] = []
    accounts: list[dict[str, Any]] = []
    for number, phase in enumerate(phases, 1):
        last = number == len(phases)
        folder = context.folder if last else context.folder / f"phase-{number}"
        found = None if last else _read(folder / "phase.json")
        if found is None:
            data = sft_data(phase, prepared, context.seed, shortest)
            if config.tokens == "all":
                data = replace(data, documents=data.documents.in_full())
            name = f"phase {number} of {len(phases)}" if len(phases) > 1 else None
            figures, account = train_stage(
                phase, prepared, data, model, tokenizer, context, folder, learn, name, final=last
            )
            found = {"figures": figures, "account": account}
            if not last and _is_first():
                write_json(folder / "phase.json", found)
            gc.collect()  # a trainer and its model refer to each other
        done.append(found["figures"])
        accounts.append(found["account"])
        model = folder / "model"
    if len(phases) > 1 and _is_first():
        write_json(context.folder / "data.json", {**accounts[-1], "phases": accounts})
    return together(done)


def load_teacher(config: DistillStage, folder: Path, device: str) -> "Teacher":
    """The teacher in its dtype, on its GPU, for a student on this process's device."""
    import torch

    from nanoalign.models.distillation import Teacher
    from nanoalign.models.loading import load_model
    from nanoalign.models.training import resolve_device

    place = own = resolve_device(device)
    if config.teacher_gpus is not None and own != "cpu":
        gpu = config.teacher_gpus[int(os.environ.get("LOCAL_RANK", "0")) % len(config.teacher_gpus)]
        place = resolve_device(f"cuda:{gpu}")
    model = load_model(folder, config.teacher_dtype or config.train.dtype, place)
    return Teacher(model, torch.device(own))


def together(phases: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a stage from its phases': the last ones', the first phase's where something begins, sums of what
    adds up."""
    first, last = phases[0], phases[-1]
    figures = last | {name: value for name, value in first.items() if name.endswith("_first")}
    if len(phases) > 1:
        figures |= {name: sum(each[name] for each in phases) for name in SUMMED}
        figures["tokens_per_s"] = figures["tokens"] / figures["train_s"]
        if "gap_closed" in first:
            start, goal = first["held_out_loss_first"], first["teacher_held_out_loss"]
            figures["gap_closed"] = (start - last["held_out_loss_last"]) / (start - goal)
        for number, each in enumerate(phases, 1):
            shown = {"loss": "loss_last", "held_out_kl": "held_out_kl_last", "tokens": "tokens"}
            figures |= {f"{name}_phase_{number}": each[key] for name, key in shown.items() if key in each}
    return figures


def _read(file: Path) -> dict[str, Any] | None:
    """What a finished phase left; None where it is not finished."""
    found: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"
