from dataclasses import replace
from random import Random
from typing import Any

import pytest

from common.errors import DataError
from data_recipes.chat import chat_format
from data_recipes.conversation import Conversation, Message
from data_recipes.miniature import generate
from data_recipes.tokenize import tokenize
from sft import data
from sft.data import hold_out, prepare, runs

CHAT = chat_format("nemotron-nano-v2")
EXTENDING = chat_format("chatml")
"""A format in which a longer conversation only extends a shorter one, so that one example holds all its turns."""


def turns(count: int, words: int = 5) -> Conversation:
    rng = Random(count)
    messages = []
    for _ in range(count):
        messages += [
            Message("user", " ".join(rng.choices("abcdef", k=words))),
            Message("assistant", " ".join(rng.choices("uvwxyz", k=words))),
        ]
    return Conversation(tuple(messages), domain="chat", origin=f"file.jsonl:{count}")


def test_documents_are_the_examples_and_say_what_is_trained(tokenizer: Any) -> None:
    conversations = list(generate("math", 20, "train", 3))
    prepared = prepare(conversations, CHAT, tokenizer, None, "error")
    assert len(prepared.documents) == 20 and prepared.by_domain == {"math": 20} and not prepared.dropped
    first = prepared.documents.span(0)
    pieces = runs(prepared.documents.ids[first], prepared.documents.trained[first], tokenizer)
    answer = conversations[0].messages[-1]
    assert "".join(piece["text"] for piece in pieces if piece["trained"]).startswith((answer.reasoning or "")[:5])
    assert conversations[0].messages[0].content in "".join(piece["text"] for piece in pieces if not piece["trained"])


def test_over_long_samples_stop_are_dropped_or_split_and_are_counted(chatml_tokenizer: Any) -> None:
    conversations = [turns(2), turns(9)]
    whole = prepare(conversations, EXTENDING, chatml_tokenizer, None, "error").documents
    longest = int(whole.lengths[0]) + 10
    with pytest.raises(DataError, match=r"^file.jsonl:9: 1 samples longer than \d+ tokens.*file.jsonl:9 \("):
        prepare(conversations, EXTENDING, chatml_tokenizer, longest, "error")
    dropped = prepare(conversations, EXTENDING, chatml_tokenizer, longest, "drop")
    assert len(dropped.documents) == 1 and dropped.dropped == {"over-long": 1}
    split = prepare(conversations, EXTENDING, chatml_tokenizer, longest, "split")
    assert (split.documents.lengths <= longest).all() and len(split.documents) > 3
    assert split.changed == {"over-long, split at turns": 1}
    assert split.documents.trained_tokens.sum() == whole.trained_tokens.sum()
    assert all(split.documents.trained_tokens > 0) and split.origins[1] is conversations[1]


def test_a_sample_without_a_trained_token_is_an_error_that_names_it(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def masked(conversations: Any, chat: Any, tokenizer: Any) -> Any:
        return [
            [replace(example, loss_mask=[0] * len(example.input_ids)) for example in tokenize(each, chat, tokenizer)]
            for each in conversations
        ]

    monkeypatch.setattr(data, "encode_batch", masked)
    with pytest.raises(DataError, match=r"^file.jsonl:2: 5 samples without a token to train on"):
        prepare([turns(2), turns(3)], CHAT, tokenizer, None, "error")


def test_held_out_samples_leave_training_with_all_their_copies() -> None:
    once = list(generate("math", 100, "train", 0))
    conversations = once + once[:50]
    training, held_out = hold_out(conversations, 64, seed=1)
    assert len(held_out) == 3
    assert not {each.messages for each in training} & {each.messages for each in held_out}
    assert {each.messages for each in training} | {each.messages for each in held_out} == {e.messages for e in once}
    assert hold_out(conversations, 64, seed=1)[1] == held_out
    assert hold_out(once[:30], 64, seed=1) == (once[:30], [])
