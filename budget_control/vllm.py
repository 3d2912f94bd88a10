"""The budget rule inside vLLM: a V1 custom logits processor (vLLM 0.24 to 0.31).

    LLM(model, logits_processors=[ThinkingBudget], ...)                        # or "budget_control.vllm:ThinkingBudget"
    SamplingParams(..., extra_args={"thinking_budget": 512, "grace": 500})     # grace may be left out
    {"prompt": ..., "vllm_xargs": {"thinking_budget": 512}}                    # over HTTP

Tags other than ``<think>`` come in through ``additional_config={"thinking_tags": ["<think>", "</think>"]}``.

Prefix caching, chunked prefill, preemption and asynchronous scheduling are all right: a row's state is a function of
its prompt and of the output tokens that vLLM keeps for it, read when logits are there to be changed. Speculative
decoding draws several tokens between two looks at the logits; it is refused. vLLM's second model runner, which some
versions choose by default on GPUs, has another interface and refuses this one: set VLLM_USE_V2_MODEL_RUNNER=0.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from budget_control.batch import BatchBudget
from budget_control.logits import force_tokens_, hand_over_stop_
from budget_control.rule import BudgetRule, check_budget
from budget_control.vocabulary import ThinkingTokens
from common.errors import ConfigError

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

DEFAULT_GRACE = 500


def request_budget(params: "SamplingParams") -> tuple[int, int] | None:
    """A request's (budget, grace), None where it is unlimited. Raises ConfigError (a ValueError, thus HTTP 400) where a
    value is no count of tokens. Whole floats pass: JSON knows no integers."""
    arguments = params.extra_args or {}
    limits: list[Any] = [arguments.get("thinking_budget"), arguments.get("grace", DEFAULT_GRACE)]
    budget, grace = (int(value) if isinstance(value, float) and value.is_integer() else value for value in limits)
    check_budget(budget, grace)
    return None if budget is None else (budget, grace)


class ThinkingBudget(LogitsProcessor):
    """Keeps a :class:`BatchBudget` in step with vLLM's persistent batch and edits the rows that it binds."""

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        request_budget(sampling_params)

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        if vllm_config.speculative_config is not None:
            raise ConfigError("thinking budgets do not work with speculative decoding: several tokens a step are drawn")
        self.device, self.pin = device, is_pin_memory and torch.device(device).type == "cuda"
        rows = vllm_config.scheduler_config.max_num_seqs
        self.batch = BatchBudget(_thinking_tokens(vllm_config), rows)
        self.outputs: dict[int, list[int]] = {}
        """Output tokens of the budgeted rows, as vLLM extends them."""
        self.seen = np.zeros(rows, dtype=np.int64)
        """How many of them the row's state has taken in."""
        self._rows = np.zeros(0, dtype=np.int64)
        """The rows of ``outputs``, in its order."""
        self.stop_ids: dict[int, tuple[int, ...]] = {}
        self._guard_key: tuple[bytes, bytes] = (b"", b"")
        self._guard: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows removals, additions and moves of rows. Output tokens are read in :meth:`apply`: under asynchronous
        scheduling the latest one is not known before."""
        if batch_update is None:
            return
        self._guard_key = (b"", b"")
        for row in batch_update.removed:
            self._drop(row)
        for row, params, prompt_ids, output_ids in batch_update.added:
            self._drop(row)
            limits = request_budget(params)
            if limits is None:
                continue
            if prompt_ids is None:
                raise ConfigError("thinking budgets need prompts as tokens, not as embeddings")
            rule = BudgetRule(self.batch.tokens, *limits)
            self.batch.put(row, rule, rule.start(prompt_ids))
            self.outputs[row], self.seen[row] = output_ids, 0
            self.stop_ids[row] = () if params.ignore_eos else tuple(sorted(params.all_stop_token_ids))
        for first, second, direction in batch_update.moved:
            self._move(first, second, swap=direction == MoveDirectionality.SWAP)
        self._rows = np.array(list(self.outputs), dtype=np.int64)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """``logits`` [B, V], edited in place."""
        if not self.outputs:
            return logits
        self._catch_up()
        forced = self.batch.forced()
        self._hand_over_stops(logits, forced)
        rows = np.flatnonzero(forced >= 0)
        if len(rows):
            force_tokens_(logits, self._to_device(rows), self._to_device(forced[rows]))
        return logits

    def _catch_up(self) -> None:
        """Takes in the tokens written since the last look: one a row, more for a row that came back from preemption."""
        lists = list(self.outputs.values())
        lag = np.fromiter(map(len, lists), np.int64, len(lists)) - self.seen[self._rows]
        if lag.min() < 0:
            raise RuntimeError("vLLM took tokens back: thinking budgets cannot be kept")
        for back in range(int(lag.max()), 0, -1):
            behind = np.flatnonzero(lag >= back)
            written = np.array([lists[place][-back] for place in behind.tolist()])
            if written.min() < 0:
                raise RuntimeError("vLLM did not fill in the tokens of the last step: thinking budgets cannot be kept")
            self.batch.advance(written, self._rows[behind])
        self.seen[self._rows] += lag

    def _hand_over_stops(self, logits: torch.Tensor, forced: np.ndarray) -> None:
        """Guarded rows change seldom: their indices stay on the device from step to step."""
        guarded, due = self.batch.guarded() & (forced < 0), self.batch.due()
        key = (guarded.tobytes(), due.tobytes())
        if key != self._guard_key:
            self._guard_key = key
            rows = [row for row in np.flatnonzero(guarded).tolist() if self.stop_ids[row]]
            most = max((len(self.stop_ids[row]) for row in rows), default=0)
            padded = [self.stop_ids[row] + self.stop_ids[row][:1] * (most - len(self.stop_ids[row])) for row in rows]
            index = np.array(rows, dtype=np.int64)
            self._guard = (
                None
                if not rows
                else (self._to_device(index), self._to_device(np.array(padded)), self._to_device(due[index]))
            )
        if self._guard is not None:
            hand_over_stop_(logits, *self._guard)

    def _drop(self, row: int) -> None:
        self.outputs.pop(row, None)
        self.stop_ids.pop(row, None)
        rule = BudgetRule(self.batch.tokens, None)
        self.batch.put(row, rule, rule.start(()))

    def _move(self, first: int, second: int, swap: bool) -> None:
        order = np.arange(len(self.batch.place))
        order[[first, second]] = [second, first]
        self.batch.take(order)
        self.seen = self.seen[order]
        _swap(self.outputs, first, second)
        _swap(self.stop_ids, first, second)
        if not swap:
            self._drop(first)

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.pin else tensor.to(self.device)


def _swap(table: dict[int, Any], first: int, second: int) -> None:
    values = {second: table.pop(first, None), first: table.pop(second, None)}
    table.update({row: value for row, value in values.items() if value is not None})


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
