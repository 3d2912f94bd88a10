"""The `preference` reward: a trained reward model's score of an answer.

It reads the conversation with the answer as the user sees it, without thinking: what was thought must not be rewarded.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanoalign.common.errors import CheckpointError
from nanoalign.data_recipes.chat.answers import as_message, in_plain_text
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.reward.base import Sample


def answer_ids(prompt: Sequence[Message], answer: Message, chat: ChatFormat, tokenizer: Any) -> list[int]:
    """The complete conversation with this answer, as a model that does not think would have written it. Raises
    DataError for a conversation that the format cannot render, as a user's pairs may be."""
    from nanoalign.data_recipes.tokenize import tokenize

    shown = replace(answer, reasoning="", reasoning_cut=False)
    return tokenize(Conversation((*prompt, shown)), chat, tokenizer)[-1].input_ids


def load_reward_model(
    folder: Path, device: str = "auto", batch_size: int = 64
) -> Callable[[Sequence[Sample]], list[float]]:
    """The `preference` reward: raw scores (log-odds against an answer as good as not) of samples' answers.

    Raises:
        CheckpointError: ``folder`` holds no reward model of this suite.
    """
    import torch

    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.loading import load_tokenizer
    from nanoalign.models.scorer import load_scorer, scores
    from nanoalign.models.training import resolve_device

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
