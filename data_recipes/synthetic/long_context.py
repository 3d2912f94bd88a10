"""Long-context questions: documents one after another, and a question that joins a fact of one with a fact of another
(as the long-context data of the paper's third stage).

The model reads two documents alone and writes the question with its short answer. The answer must not be found with
either document alone, and is kept as the model gives it, with its reasoning, from among all the documents.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.synthetic.driver import Made, Maker
from nanoalign.data_recipes.synthetic.rejection import Verify
from nanoalign.data_recipes.synthetic.served import Query

ASK = """{documents}

Write one question that only someone who has read both documents can answer, since it joins a fact of the one with a \
fact of the other, and its answer: a name, a number or a few words. Among a hundred other documents the question must \
still be clear, so it names what it is about and does not speak of documents. Reply with JSON and nothing else: \
{{"question": "...", "answer": "..."}}"""
ANSWER = '{documents}\n\n{question}\nEnd with a line "Answer: ...", in a few words.'
LONGEST_ANSWER = 100


def contexts(
    documents: Sequence[Conversation], samples: int, most: int, characters: int, seed: int
) -> Iterator[list[Conversation]]:
    """``samples`` contexts of at most ``most`` documents, different within each, of at most ``characters`` characters
    together. The first two are those that are asked about; where no two fit, the context has fewer.
    """
    for number in range(samples):
        rng = Random(f"{seed}/context/{number}")
        chosen: list[Conversation] = []
        room = characters
        for document in rng.sample(documents, min(len(documents), 4 * most)):
            if len(chosen) < most and len(_said(document)) <= room:
                chosen.append(document)
                room -= len(_said(document))
        yield chosen


def across(base: Conversation, documents: Sequence[Conversation], tries: int, verify: Verify, seed: int = 0) -> Maker:
    """Asks about the first two of ``documents`` among all of them. ``base`` holds what is known of the sample;
    ``verify`` scores answers to a task of kind exact."""
    made = Made()
    if len(documents) < 2:
        made.reasons["no two documents fit"] += 1
        return made
    [reply] = yield [Query((Message("user", ASK.format(documents=numbered(documents[:2]))),), number=seed)]
    pair = _question(reply.message.content) if reply.message else None
    if pair is None:
        made.reasons[reply.fault or "no question with a short answer"] += 1
        return made
    question, answer = pair
    task = replace(base, task={"kind": "exact", "answer": answer})

    alone = yield [Query((_prompt([document], question),), number=seed) for document in documents[:2]]
    if any(each.message and verify(task, [each.message])[0] >= 1 for each in alone):
        made.reasons["one document is enough"] += 1
        return made

    order = list(documents)
    Random(f"{seed}/{base.id}/order").shuffle(order)
    prompt = _prompt(order, question)
    replies = yield [Query((prompt,), number=seed * tries + number) for number in range(tries)]
    for each in replies:
        if each.message is None:
            made.reasons[each.fault] += 1
        elif verify(task, [each.message])[0] < 1:
            made.reasons["another answer"] += 1
        else:
            made.samples = [replace(task, messages=(prompt, each.message))]
            break
    return made


def numbered(documents: Sequence[Conversation]) -> str:
    """Documents as a prompt shows them, numbered."""
    return "\n\n".join(f"[Document {number}]\n{_said(each)}" for number, each in enumerate(documents, 1))


def _prompt(documents: Sequence[Conversation], question: str) -> Message:
    return Message("user", ANSWER.format(documents=numbered(documents), question=question))


def _said(document: Conversation) -> str:
    return "\n\n".join(message.content for message in document.messages if message.content)


def _question(text: str) -> tuple[str, str] | None:
    """Question and answer in the JSON object of a reply, which may be in a code block."""
    try:
        value = json.loads(text[text.index("{") : text.rindex("}") + 1])
        question, answer = value["question"].strip(), value["answer"].strip()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return (question, answer) if question and 0 < len(answer) <= LONGEST_ANSWER else None
