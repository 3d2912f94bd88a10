"""The rollout engine in process: batched sampling with any Hugging Face causal LM, on CPU or GPU.

The loop: prefill distinct prompts (left-padded), then token by token for all live rows; finished rows leave the batch,
waiting requests take their place. Sampling settings and random numbers belong to the row, not to the batch.

Shapes: B live rows, C columns of the cache, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from nanoalign.budget_control.batch import BatchBudget
from nanoalign.budget_control.rule import BudgetRule
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import CheckpointError, ConfigError
from nanoalign.models.loading import load_model
from nanoalign.rollouts.attention import decoding_attention
from nanoalign.rollouts.base import Completion, Done, Opening, Request
from nanoalign.rollouts.cache import extend_rows, new_cache, take_rows
from nanoalign.rollouts.engines import HFSettings
from nanoalign.rollouts.sampler import sample_tokens
from nanoalign.rollouts.seeds import uniform

COMPACT = 8
"""Finished rows leave the batch when they are one in this many: copying the cache costs about as much as a token."""

REFILL = 4
"""Waiting requests enter when this share of the batch is free: each prefill interrupts the decoding of all."""


@dataclass
class _Row:
    """One completion in progress."""

    index: int
    request: Request
    start: int
    """Column of the cache in which its prompt starts; those before are padding."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None

    def completion(self) -> Completion:
        assert self.finish is not None
        return Completion(tuple(self.token_ids), tuple(self.logprobs), tuple(self.forced), self.finish)


@dataclass
class _Batch:
    """Live rows and what the model keeps of them. Tensors are [B], or [B, V] for the logits of the next token."""

    rows: list[_Row]
    cache: DynamicCache
    columns: int
    logits_BV: torch.Tensor
    temperature_B: torch.Tensor
    top_p_B: torch.Tensor
    budget: BatchBudget

    def start_budgets(self) -> None:
        """Gives the rows, which have not written anything yet, their budgets."""
        for place, row in enumerate(self.rows):
            sampling = row.request.sampling
            rule = BudgetRule(self.budget.tokens, sampling.thinking_budget, sampling.grace)
            self.budget.put(place, rule, rule.start(row.request.prompt_ids))

    def extend(self, other: "_Batch") -> None:
        """Appends rows that were just prefilled."""
        columns = max(self.columns, other.columns)
        for part in (self, other):
            for row in part.rows:
                row.start += columns - part.columns
        extend_rows(self.cache, other.cache)
        self.budget.extend(other.budget)
        self.rows, self.columns = self.rows + other.rows, columns
        self.logits_BV = torch.cat([self.logits_BV, other.logits_BV])
        self.temperature_B = torch.cat([self.temperature_B, other.temperature_B])
        self.top_p_B = torch.cat([self.top_p_B, other.top_p_B])

    def compact(self) -> None:
        """Drops finished rows, and columns that hold nothing but padding then."""
        kept = [place for place, row in enumerate(self.rows) if row.finish is None]
        self.rows = [self.rows[place] for place in kept]
        first_column = min((row.start for row in self.rows), default=0)
        for row in self.rows:
            row.start -= first_column
        self.columns -= first_column
        index_B = torch.tensor(kept, device=self.logits_BV.device)
        take_rows(self.cache, index_B, first_column)
        self.logits_BV = self.logits_BV[index_B]
        self.temperature_B, self.top_p_B = self.temperature_B[index_B], self.top_p_B[index_B]
        self.budget.take(kept)


def open_hf(settings: HFSettings, opening: Opening) -> "HFEngine":
    """An engine around a live model, or around the one of a folder."""
    model, autocast = opening.model, None
    if isinstance(model, str | Path):
        model = load_model(str(model), dtype=opening.dtype, device=opening.device)
    elif opening.dtype == "bfloat16" and model.device.type == "cuda":
        autocast = torch.bfloat16
    return HFEngine(model, opening.thinking, batch_size=opening.batch_size, autocast=autocast)


