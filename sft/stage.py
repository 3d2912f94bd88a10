"""A supervised fine-tuning stage, top to bottom."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.errors import DataError
from common.files import write_json
from common.stage import StageContext
from data_recipes.config import Mixture
from sft.config import SFTStage

if TYPE_CHECKING:
    from sft.data import Prepared

HELD_OUT = 64
"""At most so many conversations are kept from training, to measure the loss on."""
SHOWN = 8
"""Documents written to samples.jsonl."""


def run(config: SFTStage, mixtures: Mapping[str, Mixture], context: StageContext) -> dict[str, Any]:
    """Trains ``context.inputs["from"]`` on a mixture; writes ``model/`` and ``data.json``, the account of every sample.

    Returns figures: ``loss_first`` and ``loss_last`` (nats a trained token, means over the first and the last tenth of
    the steps), ``held_out_loss_first`` and ``held_out_loss_last`` (before and after), ``steps``, ``tokens``,
    ``tokens_per_s``, ``train_s``, and of the data ``documents``, ``document_tokens``, ``trained_tokens``, ``rows``,
    ``fill``, ``dropped``.

    Raises:
        DataError: bad rows, samples that are too long, or a sample without a trained token; before any training.
        ConfigError: the batch or the processes do not divide, or a LoRA target matches nothing.
        IsolationError: documents of a batch see each other.
    """
    from budget_control.transforms import teaching
    from data_recipes.chat import chat_format
    from data_recipes.mixture import build
    from models.adapters import attach, merge
    from models.loading import load_model, load_tokenizer, save_model
    from models.sequence_parallel import sequence_group, spread
    from sft.collate import Collator
    from sft.data import hold_out, prepare
    from sft.packing import pack, singly
    from sft.trainer import is_deepspeed_zero3_enabled, make_trainer, sft_arguments

    source, chat = context.inputs["from"], chat_format(context.chat)
    tokenizer = load_tokenizer(source)
    train, packing = config.train, config.pack

    # Data: samples, taught their budgets, as documents in rows.
    taught = teaching(config.strip_reasoning, config.truncate_reasoning, tokenizer)
    built = build(mixtures[config.data], context.data_root, context.seed, taught, chat)
    kept, held_out = hold_out(built.conversations, HELD_OUT, context.seed)
    longest, over_long = config.limit
    data = prepare(kept, chat, tokenizer, longest, over_long)
    unseen = prepare(held_out, chat, tokenizer, longest, "drop").documents
    if not len(data.documents):
        raise DataError(f"data.{config.data}: no sample is left to train on; dropped: {dict(data.dropped)}")
    rows = pack(data.documents.lengths, packing.length) if packing else singly(data.documents.lengths)
    ranks = packing.sequence_parallel if packing else 1
    rank = int(os.environ.get("RANK", "0")) % ranks
    batches = Collator(data.documents, rows, bool(packing and packing.isolate), tokenizer.pad_token_id, rank, ranks)
    alone = Collator(unseen, singly(unseen.lengths), False, tokenizer.pad_token_id)

    # Model and trainer.
    arguments = sft_arguments(train, context.folder / "checkpoints", batches, context.device, context.seed)
    frozen_in_half = train.lora is not None and train.dtype == "bfloat16"

    def fresh_model(spread_over: int = 1) -> Any:
        device = str(arguments.device) if is_deepspeed_zero3_enabled() else "cpu"  # ZeRO-3 splits while it loads
        model = load_model(source, "bfloat16" if frozen_in_half else "float32", device)
        if spread_over > 1:
            spread(model, sequence_group(spread_over))
        return attach(model, train.lora, context.seed) if train.lora else model

    model = fresh_model(ranks)
    trainer = make_trainer(model, tokenizer, arguments, train, batches, alone, context.log)

    account = {
        **built.report.as_dict(),
        "held_out": len(held_out),
        "by_domain": dict(data.by_domain),
        "changed": dict(built.report.changed + data.changed),
        "dropped": dict(built.report.dropped + data.dropped),
        "documents": len(data.documents),
        "document_tokens": int(data.documents.lengths.sum()),
        "trained_tokens": int(data.documents.trained_tokens.sum()),
        "rows": len(rows),
        "fill": rows.fill,
    }
    if trainer.is_world_process_zero():
        write_json(context.folder / "data.json", account)
        show(data, tokenizer, context)

    # Training, after a check on a real batch that no document sees another.
    trainer.train_or_resume()
    trainer.log_held_out_loss()

    model = trainer.whole_model(fresh_model)
    if trainer.is_world_process_zero():
        if train.lora:
            model = merge(model)
        save_model(model.bfloat16() if train.dtype == "bfloat16" else model, tokenizer, context.folder / "model")
    trainer.accelerator.wait_for_everyone()
    counted = ("documents", "document_tokens", "trained_tokens", "rows", "fill")
    return {
        **trainer.figures(),
        **{name: account[name] for name in counted},
        "dropped": sum(account["dropped"].values()),
    }


def show(data: "Prepared", tokenizer: Any, context: StageContext) -> None:
    """Writes a few documents, evenly spread over the data, to samples.jsonl, with what is trained marked."""
    from sft.data import runs

    documents = data.documents
    for document in range(0, len(documents), max(1, len(documents) // SHOWN)):
        conversation, span = data.origins[document], documents.span(document)
        last = conversation.messages[-1]
        context.log.sample(
            kind="train",
            domain=conversation.domain,
            source=conversation.source,
            prompt=next((each.content for each in conversation.messages if each.role == "user"), ""),
            thinking=last.reasoning,
            answer=last.content,
            runs=runs(documents.ids[span], documents.trained[span], tokenizer),
        )
