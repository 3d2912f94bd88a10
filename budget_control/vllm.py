"""The budget rule inside vLLM: a V1 custom logits processor (vLLM 0.24 to 0.31).

    LLM(model, logits_processors=["nanoalign.budget_control.vllm:ThinkingBudget"], ...)
    SamplingParams(..., extra_args={"thinking_budget": 512, "grace": 500})     # grace may be left out
    {"prompt": ..., "vllm_xargs": {"thinking_budget": 512}}                    # over HTTP

A completion that was cut off (before new weights, by a lost server) goes on as a request whose prompt ends with the
tokens written so far; ``"generated": 90`` says that the last 90 are such, and the budget counts on over them.

Tags other than ``<think>`` come in through ``additional_config={"thinking_tags": ["<think>", "</think>"]}``.

Prefix caching, chunked prefill, preemption and asynchronous scheduling are all right: a row's state is a function of
its prompt and of the output tokens that vLLM keeps for it, read when logits are there to be changed. Speculative
decoding draws several tokens between two looks at the logits; it is refused. vLLM's second model runner, which some
versions choose by default on GPUs, has another interface and refuses this one: set VLLM_USE_V2_MODEL_RUNNER=0.
"""

from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from nanoalign.budget_control.batch import BatchBudget
from nanoalign.budget_control.logits import Edits, edit_, plan_edits
from nanoalign.budget_control.rule import BudgetRule, check_budget
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import ConfigError

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

DEFAULT_GRACE = 500


def request_budget(params: "SamplingParams") -> tuple[int, int] | None:
    """A request's (budget, grace), None where it is unlimited. Raises ConfigError (a ValueError, thus HTTP 400) where a
    value is not a token count. Integral floats pass: JSON has no integers."""
    arguments = params.extra_args or {}
    budget, grace = _count(arguments.get("thinking_budget")), _count(arguments.get("grace", DEFAULT_GRACE))
    check_budget(budget, grace)
    return None if budget is None else (budget, grace)


def generated_tokens(params: "SamplingParams") -> int:
    """How many of a prompt's last tokens are the completion's. Raises ConfigError as :func:`request_budget`."""
    generated = _count((params.extra_args or {}).get("generated", 0))
    if isinstance(generated, bool) or not isinstance(generated, int) or generated < 0:
        raise ConfigError(f"generated: expected a number of tokens >= 0, got {generated!r}")
    return generated