class HFEngine:
    """A :class:`rollouts.base.RolloutEngine` around a live model.

    Around the trainer's own model its weights are fresh by construction. ``autocast`` is the dtype in which a model
    with fp32 master weights runs on a GPU (None: as it is).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        thinking: ThinkingTokens,
        *,
        batch_size: int = 64,
        autocast: torch.dtype | None = None,
    ) -> None:
        new_cache(model.config)  # refuses architectures that cannot be decoded here before any work is done
        self.model, self.thinking = model, thinking
        self.batch_size, self.autocast = batch_size, autocast
        self.device = model.device
        self.max_length: int | None = None
        self.lost = 0

    def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        """One completion per request, in order; ``done`` is told of each as it ends.

        Raises:
            ConfigError: an empty prompt, or sampling settings out of range.
        """
        for request in requests:
            _check(request)
        completions: list[Completion | None] = [None] * len(requests)
        waiting = list(range(len(requests)))[::-1]
        batch: _Batch | None = None
        with self._inference():
            while waiting or batch is not None:
                free = self.batch_size - (0 if batch is None else len(batch.rows))
                if waiting and free >= min(len(waiting), max(1, self.batch_size // REFILL)):
                    taken = [waiting.pop() for _ in range(min(len(waiting), free))]
                    new = self._prefill([(index, requests[index]) for index in taken])
                    if batch is None:
                        batch = new
                    else:
                        batch.extend(new)
                assert batch is not None
                self._step(batch)
                finished = [row for row in batch.rows if row.finish is not None]
                for row in finished:
                    if completions[row.index] is None:
                        completions[row.index] = ended = row.completion()
                        if done is not None:
                            done(row.index, ended)
                if len(finished) == len(batch.rows):
                    batch = None
                    continue
                if len(finished) * COMPACT >= len(batch.rows):
                    batch.compact()
                self._feed(batch)
        return [completion for completion in completions if completion is not None]

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copies tensors into the model's parameters of the same name; those that are the model's own cost nothing.

        Raises:
            CheckpointError: a name or a shape that the model does not have.
        """
        own = self.model.state_dict()
        with torch.no_grad():
            for name, tensor in tensors:
                if name not in own or own[name].shape != tensor.shape:
                    expected = tuple(own[name].shape) if name in own else "no such tensor"
                    raise CheckpointError(f"weight update: {name} of shape {tuple(tensor.shape)}, expected {expected}")
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of every token but the first, by a forward pass without cache."""
        scores: list[list[float]] = [[] for _ in sequences]
        by_length = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        with self._inference():
            for first in range(0, len(by_length), self.batch_size):
                chunk = by_length[first : first + self.batch_size]
                longest = len(sequences[chunk[-1]])
                # Padding on the right needs no mask: nothing before it can see it.
                ids_BT = torch.tensor(
                    [[*sequences[index], *[0] * (longest - len(sequences[index]))] for index in chunk],
                    device=self.device,
                )
                logits_BTV = self.model(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()
                target_BT1 = ids_BT[:, 1:, None]
                logprobs_BT = logits_BTV.gather(-1, target_BT1).squeeze(-1) - torch.logsumexp(logits_BTV, dim=-1)
                for index, row in zip(chunk, logprobs_BT.tolist(), strict=True):
                    scores[index] = row[: max(0, len(sequences[index]) - 1)]
        return scores

    def sleep(self) -> None:
        """Nothing is held beyond the model."""

    def close(self) -> None:
        """Nothing is held beyond the model."""

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients, no dropout, no checkpointing, the chosen dtype; the model's mode is restored after."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self._precision(), decoding_attention(self.model):
                yield
        finally:
            self.model.train(training)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Autocast, but for the head: bfloat16 rounds a logit of 20 by up to 0.06."""
        head = self.model.get_output_embeddings()
        if self.autocast is None or type(head) is not nn.Linear:
            yield
            return

        def in_float32(hidden: torch.Tensor) -> torch.Tensor:
            with torch.autocast(hidden.device.type, enabled=False):
                return F.linear(hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())

        head.forward = in_float32
        try:
            with torch.autocast(self.device.type, self.autocast):
                yield
        finally:
            del head.forward

    def _prefill(self, requests: Sequence[tuple[int, Request]]) -> _Batch:
        """Rows for these requests with their prompts in the cache; a repeated prompt is computed once."""
        prompts = list(dict.fromkeys(request.prompt_ids for _, request in requests))
        columns = max(len(prompt) for prompt in prompts)
        ids_PC = torch.tensor([[0] * (columns - len(prompt)) + list(prompt) for prompt in prompts], device=self.device)
        start_P = torch.tensor([columns - len(prompt) for prompt in prompts], device=self.device)
        offset_C = torch.arange(columns, device=self.device)
        mask_PC = offset_C >= start_P[:, None]
        cache = new_cache(self.model.config)
        logits_PV = self.model(
            input_ids=ids_PC,
            attention_mask=mask_PC.long(),
            position_ids=(offset_C - start_P[:, None]).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        order = {prompt: place for place, prompt in enumerate(prompts)}
        prompt_of_row = [order[request.prompt_ids] for _, request in requests]
        index_B = torch.tensor(prompt_of_row, device=self.device)
        if prompt_of_row != list(range(len(prompts))):
            take_rows(cache, index_B, 0)
        batch = _Batch(
            rows=[_Row(index, request, columns - len(request.prompt_ids)) for index, request in requests],
            cache=cache,
            columns=columns,
            logits_BV=logits_PV.float()[index_B],
            temperature_B=torch.tensor([request.sampling.temperature for _, request in requests], device=self.device),
            top_p_B=torch.tensor([request.sampling.top_p for _, request in requests], device=self.device),
            budget=BatchBudget(self.thinking, len(requests)),
        )
        batch.start_budgets()
        return batch

    def _step(self, batch: _Batch) -> None:
        """Draws and writes the next token of every row."""
        uniform_B = torch.tensor(
            [uniform(row.request.sampling.seed, len(row.token_ids)) for row in batch.rows],
            dtype=torch.float64,
            device=self.device,
        )
        drawn_B, normalizer_B = sample_tokens(batch.logits_BV, batch.temperature_B, batch.top_p_B, uniform_B)
        written_B, forced_B = batch.budget.force(drawn_B.cpu().numpy())
        written_B1 = torch.from_numpy(np.ascontiguousarray(written_B)).to(self.device)[:, None]
        logprobs_B = batch.logits_BV.gather(-1, written_B1).squeeze(-1) - normalizer_B
        for row, token, logprob, forced in zip(
            batch.rows, written_B.tolist(), logprobs_B.tolist(), forced_B.tolist(), strict=True
        ):
            if row.finish is None:
                row.token_ids.append(token)
                row.logprobs.append(logprob)
                row.forced.append(forced)
                if token in self.thinking.stop_ids:
                    row.finish = "stop"
                elif len(row.token_ids) >= row.request.sampling.max_tokens:
                    row.finish = "length"

    def _feed(self, batch: _Batch) -> None:
        """Runs the model over the last token of every row."""
        last = [row.token_ids[-1] for row in batch.rows]
        start_B = torch.tensor([row.start for row in batch.rows], device=self.device)
        columns = torch.arange(batch.columns + 1, device=self.device)
        batch.logits_BV = self.model(
            input_ids=torch.tensor(last, device=self.device)[:, None],
            attention_mask=(columns >= start_B[:, None]).long(),
            position_ids=(batch.columns - start_B)[:, None],
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1].float()  # fmt: skip
        batch.columns += 1


def _check(request: Request) -> None:
    sampling = request.sampling
    if not request.prompt_ids:
        raise ConfigError("rollout: a prompt without tokens")
    if sampling.max_tokens < 1 or sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
        raise ConfigError(f"rollout: sampling settings out of range: {sampling}")
