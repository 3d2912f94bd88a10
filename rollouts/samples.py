"""From completions to what rewards judge."""

from collections.abc import Mapping, Sequence
from typing import Any

from nanoalign.budget_control.rule import BudgetRule
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.conversation import Answer, Message
from nanoalign.reward.base import Sample
from nanoalign.rollouts.base import Completion, Mode


def completion_text(completion: Completion, tokenizer: Any) -> str:
    """The completion's text without its stop token."""
    ids = completion.token_ids[:-1] if completion.finish == "stop" else completion.token_ids
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def never_empty(completion: Completion, stop_id: int) -> Completion:
    """The completion or, where an engine gave no token at all, a stop token that is not trained on: a trainer's batch
    has no rows without tokens."""
    return completion if completion.token_ids else Completion((stop_id,), (0.0,), (True,), completion.finish)


def read_answer(completion: Completion, mode: Mode, chat: ChatFormat, tokenizer: Any) -> Answer:
    """What a model wrote to a prompt that was rendered in ``mode``."""
    return chat.parse(completion_text(completion, tokenizer), thinking=mode.thinking)


def judged(
    messages: Sequence[Message],
    mode: Mode,
    prompt_ids: Sequence[int],
    completion: Completion,
    thinking: ThinkingTokens,
    chat: ChatFormat,
    tokenizer: Any,
    task: Mapping[str, Any] | None = None,
    environment: float | None = None,
) -> Sample:
    """The sample of one completion to a prompt that was rendered in ``mode``; of an episode's last one, with what the
    environment gave it."""
    thought = BudgetRule(thinking, None).thinking_tokens(prompt_ids, completion.token_ids)
    return Sample(
        messages=tuple(messages),
        answer=read_answer(completion, mode, chat, tokenizer),
        task=task or {},
        finished=completion.finish == "stop",
        thinking_tokens=thought,
        answer_tokens=max(0, len(completion.token_ids) - thought - (completion.finish == "stop")),
        thinking_budget=mode.budget if mode.thinking else None,
        completion_ids=tuple(completion.token_ids),
        environment=environment,
    )
