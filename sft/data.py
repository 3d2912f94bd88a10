"""From a mixture to the documents of a stage, with every sample accounted for.

Tokens are in a prepared set beside the stage's folder; memory holds only some bytes per document.
"""

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanoalign.budget_control.transforms import teaching
from nanoalign.common.errors import DataError
from nanoalign.common.files import source_hash
from nanoalign.common.stage import StageLog
from nanoalign.data_recipes import prepared
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.prepared import Prepared
from nanoalign.data_recipes.selection import ProgressFn, no_progress
from nanoalign.data_recipes.transforms import Teaching
from nanoalign.models.config import HELD_OUT, HELD_OUT_SHARE
from nanoalign.models.packing import Packs, pack, singly, turn_pieces
from nanoalign.sft.collate import Documents
from nanoalign.sft.config import DocumentStage, Pack

LISTED = 5
"""Faulty samples that an error message names; the others are counted."""
PROGRESS_EVERY_S = 5.0
"""Seconds between two rows of progress."""


@dataclass(frozen=True)
class SFTData:
    """A stage's documents, in training order, and what became of every sample."""

    documents: Documents
    held_out: Documents
    """Of samples that are not trained on, nor any copy of theirs."""
    held_out_samples: int
    by_domain: Counter[str]
    """Samples that gave documents, by domain."""
    changed: Counter[str]
    """Examples that were cut into pieces, by reason."""
    dropped: Counter[str]
    """Examples, or tokens, that are not trained on, by reason."""


def prepare_stage(
    stage: DocumentStage,
    mixture: Mixture,
    chat: ChatFormat,
    tokenizer: Any,
    folder: Path,
    data_root: Path | None,
    seed: int,
    workers: int = 1,
    progress: ProgressFn = no_progress,
) -> Prepared:
    """The stage's mixture, with budgets taught, as a prepared set beside the stage's ``folder``.

    Of several processes that train together the first prepares, and the others wait for it. Raises as
    :func:`data_recipes.prepared.prepare` does.
    """
    beside, taught = folder.with_name(f"{folder.name}.prepared"), _teaching(stage, tokenizer)
    if os.environ.get("RANK", "0") == "0":
        return prepared.prepare(mixture, chat, tokenizer, beside, data_root, seed, taught, workers, progress)
    made_from = prepared.origin(mixture, chat, tokenizer, data_root, seed, taught)
    while (found := prepared.find(beside, made_from)) is None:
        time.sleep(0.5)
    return found


def sft_data(stage: DocumentStage, data: Prepared, seed: int, held_out_longest: int | None = None) -> SFTData:
    """The documents of a stage: what its limit of length leaves of the examples, some of them held out, those of at
    most ``held_out_longest`` tokens (the stage's limit by default).

    Raises:
        DataError: an example has nothing to train on, or is too long and ``over_long`` is "error"; the first few are
            named.
    """
    training, unseen = hold_out(data.column("sample"), data.column("said"), HELD_OUT, seed)
    longest, over_long = stage.limit
    documents, changed, dropped = within(data, np.flatnonzero(training), longest, over_long)
    held_out, _, _ = within(data, np.flatnonzero(unseen), held_out_longest or longest, "drop")
    _, first = np.unique(data.column("sample")[documents.examples], return_index=True)
    numbers, counts = np.unique(data.column("domain")[documents.examples[first]], return_counts=True)
    names = [data.index["domains"][number] or "unnamed" for number in numbers]
    by_domain = Counter(dict(zip(names, counts.tolist(), strict=True)))
    held_out_samples = len(np.unique(data.column("sample")[unseen]))
    return SFTData(documents, held_out, held_out_samples, by_domain, changed, dropped)


def packed(lengths: ArrayLike, packing: Pack | None, seed: int) -> Packs:
    """The rows of documents of ``lengths`` (N,) tokens: packs, or each alone where a stage does not pack.

    Raises:
        DataError: a document is longer than a pack.
    """
    if packing is None:
        return singly(lengths)
    return pack(lengths, packing.length, seed=seed if packing.strategy == "mixed" else None)


