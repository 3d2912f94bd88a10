"""`kind: reward_model`: a Bradley-Terry reward model on preference pairs, and its use as a reward.

It reads the conversation with the answer as the user sees it, without thinking: what was thought must not be rewarded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from common.errors import CheckpointError, ConfigError, DataError
from common.stage import StageContext
from common.stats import proportion
from data_recipes.chat.answers import as_message, in_plain_text
from data_recipes.chat.base import ChatFormat
from data_recipes.config import Mixture
from data_recipes.conversation import Conversation, Message
from data_recipes.mixture import build
from reward.base import Sample
from rl.config import RewardModelStage

HELD_OUT = 0.1
"""Share of the prompts whose pairs are kept for measuring."""

Pair = tuple[list[int], list[int]]


def run(config: RewardModelStage, mixtures: Mapping[str, Mixture], context: StageContext) -> dict[str, Any]:
    """Trains, writes ``context.folder/model`` and returns the accuracy on held-out pairs.

    Raises:
        ConfigError: low-rank adapters are asked for. DataError: a row that is no pair, or too few pairs.
    """
    from data_recipes.chat import chat_format
    from models.loading import load_tokenizer, save_model
    from models.training import resolve_device
    from rl.reward_trainer import load_scorer, make_trainer

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
    save_model(trainer.model, tokenizer, context.folder / "model")
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        "accuracy": accuracy(trainer.model, held_out),
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


def answer_ids(prompt: Sequence[Message], answer: Message, chat: ChatFormat, tokenizer: Any) -> list[int]:
    """The conversation with this answer to its end, as a model that does not think would have written it. Raises
    DataError for a conversation that the format cannot render, as a user's pairs may be."""
    from data_recipes.tokenize import tokenize

    shown = replace(answer, reasoning="", reasoning_cut=False)
    return tokenize(Conversation((*prompt, shown)), chat, tokenizer)[-1].input_ids


def accuracy(model: Any, pairs: Sequence[Pair], batch_size: int = 64) -> dict[str, float]:
    """The share of pairs whose chosen answer scores higher, with its interval."""
    from rl.reward_trainer import scores

    model.eval()
    chosen = scores(model, [pair[0] for pair in pairs], batch_size)
    rejected = scores(model, [pair[1] for pair in pairs], batch_size)
    return proportion(sum(a > b for a, b in zip(chosen, rejected, strict=True)), len(pairs)).as_dict()


def load_reward_model(
    folder: Path, device: str = "auto", batch_size: int = 64
) -> Callable[[Sequence[Sample]], list[float]]:
    """The `preference` reward: raw scores (log-odds against an answer as good as not) of samples' answers.

    Raises:
        CheckpointError: ``folder`` holds no reward model of this suite.
    """
    import torch

    from data_recipes.chat import chat_format
    from models.loading import load_tokenizer
    from models.training import resolve_device
    from rl.reward_trainer import load_scorer, scores

    tokenizer = load_tokenizer(folder)
    model = load_scorer(folder, tokenizer.pad_token_id, resolve_device(device), fresh_head=False)
    name = getattr(model.config, "chat_format", None)
    if name is None:
        raise CheckpointError(f"{folder}/config.json: no chat_format; a reward_model stage writes it")
    chat = chat_format(name)

    def read(sample: Sample) -> list[int]:
        # in plain text: the judge's format may have other special tokens than the policy's
        prompt = [in_plain_text(message, chat) for message in sample.messages]
        return answer_ids(prompt, as_message(sample.answer, chat), chat, tokenizer)

    def score(samples: Sequence[Sample]) -> list[float]:
        asked = [read(sample) for sample in samples]
        here = model.device if model.device.type == "cuda" else -1
        with torch.cuda.device(here):  # Triton launches on the current device
            return scores(model, asked, batch_size)

    return score
