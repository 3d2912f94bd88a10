"""A stage's documents: those of its mixture in memory, but for what the limit of length and the held-out ones take."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.budget_control.transforms import teaching
from nanoalign.common.errors import ConfigError, DataError
from nanoalign.data_recipes import shards
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.rows import to_row
from nanoalign.data_recipes.selection import build
from nanoalign.data_recipes.tokenize import Example, encode_batch
from nanoalign.models.packing import pack, singly, turn_pieces
from nanoalign.sft.config import Pack, SFTStage
from nanoalign.sft.data import SFTData, hold_out, packed, prepare_stage, prompt_and_answer, runs, sft_data

CHAT = chat_format("nemotron-nano-v2")
EXTENDING = chat_format("chatml")
"""A format in which a longer conversation only extends a shorter one, so that one example holds all its turns."""
TRAIN = {"learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 4}


def turns(count: int, words: int = 5) -> Conversation:
    rng = Random(count)
    messages = []
    for _ in range(count):
        messages += [
            Message("user", " ".join(rng.choices("abcdef", k=words))),
            Message("assistant", " ".join(rng.choices("uvwxyz", k=words))),
        ]
    return Conversation(tuple(messages), domain="chat")


def stage(**more: Any) -> SFTStage:
    return SFTStage.model_validate({"kind": "sft", "from": "base", "data": "all", "train": TRAIN, **more})


def rows(path: Path, conversations: list[Conversation]) -> Mixture:
    path.write_text("\n".join(json.dumps(to_row(each)) for each in conversations))
    return Mixture(sources={f"file:{path}": len(conversations)})


def made(config: SFTStage, mixture: Mixture, chat: Any, tokenizer: Any, folder: Path, seed: int = 3) -> SFTData:
    return sft_data(config, prepare_stage(config, mixture, chat, tokenizer, folder, None, seed), seed)


def naive(
    config: SFTStage, mixture: Mixture, chat: Any, tokenizer: Any, seed: int
) -> tuple[list[Example], list[Example]]:
    """Documents and held-out ones of a stage that splits what is too long, with all of it in memory."""
    taught = teaching(config.strip_reasoning, config.truncate_reasoning, tokenizer)
    conversations = build(mixture, None, seed, taught, chat).conversations
    chosen = Random(f"{seed}/held out").sample(range(len(conversations)), min(64, len(conversations) // 50))
    unseen = [conversations[i] for i in sorted(chosen)]
    kept = [each for each in conversations if each.messages not in [other.messages for other in unseen]]
    longest, _ = config.limit
    assert longest is not None

    def pieces(example: Example) -> list[Example]:
        if len(example.input_ids) <= longest:
            return [example]
        cuts = turn_pieces(example.loss_mask, longest)
        return [Example(example.input_ids[a:b], example.loss_mask[a:b]) for a, b in cuts]

    examples = [example for each in encode_batch(kept, chat, tokenizer) for example in each]
    fitting = [e for each in encode_batch(unseen, chat, tokenizer) for e in each if len(e.input_ids) <= longest]
    return [piece for example in examples for piece in pieces(example)], fitting


@pytest.mark.parametrize("truncate", [None, {"share": 0.4, "tokens": [1, 20], "at": "rule", "grace": 4}])
def test_documents_and_packs_are_those_of_the_mixture_in_memory(
    tmp_path: Path, chatml_tokenizer: Any, truncate: Any
) -> None:
    kinds = [*made_up("math", 60), *made_up("tools", 60), *(turns(count) for count in range(1, 12))]
    path = tmp_path / "rows.jsonl"
    mixture = Mixture(
        sources={**rows(path, kinds).sources, f"file:{path}#normal": 200, "miniature:chat": 80, "miniature:safety": 5},
        domain_caps={"math": 70},
    )
    config = stage(strip_reasoning=0.2, truncate_reasoning=truncate, pack={"length": 128, "over_long": "split"})
    data = made(config, mixture, EXTENDING, chatml_tokenizer, tmp_path / "stage")
    documents, held_out = naive(config, mixture, EXTENDING, chatml_tokenizer, 3)
    assert held_out and any(data.documents.starts)
    assert data.held_out_samples == len(build(mixture, seed=3).conversations) // 50
    for found, wanted in ((data.documents, documents), (data.held_out, held_out)):
        assert [ids.tolist() for ids, _ in (found[i] for i in range(len(found)))] == [e.input_ids for e in wanted]
        assert [mask.tolist() for _, mask in (found[i] for i in range(len(found)))] == [e.loss_mask for e in wanted]
        assert found.lengths.tolist() == [len(e.input_ids) for e in wanted]
        assert found.trained_tokens.tolist() == [sum(e.loss_mask) for e in wanted]
    one, other = pack(data.documents.lengths, 128), pack([len(e.input_ids) for e in documents], 128)
    assert np.array_equal(one.samples, other.samples) and np.array_equal(one.starts, other.starts)
    assert data.by_domain.keys() == {"math", "tools", "chat", "safety"}


def test_rows_are_mixed_or_best_fit_packs_or_single_documents() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 200)
    for packing, expected in (
        (Pack(length=128), pack(lengths, 128, seed=4)),
        (Pack(length=128, strategy="best_fit"), pack(lengths, 128)),
        (None, singly(lengths)),
    ):
        rows = packed(lengths, packing, 4)
        assert np.array_equal(rows.samples, expected.samples) and np.array_equal(rows.starts, expected.starts)


def made_up(kind: str, count: int) -> list[Conversation]:
    from nanoalign.data_recipes.miniature import generate

    return [replace(each, source="") for each in generate(kind, count, "train", 3)]


def test_what_is_trained_and_what_is_shown(tmp_path: Path, tokenizer: Any) -> None:
    conversations = made_up("math", 20)
    config = stage(max_length=4096)
    documents = made(
        config, rows(tmp_path / "rows.jsonl", conversations), CHAT, tokenizer, tmp_path / "stage"
    ).documents
    answers = {(each.messages[-1].reasoning, each.messages[-1].content) for each in conversations}
    for document in range(20):
        pieces = runs(*documents[document], tokenizer)
        parts = prompt_and_answer(pieces, CHAT)
        assert (parts["thinking"], parts["answer"]) in answers
        assert any(each.messages[0].content in parts["prompt"] for each in conversations)
        trained = "".join(piece["text"] for piece in pieces if piece["trained"])
        assert parts["answer"] in trained and parts["prompt"] not in trained


def test_over_long_samples_stop_are_dropped_or_split_and_are_counted(tmp_path: Path, chatml_tokenizer: Any) -> None:
    mixture = rows(tmp_path / "rows.jsonl", [turns(2), turns(9)])

    def limited(longest: int, over_long: str) -> SFTData:
        config = stage(pack={"length": longest, "over_long": over_long})
        return made(config, mixture, EXTENDING, chatml_tokenizer, tmp_path / "stage")

    whole = limited(4096, "error").documents
    longest = int(whole.lengths.min()) + 10
    with pytest.raises(DataError, match=r"^rows.jsonl:2: 1 samples longer than \d+ tokens.*rows.jsonl:2 of file:.*\("):
        limited(longest, "error")
    dropped = limited(longest, "drop")
    assert len(dropped.documents) == 1 and dropped.dropped == {"over-long": 1} and dropped.by_domain == {"chat": 1}
    split = limited(longest, "split")
    assert (split.documents.lengths <= longest).all() and len(split.documents) > 3
    assert split.changed == {"over-long, split at turns": 1} and split.by_domain == {"chat": 2}
    assert split.documents.trained_tokens.sum() == whole.trained_tokens.sum()
    assert all(split.documents.trained_tokens > 0)


def test_a_sample_without_a_trained_token_is_an_error_that_names_it(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Masked(shards.ExampleEncoder):
        def encode(self, conversations: Any) -> Any:
            return [
                [replace(e, loss_mask=[0] * len(e.input_ids)) for e in each] for each in super().encode(conversations)
            ]

    monkeypatch.setattr("nanoalign.data_recipes.prepared.ExampleEncoder", Masked)
    mixture = rows(tmp_path / "rows.jsonl", [turns(2), turns(3)])
    with pytest.raises(DataError, match=r"^rows.jsonl:\d: 5 samples without a token to train on"):
        made(stage(), mixture, CHAT, tokenizer, tmp_path / "stage")


def test_other_lengths_and_training_use_the_same_set(tmp_path: Path, tokenizer: Any) -> None:
    mixture = Mixture(sources={"miniature:math": 30})
    made(stage(pack={"length": 512}), mixture, CHAT, tokenizer, tmp_path / "stage")
    index = tmp_path / "stage.prepared" / "index.json"
    before = index.stat().st_mtime_ns
    made(stage(max_length=512, train={**TRAIN, "epochs": 2}), mixture, CHAT, tokenizer, tmp_path / "stage")
    assert index.stat().st_mtime_ns == before
    made(stage(strip_reasoning=0.5), mixture, CHAT, tokenizer, tmp_path / "stage")
    assert index.stat().st_mtime_ns > before
    with pytest.raises(ConfigError, match="exceed 1"):
        prepare_stage(
            stage(strip_reasoning=0.8, truncate_reasoning={"share": 0.5}), mixture, CHAT, tokenizer, tmp_path / "stage",
            None, 3, workers=2,
        )  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 3)), min_size=1, max_size=300), st.integers(0, 9))
def test_held_out_samples_leave_training_with_all_their_copies(texts: list[tuple[int, int]], seed: int) -> None:
    samples = np.repeat(np.arange(len(texts), dtype=np.int32), [examples for _, examples in texts])
    said = np.repeat(np.array([text for text, _ in texts], np.uint64), [examples for _, examples in texts])
    training, held_out = hold_out(samples, said, 4, seed)
    assert len(set(samples[held_out])) == min(4, len(texts) // 50)
    assert set(said[training]) | set(said[held_out]) == set(said)
    assert not set(said[training]) & set(said[held_out]) and not (training & held_out).any()
