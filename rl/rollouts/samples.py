"""From completions to what rewards judge."""

from collections.abc import Mapping, Sequence
from typing import Any

from budget_control.rule import BudgetRule
from budget_control.vocabulary import ThinkingTokens
from data_recipes.chat.base import ChatFormat
from data_recipes.conversation import Message
from reward.base import Sample
from rl.modes import Mode
from rl.rollouts.base import Completion


def completion_text(completion: Completion, tokenizer: Any) -> str:
    """The completion's text without its stop token."""
    ids = completion.token_ids[:-1] if completion.finish == "stop" else completion.token_ids
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def judged(
    messages: Sequence[Message],
    mode: Mode,
    prompt_ids: Sequence[int],
    completion: Completion,
    thinking: ThinkingTokens,
    chat: ChatFormat,
    tokenizer: Any,
    task: Mapping[str, Any] | None = None,
) -> Sample:
    """The sample of one completion to a prompt that was rendered in ``mode``.

    ``closed`` asks for exactly one closing tag after a prompt that opened thinking, and for no tag at all after one
    that did not.
    """
    text = completion_text(completion, tokenizer)
    thought = BudgetRule(thinking, None).thinking_tokens(prompt_ids, completion.token_ids)
    tags = (text.count(chat.think_open), text.count(chat.think_close))
    return Sample(
        messages=tuple(messages),
        answer=chat.parse(text, thinking=mode.thinking),
        task=task or {},
        closed=tags == (0, int(mode.thinking)),
        finished=completion.finish == "stop",
        thinking_tokens=thought,
        answer_tokens=len(completion.token_ids) - thought - (completion.finish == "stop"),
        thinking_budget=mode.budget if mode.thinking else None,
    )