def hold_out(
    samples: NDArray[np.int32], said: NDArray[np.uint64], most: int, seed: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Takes at most ``most`` samples, and at most 2%, out of training: (N,) whether an example is trained on, and
    whether it is held out.

    Every further copy of a held-out sample (a source seen for several epochs) leaves training too.

    Args:
        samples: (N,) the number of each example's sample, ascending.
        said: (N,) a hash of the sample's content.
    """
    count = int(samples[-1]) + 1 if len(samples) else 0
    chosen = Random(f"{seed}/held out").sample(range(count), min(most, count // HELD_OUT_SHARE))
    held_out = np.isin(samples, chosen)
    return ~np.isin(said, np.unique(said[held_out])), held_out


def within(
    data: Prepared, examples: NDArray[np.int64], longest: int | None, over_long: Literal["error", "drop", "split"]
) -> tuple[Documents, Counter[str], Counter[str]]:
    """Examples as documents of at most ``longest`` tokens; what was changed and what was dropped, by reason.

    Args:
        over_long: what happens to longer ones; ``split`` cuts at turns, see :func:`models.packing.turn_pieces`.

    Raises:
        DataError: as :func:`sft_data`.
    """
    lengths, trained = data.column("length")[examples], data.column("trained")[examples]
    changed: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    if not trained.all():
        fault = "without a token to train on (an all-zero loss mask)"
        raise DataError(_listed(data, examples[trained == 0], fault))
    long = np.flatnonzero(lengths > longest) if longest is not None else np.empty(0, np.int64)
    if len(long) and over_long == "error":
        fault = f"longer than {longest} tokens; raise the length or set over_long"
        raise DataError(_listed(data, examples[long], fault, tokens=True))
    pieces = np.ones(len(examples), np.int64)
    pieces[long] = 0
    cut: list[tuple[int, int, int]] = []
    for place in long.tolist() if over_long == "split" else []:
        assert longest is not None
        _, mask = data.tokens(int(examples[place]))
        found = turn_pieces(mask, longest)
        pieces[place] = len(found)
        cut += [(start, stop - start, int(mask[start:stop].sum())) for start, stop in found]
        changed["over-long, split at turns"] += bool(found)
        lost = int(lengths[place]) - sum(stop - start for start, stop in found)
        dropped["over-long, tokens that fit into no piece"] += lost if found else 0
    dropped["over-long"] = int((pieces == 0).sum())
    origin = np.repeat(np.arange(len(examples)), pieces)
    starts = np.zeros(len(origin), np.int32)
    lengths, trained = lengths[origin].astype(np.int64), trained[origin]
    if cut:
        of_long = np.isin(origin, long)
        starts[of_long], lengths[of_long], trained[of_long] = zip(*cut, strict=True)
    documents = Documents(data.tokens, examples[origin].astype(np.int32), starts, lengths, trained)
    return documents, +changed, +dropped


def runs(ids: NDArray[np.int32], trained: NDArray[np.bool_], tokenizer: Any) -> list[dict[str, Any]]:
    """A document as text, in runs of trained and untrained tokens, for people to read."""
    cuts = [0, *(np.flatnonzero(np.diff(trained.astype(np.int8))) + 1).tolist(), len(ids)]
    return [
        {"text": tokenizer.decode(ids[start:stop].tolist()), "trained": bool(trained[start])}
        for start, stop in pairwise(cuts)
        if stop > start
    ]


def prompt_and_answer(pieces: Sequence[dict[str, Any]], chat: ChatFormat) -> dict[str, str]:
    """The last prompt, the thinking and the answer in a document's :func:`runs`."""
    context = (i for i, each in enumerate(pieces) if not each["trained"] and each["text"] != chat.think_close)
    last = max(context, default=-1)
    prompt = pieces[last]["text"] if last >= 0 else ""
    completion = "".join(each["text"] for each in pieces[last + 1 :])
    message = chat.parse(completion, thinking=prompt.rstrip().endswith(chat.think_open))
    return {"prompt": prompt, "thinking": message.reasoning or "", "answer": message.content}


def progress_log(log: StageLog) -> ProgressFn:
    """Progress as rows of a stage's metrics, where it takes longer than some seconds."""
    last = time.monotonic()

    def progress(doing: str, done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_EVERY_S:
            last = time.monotonic()
            log.metrics(done, total, phase=doing)

    return progress


def _teaching(stage: DocumentStage, tokenizer: Any) -> Teaching | None:
    """None where the stage leaves its samples as they are."""
    make = partial(teaching, stage.strip_reasoning, stage.truncate_reasoning, tokenizer)
    settings = stage.model_dump(mode="json", include={"strip_reasoning", "truncate_reasoning"})
    taught = stage.strip_reasoning > 0 or stage.truncate_reasoning is not None
    return Teaching(make, {**settings, "code": source_hash("budget_control")}) if taught else None


def _listed(data: Prepared, examples: NDArray[np.int64], fault: str, tokens: bool = False) -> str:
    names = []
    for example in examples[:LISTED].tolist():
        metadata = data.metadata(example)
        count = f" ({data.column('length')[example]} tokens)" if tokens else ""
        names.append(f"{metadata['row']} of {metadata['source']}{count}")
    more = f" and {len(examples) - LISTED} more" if len(examples) > LISTED else ""
    return f"{names[0].split(' ')[0]}: {len(examples)} samples {fault}: {', '.join(names)}{more}"
