"""`kind: reward_model`: a Bradley-Terry reward model on preference pairs (reward/preference.py has its use)."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.common.intervals import proportion
from nanoalign.common.stage import StageContext
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.selection import build
from nanoalign.reward.preference import answer_ids
from nanoalign.rl.config import RewardModelStage

HELD_OUT = 0.1
"""Share of the prompts whose pairs are kept for measuring."""

Pair = tuple[list[int], list[int]]


def run(config: RewardModelStage, mixtures: Mapping[str, Mixture], context: StageContext) -> dict[str, Any]:
    """Trains, writes ``context.folder/model`` and returns the accuracy on held-out pairs.

    Raises:
        ConfigError: low-rank adapters are configured. DataError: a row that is not a pair, or too few pairs.
    """
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.loading import load_tokenizer, save_model
    from nanoalign.models.scorer import load_scorer
    from nanoalign.models.training import resolve_device
    from nanoalign.rl.reward_trainer import make_trainer

    if config.train.lora is not None:
        raise ConfigError(f"stages.{context.name}.train.lora: a reward model trains all weights, its head is new")
    device = resolve_device(context.device)
    chat = chat_format(context.chat)
    tokenizer = load_tokenizer(context.inputs["from"])
    built = build(mixtures[config.data], context.data_root, context.seed, chat=chat)
    train, held_out = split_pairs(built.conversations, chat, tokenizer)
    model = load_scorer(context.inputs["from"], tokenizer.pad_token_id, device, fresh_head=True)
    model.config.chat_format = context.chat
    trainer = make_trainer(
        model, tokenizer, train, config.train, context.folder / "checkpoints", context.log, device, context.seed
    )
    trainer.train_or_resume()
    trained = trainer.full_model(
        lambda: load_scorer(context.inputs["from"], tokenizer.pad_token_id, "cpu", fresh_head=True)
    )
    right = {}
    if trained is not None:
        save_model(trained, tokenizer, context.folder / "model")
        right = accuracy(trained.float(), held_out)  # as it judges, see reward/preference.py
    trainer.accelerator.wait_for_everyone()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        "accuracy": right,
        "train_pairs": len(train),
        "held_out_pairs": len(held_out),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "dropped": dict(built.report.dropped),
        "not_read": dict(built.report.not_read),
    }


def split_pairs(
    conversations: Sequence[Conversation], chat: ChatFormat, tokenizer: Any
) -> tuple[list[Pair], list[Pair]]:
    """Pairs for training and for measuring; all pairs of a prompt are on one side, whichever its hash decides.

    A row's last message is the chosen answer, ``task["rejected"]`` the other one.

    Raises:
        DataError: a row without both answers, or no pair on one of the sides.
    """
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for conversation in conversations:
        *prompt, chosen = conversation.messages
        rejected = (conversation.task or {}).get("rejected")
        if chosen.role != "assistant" or not isinstance(rejected, str):
            raise DataError(
                f"{conversation.origin or conversation.id}: a preference pair ends with the chosen answer and holds "
                "the other one as task.rejected"
            )
        # not the bare prompt's hash: sources split train from test by that
        digest = sha256("\0".join(["held out", *(message.content for message in prompt)]).encode()).digest()
        pair = (
            answer_ids(prompt, chosen, chat, tokenizer),
            answer_ids(prompt, Message("assistant", rejected), chat, tokenizer),
        )
        sides[int.from_bytes(digest[:8], "big") < HELD_OUT * 2**64].append(pair)
    if not all(sides):
        raise DataError(f"{len(conversations)} preference pairs are too few to train on some and measure on others")
    return sides


def accuracy(model: Any, pairs: Sequence[Pair], batch_size: int = 64) -> dict[str, float]:
    """The share of pairs whose chosen answer scores higher, with its interval."""
    from nanoalign.models.scorer import scores

    model.eval()
    chosen = scores(model, [pair[0] for pair in pairs], batch_size)
    rejected = scores(model, [pair[1] for pair in pairs], batch_size)
    return proportion(sum(a > b for a, b in zip(chosen, rejected, strict=True)), len(pairs)).as_dict()
