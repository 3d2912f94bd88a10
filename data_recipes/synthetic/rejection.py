"""Rejection sampling: several answers to a task, of which those that a verifier accepts are kept, reasoning and all."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.readers import RowError
from nanoalign.data_recipes.rows import check_calls, check_order
from nanoalign.data_recipes.synthetic.driver import Made, Maker
from nanoalign.data_recipes.synthetic.served import Query

Verify = Callable[[Conversation, Sequence[Message]], Sequence[float]]
"""Scores of answers to a task, 1 for a right one. Passed in by the caller, since verifiers are in a room above this
one."""


def prompt_of(conversation: Conversation) -> tuple[Message, ...]:
    """The messages up to the last question."""
    messages = conversation.messages
    return messages[:-1] if messages[-1].role == "assistant" else messages


def fault_of(conversation: Conversation) -> str | None:
    """Why a generated sample would not be a valid row, or None."""
    try:
        check_order(conversation.messages)
        check_calls(conversation.messages, conversation.tools)
    except RowError as error:
        return error.kind
    return None


def rejection(task: Conversation, tries: int, keep: int, verify: Verify, seed: int = 0) -> Maker:
    """Asks ``tries`` times at once; keeps the first ``keep`` different answers that score 1."""
    made, prompt = Made(), prompt_of(task)
    replies = yield [Query(prompt, task.tools, seed * tries + number) for number in range(tries)]
    answers: list[Message] = []
    for reply in replies:
        if reply.message is None:
            made.reasons[reply.fault] += 1
        elif reply.message in answers:
            made.reasons["said before"] += 1
        elif fault := fault_of(replace(task, messages=(*prompt, reply.message))):
            made.reasons[fault] += 1
        else:
            answers.append(reply.message)
    for answer, score in zip(answers, verify(task, answers) if answers else [], strict=True):
        if score < 1:
            made.reasons["not accepted by the verifier"] += 1
        elif len(made.samples) == keep:
            made.reasons["right, but enough are kept"] += 1
        else:
            id = f"{task.id}#{len(made.samples)}"
            made.samples.append(replace(task, messages=(*prompt, answer), id=id, source=f"rejection:{task.source}"))
    return made
