"""Measures whether documents that share a batch influence each other, and stops training where they do.

No list of versions and kernels tells which combination leaks: documents are run in their batch and alone, and their
tokens' log-probabilities (and gradients, on request) are compared. A leak shows as tenths of a nat right after a
document's start; rounding stays far below in fp32, and is measured on the same documents in bf16.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nanoalign.common.errors import IsolationError
from nanoalign.models import fp8
from nanoalign.models.loss import product_dtype
from nanoalign.models.packed_attention import packed_inputs

TOLERANCES = {
    (torch.float32, "cpu"): (1e-3, 5e-5),
    (torch.float32, "cuda"): (2e-2, 1e-3),
    (torch.float64, "cpu"): (1e-8, 1e-9),
    (torch.float64, "cuda"): (1e-8, 1e-9),
}
"""Largest and mean difference in nats that rounding may explain (SmolLM2-135M in fp32: 4e-5 and 3e-6; a hybrid on a
scan whose products round to TF32, as mamba-ssm's: 3e-3 and 3e-5). Of other dtypes it is measured: :func:`_rounding`."""
UNMOVED, DEEP = 1e-3, 10
"""What neighbours may sway where the shapes are the same, so that rounding is too; and how far a tolerance may then be
exceeded. (The 9B hybrid with random weights in bf16: 0.09 and 0.017 on average, documents' starts equal to the bit.)"""
START, LOGITS = 8, 2**28
"""Tokens after a document's start that are always compared, and logits held at once (1 GiB in fp32)."""


@dataclass(frozen=True)
class Document:
    """Where one document is in a batch: ``input_ids[row, start:end]``."""

    row: int
    start: int
    end: int


@dataclass(frozen=True)
class IsolationReport:
    """Differences between documents in their batch and alone, in nats of per-token log-probability; and where rounding
    is coarse, between two batches of the same shape in which their neighbours are others."""

    kind: str
    """packed or padded."""
    documents: int
    tokens: int
    """Tokens compared."""
    max_difference: float
    mean_difference: float
    start_difference: float
    """The mean over the first tokens of documents alone, where a leak is strongest."""
    worst: tuple[int, int]
    """Document and token where the largest difference is."""
    tolerance: tuple[float, float]
    """What max_difference, and mean_difference and start_difference, may be for this dtype."""
    neighbour_difference: float | None = None
    """The largest difference that other tokens in the neighbours made; None where TOLERANCES say what rounding is."""
    gradient_difference: float | None = None
    """Norm of the gradients' difference over the gradients' norm, all parameters together; None if not measured."""

    @property
    def isolated(self) -> bool:
        most, mean = self.tolerance
        within = self.max_difference <= most and max(self.mean_difference, self.start_difference) <= mean
        if self.neighbour_difference is None or within:
            return within
        # rounding grows with depth, and a document in a pack meets other blocks of a scan than alone
        return self.neighbour_difference <= UNMOVED and self.max_difference <= DEEP * most

    def __str__(self) -> str:
        (document, token), (most, mean) = self.worst, self.tolerance
        swayed = self.neighbour_difference
        return (
            f"{self.kind} against alone, {self.documents} documents, {self.tokens} tokens: log-probabilities differ "
            f"by {self.max_difference:.2e} at most (token {token} of document {document}; {most:.0e} allowed), by "
            f"{self.mean_difference:.2e} on average and {self.start_difference:.2e} at documents' starts "
            f"({mean:.0e} allowed)" + ("" if swayed is None else f"; neighbours sway {swayed:.0e} at most")
        )


def check_isolation(
    model: PreTrainedModel, documents: Sequence[Sequence[int]], padded: bool = False, gradients: bool = False
) -> IsolationReport:
    """Packs documents of token ids (or left-pads them to one length) and compares with each alone."""
    device = model.device
    if padded:
        length = max(map(len, documents))
        filler = model.config.pad_token_id or 0
        rows = [[filler] * (length - len(document)) + list(document) for document in documents]
        mask = [[0] * (length - len(document)) + [1] * len(document) for document in documents]
        batch = {
            "input_ids": torch.tensor(rows, device=device),
            "attention_mask": torch.tensor(mask, device=device),
            "use_cache": False,
        }
    else:
        flat = [token for document in documents for token in document]
        batch = {"input_ids": torch.tensor([flat], device=device)}
        batch |= packed_inputs([len(document) for document in documents], device=device)
    return measure_leaks(model, batch, gradients=gradients)


def require_isolation(model: PreTrainedModel, batch: Mapping[str, Any]) -> IsolationReport:
    """Compares a real batch, packed or padded, with its documents alone; labels in it are ignored.

    Raises:
        IsolationError: they differ by more than rounding in the model's dtype explains. The message has the figures.
    """
    report = measure_leaks(model, {key: value for key, value in batch.items() if key != "labels"})
    if not report.isolated:
        raise IsolationError(
            f"documents influence each other: {report}. Load the model through models.loading.load_model, or train "
            "without packing"
        )
    return report


def measure_leaks(
    model: PreTrainedModel, batch: Mapping[str, Any], gradients: bool = False, most: int = 64
) -> IsolationReport:
    """Runs ``batch`` as it is, then up to ``most`` of its documents alone, in the model's mode (dropout switched off).

    Compared are the tokens after each document's start and an even sample of the rest, so that a vocabulary of
    131,072 at 131,072 tokens fits in memory.
    """
    ids = batch["input_ids"]
    found = everything = documents_of(batch)
    if len(found) > most and not gradients:
        found = [found[index * (len(found) - 1) // (most - 1)] for index in range(most)]
    budget = max(1, LOGITS // model.config.vocab_size // (len(found) * ids.shape[0]))
    chosen = [_sample(document, budget) for document in found]
    if not any(map(len, chosen)):
        raise IsolationError("every document of the batch has one token: there is nothing to compare")
    with _without_dropout(model), torch.set_grad_enabled(gradients):
        together = _logprobs(model, batch, found, chosen, gradients)
        grads = _gradients(model, together) if gradients else None
        unpacked = _unpacked(model, ids, found, chosen, gradients)
        difference = None if grads is None else relative_difference(grads, _gradients(model, unpacked))
    fixed = TOLERANCES.get((product_dtype(model), ids.device.type))
    tolerance = fixed or _rounding(model, ids, found, chosen, unpacked)
    swayed = None if fixed else _neighbours(model, batch, everything, dict(zip(found, zip(chosen, together))))
    gaps = [(a.detach() - b.detach()).abs() for a, b in zip(together, unpacked)]
    worst = max(range(len(gaps)), key=lambda index: float(gaps[index].max()) if gaps[index].numel() else -1.0)
    flat = torch.cat(gaps)
    return IsolationReport(
        kind="padded" if _padding(batch) is not None else "packed",
        documents=len(found),
        tokens=flat.numel(),
        max_difference=float(flat.max()),
        mean_difference=float(flat.mean()),
        start_difference=float(torch.cat([gap[:START] for gap in gaps]).mean()),
        worst=(worst, int(chosen[worst][int(gaps[worst].argmax())]) + 1),
        tolerance=tolerance,
        neighbour_difference=swayed,
        gradient_difference=difference,
    )


def documents_of(batch: Mapping[str, Any]) -> list[Document]:
    """The documents of a batch: by padding in attention_mask, else seq_idx, restarts in position_ids, or rows."""
    rows, length = batch["input_ids"].shape
    mask = _padding(batch)
    if mask is not None:
        labels = mask.long().cpu()
    elif batch.get("seq_idx") is not None:
        labels = batch["seq_idx"].long().cpu() + 1
    elif batch.get("position_ids") is not None:
        positions = batch["position_ids"].cpu()
        labels = torch.nn.functional.pad((positions[:, 1:] != positions[:, :-1] + 1).cumsum(1), (1, 0)) + 1
    else:
        labels = torch.ones(1, length, dtype=torch.int64)
    found = []
    for row, values in enumerate(labels.expand(rows, -1)):
        cuts = [0, *((values[1:] != values[:-1]).nonzero().flatten() + 1).tolist(), length]
        found += [Document(row, a, b) for a, b in pairwise(cuts) if values[a] != 0]
    return found


def _padding(batch: Mapping[str, Any]) -> Tensor | None:
    mask = batch.get("attention_mask")
    return mask if mask is not None and not bool(mask.all()) else None


def _sample(document: Document, budget: int) -> Tensor:
    """Positions within the document whose next token is compared: its start, and an even sample of the rest."""
    length = document.end - document.start - 1
    if length <= budget:
        return torch.arange(length)
    start = torch.arange(min(START, budget))
    rest = torch.linspace(len(start), length - 1, max(0, budget - len(start))).long()
    return torch.cat([start, rest]).unique()


def _logprobs(
    model: PreTrainedModel,
    batch: Mapping[str, Any],
    documents: Sequence[Document],
    places: Sequence[Tensor],
    keep_graph: bool,
) -> list[Tensor]:
    """The log-probability of the next token at each document's places, one tensor for each document."""
    ids = batch["input_ids"]
    columns = torch.cat([document.start + at for document, at in zip(documents, places)]).unique().to(ids.device)
    if not len(columns):
        return [torch.zeros(0, device=ids.device) for _ in documents]
    logits = model(**batch, logits_to_keep=columns).logits
    found = []
    for document, at in zip(documents, places):
        where = document.start + at.to(ids.device)
        rows = logits[document.row, torch.searchsorted(columns, where)].float()
        found.append(rows.log_softmax(-1).gather(1, ids[document.row, where + 1].unsqueeze(1)).squeeze(1))
    return found if keep_graph else [values.detach() for values in found]


def _unpacked(
    model: PreTrainedModel,
    ids: Tensor,
    documents: Sequence[Document],
    places: Sequence[Tensor],
    keep_graph: bool = False,
    appended: int = 0,
) -> list[Tensor]:
    """As :func:`_logprobs`, each document in a batch of its own, followed by ``appended`` of its tokens once more."""
    found = []
    for document, at in zip(documents, places):
        tokens = ids[document.row : document.row + 1, document.start : document.end]
        single = {"input_ids": torch.cat([tokens, tokens[:, :appended]], dim=1), "use_cache": False}
        found += _logprobs(model, single, [Document(0, 0, tokens.shape[1])], [at], keep_graph)
    return found


@torch.no_grad()
def _rounding(
    model: PreTrainedModel,
    ids: Tensor,
    documents: Sequence[Document],
    places: Sequence[Tensor],
    unpacked: Sequence[Tensor],
) -> tuple[float, float]:
    """What rounding may explain here: documents alone against the same with tokens after them.

    What follows cannot change what came before in a causal model; only the shapes of the products differ. Under
    autocast over fp32 weights the documents alone in full precision are a second measure: packed attention runs in
    another kernel, whose rounding is as large as autocast's own. So are the documents alone without FP8, where layers
    multiply in it: it rounds to four bits what the kernels' last bits sway. Returns a few times the largest and the
    mean difference so found, of all tokens or of documents' starts (whose wide choice rounds worst), and at least what
    bf16 shows anywhere.
    """
    with _without_dropout(model):
        others = [_unpacked(model, ids, documents, places, appended=512)]
        if model.dtype == torch.float32:
            with full_precision(model):
                others.append(_unpacked(model, ids, documents, places))
        elif any(isinstance(module, fp8.Fp8Linear) for module in model.modules()):
            with fp8.disabled():
                others.append(_unpacked(model, ids, documents, places))
    noise = [(a.detach() - b).abs() for other in others for a, b in zip(unpacked, other)]
    mean = max(float(torch.cat(gaps).mean()) for gaps in (noise, [gap[:START] for gap in noise]))
    return max(0.05, 6 * float(torch.cat(noise).max())), max(2e-3, 5 * mean)


@torch.no_grad()
def _neighbours(
    model: PreTrainedModel,
    batch: Mapping[str, Any],
    everything: Sequence[Document],
    compared: Mapping[Document, tuple[Tensor, Tensor]],
) -> float:
    """The largest difference that it makes to documents when every other one's tokens are replaced; ``compared`` has
    their places and log-probabilities. Looked at whatever else was found: processes that share out weights do alike."""
    ids, largest = batch["input_ids"], 0.0
    with _without_dropout(model):
        for replaced in (0, 1):
            others = ids.clone()
            for document in everything[replaced::2]:
                here = (document.row, slice(document.start, document.end))
                others[here] = (ids[here] + 1) % model.config.vocab_size
            kept = [document for document in everything[1 - replaced :: 2] if document in compared]
            places, before = [compared[each][0] for each in kept], [compared[each][1] for each in kept]
            found = _logprobs(model, {**batch, "input_ids": others}, kept, places, False) if kept else []
            gaps = [(a - b.detach()).abs() for a, b in zip(found, before)]
            largest = max([largest, *(float(gap.max()) for gap in gaps if gap.numel())])
    return largest


def _gradients(model: nn.Module, logprobs: Sequence[Tensor]) -> list[Tensor]:
    """The mean log-probability's gradient; zeros for a parameter that it does not reach."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    grads = torch.autograd.grad(torch.cat(list(logprobs)).mean(), weights, allow_unused=True)
    return [torch.zeros_like(weight) if grad is None else grad for weight, grad in zip(weights, grads)]


def relative_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm of ``second``, all tensors together."""
    difference = sum(float((a - b).double().square().sum()) for a, b in zip(first, second))
    return (difference / max(1e-30, sum(float(b.double().square().sum()) for b in second))) ** 0.5


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """The model in its weights' own dtype: autocast off, and accelerate's around ``forward`` taken off; no FP8."""
    wrapped, original = model.__dict__.get("forward"), getattr(model, "_original_forward", None)
    if original is not None:
        model.forward = original
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False), fp8.disabled():
            yield
    finally:
        if original is not None:
            model.forward = wrapped


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Keeps the model's mode, which may choose its kernels, unless dropout is on: then eval mode for a while."""
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    drops |= any(getattr(module, "attention_dropout", 0) for module in model.modules())
    training = model.training
    if drops:
        model.eval()
    try:
        yield
    finally:
        model.train(training)
