"""Pre-training of a small base model from nothing: one flat loop over a stream of tokens.

It exists for the miniature's base checkpoint (recipes/miniature-base.yaml), which is committed; a real run starts from
a real base model. AdamW with the WSD schedule, bf16 autocast with fp32 master weights, as in the base model's training.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import Field

from nanoalign.common.config import Section
from nanoalign.common.errors import ConfigError
from nanoalign.common.files import content_hash
from nanoalign.common.stage import StageContext
from nanoalign.data_recipes.config import Mixture
from nanoalign.models.config import Training


class PretrainStage(Section):
    """Pre-train the miniature on its generated corpus."""

    kind: Literal["pretrain"]
    documents: int = Field(ge=100)
    """Documents generated for the corpus."""
    vocab_size: int = Field(2048, ge=512)
    """Tokens of the tokenizer that is trained on the corpus."""
    length: int = Field(512, ge=16)
    """Tokens in a training window."""
    train: Training
    """batch_size counts windows; give steps."""


def tokenizer_and_tokens(config: PretrainStage, seed: int, chat: str) -> tuple[Any, Any, str]:
    """The tokenizer trained on the corpus, all its documents as one uint16 array, and the corpus' fingerprint."""
    import numpy as np

    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.data_recipes.miniature import SOURCES, generate
    from nanoalign.data_recipes.miniature.corpus import documents
    from nanoalign.data_recipes.miniature.tokenizer import END_OF_DOCUMENT, train_tokenizer

    fmt = chat_format(chat)
    texts = list(documents(config.documents, seed))
    rendered = [
        "".join(span.text for span in example)
        for name in [*SOURCES, "tools"]
        for conversation in generate(name, 500, "train", seed)
        for example in fmt.examples(conversation)
    ]
    tags = [
        "<think>",
        "</think>",
        "<TOOLCALL>",
        "</TOOLCALL>",
        "<TOOL_RESPONSE>",
        "</TOOL_RESPONSE>",
        "<AVAILABLE_TOOLS>",
        "</AVAILABLE_TOOLS>",
    ]
    special = list(dict.fromkeys([*fmt.special_tokens, *tags]))
    sample = Random(seed).sample(texts, min(len(texts), 40_000))
    tokenizer = train_tokenizer([*sample, *rendered], special, fmt.stop[0], config.vocab_size)
    end = tokenizer.convert_tokens_to_ids(END_OF_DOCUMENT)
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts)
    tokens = np.concatenate([np.asarray([*item.ids, end], dtype=np.uint16) for item in encoded])
    return tokenizer, tokens, content_hash(texts)


def windows(tokens: Any, length: int, batch: int, seed: int) -> Iterator[Any]:
    """Endless batches (batch, length + 1) of random windows, int64; the same for the same seed."""
    import numpy as np

    rng = np.random.default_rng(seed)
    offsets = np.arange(length + 1)
    while True:
        starts = rng.integers(0, len(tokens) - length - 1, size=(batch, 1))
        yield tokens[starts + offsets].astype(np.int64)


def run(config: PretrainStage, mixtures: Mapping[str, Mixture], context: StageContext) -> dict[str, float | str]:
    """Trains and writes ``context.folder/model``. A corpus that was prepared elsewhere (``context.folder/corpus.npz``
    and ``context.folder/tokenizer``) is used as it is. Raises ConfigError where ``train.steps`` is missing."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer, NemotronHForCausalLM

    from nanoalign.models.fp8 import require_fp8
    from nanoalign.models.fp8_layers import use_fp8
    from nanoalign.models.hybrid import install
    from nanoalign.models.loading import save_model
    from nanoalign.models.miniature import miniature_config
    from nanoalign.models.schedules import schedule_factor
    from nanoalign.models.training import resolve_device

    steps = config.train.steps
    if steps is None:
        raise ConfigError(f"stages.{context.name}.train.steps: pre-training needs a number of steps")
    corpus = context.folder / "corpus.npz"
    if not corpus.exists():
        prepare_corpus(config, context.seed, context.chat, context.folder)
    stored = np.load(corpus)
    tokens, data_fingerprint = stored["tokens"], str(stored["fingerprint"])
    tokenizer = AutoTokenizer.from_pretrained(context.folder / "tokenizer")

    device = torch.device(resolve_device(context.device))
    torch.manual_seed(context.seed)
    model = NemotronHForCausalLM(
        miniature_config(
            len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
    )
    install(model)
    if config.train.precision == "fp8":
        require_fp8(device)
        use_fp8(model)
    model.to(device).train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    train = config.train
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=train.learning_rate,
        betas=train.betas,
        fused=device.type == "cuda",
    )
    batches = windows(tokens, config.length, train.batch_size, context.seed)
    begun, loss = time.monotonic(), torch.zeros(())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate * schedule_factor(train, step, steps)
        batch_BT = torch.from_numpy(next(batches)).to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=train.dtype == "bfloat16"):
            logits_BTV = model(input_ids=batch_BT[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits_BTV.float().flatten(0, 1), batch_BT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0 or step == steps - 1:
            seen = (step + 1) * train.batch_size * config.length
            context.log.metrics(
                step + 1, steps, loss=loss.item(), tokens=seen, tokens_per_s=seen / (time.monotonic() - begun)
            )
    save_model(model.to(torch.bfloat16), tokenizer, context.folder / "model")
    return {
        "loss_last": loss.item(),
        "tokens": steps * train.batch_size * config.length,
        "data_fingerprint": data_fingerprint,
    }


def prepare_corpus(config: PretrainStage, seed: int, chat: str, folder: Path) -> None:
    """Writes the corpus and its tokenizer into ``folder``, for :func:`run` here or on another machine."""
    import numpy as np

    tokenizer, tokens, data_fingerprint = tokenizer_and_tokens(config, seed, chat)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    np.savez_compressed(folder / "corpus.npz", tokens=tokens, fingerprint=data_fingerprint)