def _count(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


LAST = itemgetter(-1)


class ThinkingBudget(LogitsProcessor):
    """Keeps a :class:`BatchBudget` of the requests under a budget in step with vLLM's persistent batch, and edits their
    logits. R is their number, K that of stop tokens per request.

    At 256 concurrent requests of a small model a step of vLLM takes a few milliseconds of Python. So a step here is a
    fixed number of numpy operations over all requests, at most one copy to the device, and no wait for it.
    """

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        request_budget(sampling_params)
        generated_tokens(sampling_params)

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        if vllm_config.speculative_config is not None:
            raise ConfigError("thinking budgets do not work with speculative decoding: a step draws several tokens")
        self.device, self.pin = device, is_pin_memory and torch.device(device).type == "cuda"
        self.batch = BatchBudget(_thinking_tokens(vllm_config), 0)
        self._rules: list[BudgetRule] = []
        """One a request, in the order of ``batch``, as all below."""
        self._outputs: list[list[int]] = []
        """vLLM's own lists of output tokens, which it extends."""
        self.rows = np.zeros(0, dtype=np.int64)
        """Their rows in vLLM's batch."""
        self.seen = np.zeros(0, dtype=np.int64)
        """How many output tokens their states have taken in."""
        self.stops_RK = np.zeros((0, 1), dtype=np.int64)
        """Their stop tokens, the last one repeated; -1 where a request has none."""
        self._edits: Edits | None = None
        self._edits_for = b""
        """The heirs of stop tokens that ``_edits`` is about."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows removals, additions and moves of rows. Output tokens are read in :meth:`apply`: under asynchronous
        scheduling the latest one is not known before."""
        if batch_update is None:
            return
        places = {row: place for place, row in enumerate(self.rows.tolist())}
        before = list(places.items())
        rules, outputs, states, stops = [*self._rules], [*self._outputs], [], []
        for row in batch_update.removed:
            places.pop(row, None)
        for row, params, prompt_ids, output_ids in batch_update.added:
            places.pop(row, None)
            if (limits := request_budget(params)) is None:
                continue
            if prompt_ids is None:
                raise ConfigError("thinking budgets need prompts as tokens, not as embeddings")
            places[row] = len(rules)
            rules.append(BudgetRule(self.batch.tokens, *limits))
            outputs.append(output_ids)
            begun = max(0, len(prompt_ids) - generated_tokens(params))
            states.append(rules[-1].resume(prompt_ids[:begun], prompt_ids[begun:]))
            stops.append(_stop_ids(params) or [-1])
        for first, second, direction in batch_update.moved:
            one, other = places.pop(first, None), places.pop(second, None)
            if one is not None:
                places[second] = one
            if other is not None and direction == MoveDirectionality.SWAP:
                places[first] = other
        if not states and list(places.items()) == before:
            return
        order = np.array(list(places.values()), dtype=np.int64)
        self.rows = np.array(list(places), dtype=np.int64)
        new = BatchBudget(self.batch.tokens, len(states))
        for place, state in enumerate(states):
            new.put(place, rules[len(self._rules) + place], state)
        self.batch.extend(new)
        self.batch.take(order)
        self._rules = [rules[place] for place in order.tolist()]
        self._outputs = [outputs[place] for place in order.tolist()]
        self.seen = np.concatenate([self.seen, np.zeros(len(states), dtype=np.int64)])[order]
        self.stops_RK = _joined(self.stops_RK, stops)[order]
        self._edits = None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """``logits`` [B, V], edited in place where they are contiguous."""
        if not self._rules:
            return logits
        self._catch_up()
        forced_R = self.batch.forced()
        heirs_R = np.where(self.batch.thinking() & (self.stops_RK[:, 0] >= 0), self.batch.due(), -1)
        binding, heirs = forced_R.max() >= 0, heirs_R.tobytes()
        if binding or self._edits is None or self._edits_for != heirs:
            places, sizes = plan_edits(self.rows, forced_R, heirs_R, self.stops_RK, logits.shape[1])
            self._edits, self._edits_for = Edits(*self._to_device(places).split(sizes)), heirs
        logits = logits.contiguous()
        edit_(logits, self._edits)
        if binding:
            self._edits = None  # what is forced holds for this step alone
        return logits

    def _catch_up(self) -> None:
        """Takes in the tokens written since the last look: one per request, none for one whose prompt is not through
        yet, many for one that came back from preemption."""
        lengths = np.fromiter(map(len, self._outputs), np.int64, len(self._outputs))
        lag = lengths - self.seen
        if (lag == 1).all():
            live, newest = None, np.fromiter(map(LAST, self._outputs), np.int64, len(lengths))
        else:
            if lag.min() < 0:
                raise RuntimeError("vLLM took tokens back: thinking budgets cannot be kept")
            for place in np.flatnonzero(lag > 1).tolist():
                self._read(place, self._outputs[place][self.seen[place] : -1])
            live = lag > 0
            newest = np.array([output[-1] if new else 0 for output, new in zip(self._outputs, live)])
        if newest.min() < 0:
            raise RuntimeError("vLLM did not fill in the tokens of the last step: thinking budgets cannot be kept")
        self.batch.advance(newest, live)
        self.seen = lengths

    def _read(self, place: int, token_ids: list[int]) -> None:
        rule, state = self._rules[place], self.batch.state(place)
        for token in token_ids:
            state = rule.advance(state, token)
        self.batch.put(place, rule, state)

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.pin else tensor.to(self.device)


def _stop_ids(params: "SamplingParams") -> list[int]:
    """The tokens that end a request's completion. ``all_stop_token_ids`` holds the end of text even where it is to be
    ignored."""
    return sorted(set(params.stop_token_ids or ()) if params.ignore_eos else params.all_stop_token_ids)


def _joined(stops_RK: np.ndarray, new: list[list[int]]) -> np.ndarray:
    """``stops_RK`` with further rows, as wide as the longest needs."""
    width = max([stops_RK.shape[1], *map(len, new)])
    if width > stops_RK.shape[1]:
        stops_RK = np.pad(stops_RK, ((0, 0), (0, width - stops_RK.shape[1])), mode="edge")
    rows = [ids + ids[-1:] * (width - len(ids)) for ids in new]
    return np.concatenate([stops_RK, np.array(rows, dtype=np.int64).reshape(-1, width)])


def _thinking_tokens(vllm_config: "VllmConfig") -> ThinkingTokens:
    from transformers import AutoTokenizer

    model = vllm_config.model_config
    if model.skip_tokenizer_init:
        raise ConfigError("thinking budgets need the model's tokenizer; do not start vLLM with skip_tokenizer_init")
    tokenizer = AutoTokenizer.from_pretrained(
        model.tokenizer, revision=model.tokenizer_revision, trust_remote_code=model.trust_remote_code
    )
    tags = (vllm_config.additional_config or {}).get("thinking_tags", ("<think>", "</think>"))
    if not (isinstance(tags, list | tuple) and len(tags) == 2 and all(isinstance(tag, str) for tag in tags)):
        raise ConfigError(f"additional_config.thinking_tags: expected two texts, got {tags!r}")
    return ThinkingTokens.from_tokenizer(tokenizer, *tags)
