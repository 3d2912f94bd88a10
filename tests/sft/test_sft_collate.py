from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.data_recipes.tokenize import Example
from nanoalign.models.packing import singly
from nanoalign.sft.collate import IGNORED, Documents, collate, gather

examples = st.lists(
    st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=12).map(
        lambda tokens: Example([token for token, _ in tokens], [int(trained) for _, trained in tokens])
    ),
    min_size=1,
    max_size=8,
)


@given(examples=examples, cut=st.integers(0, 8))
def test_rows_hold_their_documents_and_no_loss_crosses_them(examples: list[Example], cut: int) -> None:
    documents = gather(examples)
    rows = [row for row in (range(len(examples))[:cut], range(len(examples))[cut:]) if len(row)]
    batch = collate(documents, rows, isolate=True, pad_id=0)
    assert {tensor.shape for tensor in batch.values()} == {batch["input_ids"].shape}
    for i, row in enumerate(rows):
        at = 0
        for number, document in enumerate(row):
            example = examples[document]
            here = slice(at, at + len(example.input_ids))
            assert batch["input_ids"][i, here].tolist() == example.input_ids
            expected = [t if m else IGNORED for t, m in zip(example.input_ids, example.loss_mask, strict=True)]
            assert batch["labels"][i, here].tolist() == [IGNORED, *expected[1:]]
            assert batch["position_ids"][i, here].tolist() == list(range(len(example.input_ids)))
            assert (batch["seq_idx"][i, here] == number).all()
            at = here.stop
        assert (batch["labels"][i, at:] == IGNORED).all() and (batch["seq_idx"][i, at:] == len(row)).all()
        assert batch["position_ids"][i, at:].tolist() == list(range(batch["input_ids"].shape[1] - at))


def test_unpacked_rows_are_padded_on_the_right_under_a_mask() -> None:
    documents = gather([Example([5, 6, 7], [0, 1, 1]), Example([8], [1])])
    batch = collate(documents, list(singly(documents.lengths)), isolate=False, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED] * 3]
    assert "seq_idx" not in batch and "position_ids" not in batch


def test_counts_of_documents() -> None:
    documents = gather([Example([5, 6, 7], [1, 1, 0]), Example([8, 8], [1, 1])])
    assert isinstance(documents, Documents) and len(documents) == 2
    assert documents.lengths.tolist() == [3, 2] and documents.trained_tokens.tolist() == [1, 1]
    assert documents[0][0].dtype == np.int32
    assert collate(documents, [[1]], True, 0)["input_ids"].dtype == torch.int64


@given(examples=examples, starts=st.lists(st.integers(0, 11), min_size=8, max_size=8))
def test_in_full_all_tokens_are_trained_but_each_documents_first(examples: list[Example], starts: list[int]) -> None:
    """Also where a document is a piece of an example, whose first token nothing in it predicts."""
    plain = gather(examples)
    begin = np.array([min(s, len(e.input_ids) - 1) for s, e in zip(starts, examples)], np.int32)
    documents = replace(plain, starts=begin, lengths=plain.lengths - begin).in_full()
    batch = collate(documents, [range(len(examples))], isolate=True, pad_id=0)
    first = batch["position_ids"][0] == 0
    assert torch.equal(batch["labels"][0], batch["input_ids"][0].masked_fill(first, IGNORED))
    assert int((batch["labels"] != IGNORED).sum()) == documents.trained_tokens.sum()
