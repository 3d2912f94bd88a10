import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.data_recipes.tokenize import Example
from nanoalign.models.packing import singly
from nanoalign.sft.collate import IGNORE, Documents, collate, gather

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
            expected = [t if m else IGNORE for t, m in zip(example.input_ids, example.loss_mask, strict=True)]
            assert batch["labels"][i, here].tolist() == [IGNORE, *expected[1:]]
            assert batch["position_ids"][i, here].tolist() == list(range(len(example.input_ids)))
            assert (batch["seq_idx"][i, here] == number).all()
            at = here.stop
        assert (batch["labels"][i, at:] == IGNORE).all() and (batch["seq_idx"][i, at:] == len(row)).all()
        assert batch["position_ids"][i, at:].tolist() == list(range(batch["input_ids"].shape[1] - at))


def test_unpacked_rows_are_padded_on_the_right_under_a_mask() -> None:
    documents = gather([Example([5, 6, 7], [0, 1, 1]), Example([8], [1])])
    batch = collate(documents, list(singly(documents.lengths)), isolate=False, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 6, 7], [IGNORE] * 3]
    assert "seq_idx" not in batch and "position_ids" not in batch


def test_counts_of_documents() -> None:
    documents = gather([Example([5, 6, 7], [1, 1, 0]), Example([8, 8], [1, 1])])
    assert isinstance(documents, Documents) and len(documents) == 2
    assert documents.lengths.tolist() == [3, 2] and documents.trained_tokens.tolist() == [1, 1]
    assert documents[0][0].dtype == np.int32
    assert collate(documents, [[1]], True, 0)["input_ids"].dtype == torch.int64
