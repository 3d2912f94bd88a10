"""A supervised fine-tuning stage, top to bottom, and the training that distillation shares with it."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoalign.common.errors import DataError
from nanoalign.common.files import write_json
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.config import Mixture
from nanoalign.models.config import HELD_OUT_SHARE
from nanoalign.sft.config import DocumentStage, SFTStage

if TYPE_CHECKING:
    from nanoalign.data_recipes.chat.base import ChatFormat
    from nanoalign.data_recipes.prepared import Prepared
    from nanoalign.sft.collate import Documents
    from nanoalign.sft.data import SFTData
    from nanoalign.sft.trainer import DocumentTrainer

SHOWN = 8
"""Documents written to samples.jsonl."""


def run(config: SFTStage, mixtures: Mapping[str, Mixture], context: StageContext) -> dict[str, Any]:
    """Trains ``context.inputs["from"]`` on a mixture; writes ``model/`` and ``data.json``, the account of every sample.

    Returns figures: ``loss_first`` and ``loss_last`` (nats per trained token, means over the first and the last tenth
    of the steps), ``held_out_loss_first`` and ``held_out_loss_last`` (before and after), ``steps``, ``tokens``,
    ``tokens_per_s``, ``train_s``, and of the data ``documents``, ``document_tokens``, ``trained_tokens``, ``rows``,
    ``fill``, ``dropped``.

    Raises:
        DataError: bad rows, samples that are too long, or a sample without a trained token; before any training.
        ConfigError: the batch or the processes do not divide, or a LoRA target matches nothing.
        IsolationError: documents of a batch see each other.
    """
    from nanoalign.models.loading import load_tokenizer
    from nanoalign.sft.data import sft_data

    source = context.inputs["from"]
    tokenizer = load_tokenizer(source)
    prepared = prepared_data(config, mixtures, context, tokenizer)
    data = sft_data(config, prepared, context.seed)
    figures, _ = train_stage(config, prepared, data, source, tokenizer, context, context.folder)
    return figures


def prepared_data(
    config: DocumentStage, mixtures: Mapping[str, Mixture], context: StageContext, tokenizer: Any
) -> "Prepared":
    """A stage's samples, taught their budgets, as a prepared set."""
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.sft.data import prepare_stage, progress_log

    return prepare_stage(
        config, mixtures[config.data], chat_format(context.chat), tokenizer, context.folder, context.data_root,
        context.seed, progress=progress_log(context.log),
    )  # fmt: skip


def train_stage(
    config: DocumentStage,
    prepared: "Prepared",
    data: "SFTData",
    source: Path,
    tokenizer: Any,
    context: StageContext,
    folder: Path,
    cls: "Callable[..., DocumentTrainer] | None" = None,
    phase: str | None = None,
    final: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains the model in ``source`` on documents, from the newest checkpoint in ``folder``; writes ``model/`` and
    ``data.json`` there.

    Args:
        cls: makes the trainer; by default one that learns the documents.
        phase: named in the log's rows where a stage trains in several.
        final: the model is saved in the dtype of training; else, for the next phase, as it is.

    Returns the figures, and the account of the documents.
    """
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.adapters import base_of, load_trainable
    from nanoalign.models.held_out import restore_best
    from nanoalign.models.loading import save_model
    from nanoalign.models.packing import singly
    from nanoalign.models.sequence_parallel import parallelize, sequence_group
    from nanoalign.sft.collate import Collator
    from nanoalign.sft.data import packed
    from nanoalign.sft.trainer import DocumentTrainer, is_deepspeed_zero3_enabled, make_trainer, sft_arguments

    train, packing = config.train, config.pack

    # Data: documents in rows.
    report, documents = prepared.index["report"], data.documents
    if not len(documents):
        dropped = {**report["dropped"], **data.dropped}
        raise DataError(f"data.{config.data}: no samples left to train on; dropped: {dropped}")
    if train.evaluate_every is not None and not len(data.held_out):
        kept = data.held_out_samples + sum(data.by_domain.values())
        raise DataError(f"train.evaluate_every: of {kept} samples none is held out (one of {HELD_OUT_SHARE} would be)")
    rows = packed(documents.lengths, packing, context.seed)
    ranks = packing.sequence_parallel if packing else 1
    rank = int(os.environ.get("RANK", "0")) % ranks
    batches = Collator(documents, rows, bool(packing and packing.isolate), tokenizer.pad_token_id, rank, ranks)
    held_out = Collator(data.held_out, singly(data.held_out.lengths), False, tokenizer.pad_token_id)

    # Model and trainer.
    arguments = sft_arguments(train, folder / "checkpoints", batches, context.device, context.seed)
    in_half = train.dtype == "bfloat16"
    frozen = "bfloat16" if train.lora and in_half else "float32"
    fresh_model = partial(load_trainable, source, train.lora, context.seed, dtype=frozen)
    model = fresh_model(str(arguments.device) if is_deepspeed_zero3_enabled() else "cpu")  # ZeRO-3 splits as it loads
    if ranks > 1:
        parallelize(base_of(model), sequence_group(ranks))
    trainer = make_trainer(
        model, tokenizer, arguments, train, batches, held_out, context.log, cls or DocumentTrainer, phase
    )

    account = {
        **report,
        "held_out": data.held_out_samples,
        "by_domain": dict(data.by_domain),
        "changed": dict(Counter(report["changed"]) + data.changed),
        "dropped": dict(Counter(report["dropped"]) + data.dropped),
        "documents": len(documents),
        "document_tokens": int(documents.lengths.sum()),
        "trained_tokens": int(documents.trained_tokens.sum()),
        "rows": len(rows),
        "fill": rows.fill,
    }
    if trainer.is_world_process_zero():
        write_json(folder / "data.json", account)
        log_samples(prepared, documents, chat_format(context.chat), tokenizer, context.log)

    # Training, after checking on a real batch that no document sees another.
    trainer.train_or_resume()
    if train.early_stop is not None:
        restore_best(trainer)
    trainer.log_held_out_loss()

    if (trained := trainer.full_model(fresh_model)) is not None:
        save_model(trained.bfloat16() if final and in_half else trained, tokenizer, folder / "model")
    trainer.accelerator.wait_for_everyone()
    counted = ("documents", "document_tokens", "trained_tokens", "rows", "fill")
    figures = {
        **trainer.figures(),
        **{name: account[name] for name in counted},
        "dropped": sum(account["dropped"].values()),
    }
    return figures, account


def log_samples(
    prepared: "Prepared", documents: "Documents", chat: "ChatFormat", tokenizer: Any, log: StageLog
) -> None:
    """Writes a few documents, evenly spread over the data, to samples.jsonl, with what is trained marked."""
    from nanoalign.sft.data import prompt_and_answer, runs

    for document in range(0, len(documents), max(1, len(documents) // SHOWN)):
        metadata = prepared.metadata(int(documents.examples[document]))
        pieces = runs(*documents[document], tokenizer)
        parts = prompt_and_answer(pieces, chat)
        log.sample(kind="train", domain=metadata["domain"], source=metadata["source"], **parts, runs=pieces)
