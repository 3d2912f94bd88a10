"""What vLLM is asked for, and what is written of it so far: a completion may be cut off, and go on elsewhere.

A cut completion (new weights came in, or its server was lost) is asked for again as a prompt that ends with the tokens
written so far. Its budget counts on over them (``generated``, see budget_control/vllm.py), its seed is another one, and
each token keeps the log-probability and the version of the weights that drew it.
"""

from collections.abc import Sequence
from typing import Any, Literal

from nanoalign.budget_control.rule import BudgetRule
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.rollouts.base import Completion, EngineLostError, Request
from nanoalign.rollouts.seeds import derive_seed


class Draft:
    """A completion under way."""

    def __init__(self, request: Request, thinking: ThinkingTokens, keep: bool = True) -> None:
        """Without ``keep`` a completion that was cut off begins anew."""
        self.request, self.thinking, self.keep = request, thinking, keep
        self._forget()

    def _forget(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.stopped: list[bool] = []
        """Where a stop token was the likeliest; kept under a budget only, see BudgetRule.forced_mask."""
        self.versions: list[int | None] = []
        self.finish: Literal["stop", "length"] = "length"

    def body(self) -> dict[str, Any]:
        """The request for the rest."""
        sampling, generated = self.request.sampling, len(self.token_ids)
        body: dict[str, Any] = {
            "prompt": [*self.request.prompt_ids, *self.token_ids],
            "max_tokens": sampling.max_tokens - generated,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": derive_seed(sampling.seed, generated) if generated else sampling.seed,
            "stop_token_ids": sorted(self.thinking.stop_ids),
            "logprobs": 0 if sampling.thinking_budget is None else 1,
        }
        if sampling.thinking_budget is not None:
            budget = {"thinking_budget": sampling.thinking_budget, "grace": sampling.grace}
            body["vllm_xargs"] = budget | ({"generated": generated} if generated else {})
        return body

    def take(self, answer: dict[str, Any], version: int | None) -> bool:
        """Adds what a server wrote under the weights of ``version``; whether the completion is whole.

        Raises:
            EngineLostError: a completion that failed in the server.
        """
        if answer["finish_reason"] not in ("stop", "length", "abort"):
            raise EngineLostError(f"a completion ended with {answer['finish_reason']!r}")
        tokens = answer["token_ids"]
        if self.request.sampling.thinking_budget is not None:
            self.stopped += [token in self.thinking.stop_ids for token in answer["likeliest"]]
        self.token_ids += tokens
        self.logprobs += answer["logprobs"]
        self.versions += [version] * len(tokens)
        if answer["finish_reason"] != "abort":
            self.finish = answer["finish_reason"]
            return True
        if len(self.token_ids) == self.request.sampling.max_tokens:
            return True  # cut off after its last token
        if not self.keep:
            self._forget()
        return False

    def result(self) -> Completion:
        sampling = self.request.sampling
        rule = BudgetRule(self.thinking, sampling.thinking_budget, sampling.grace)
        stopped = None if sampling.thinking_budget is None else self.stopped
        forced = tuple(rule.forced_mask(self.request.prompt_ids, self.token_ids, stopped))
        versions = tuple(version for version in self.versions if version is not None)
        if len(versions) < len(self.token_ids):
            versions = ()  # some were drawn before versions were counted
        return Completion(tuple(self.token_ids), tuple(self.logprobs), forced, self.finish, versions)


class Scored:
    """Log-probabilities of a sequence's tokens but the first, by a server's forward pass over prompts."""

    def __init__(self, sequence: Sequence[int]) -> None:
        self.sequence = list(sequence)
        self.logprobs: list[float] = []

    def body(self) -> dict[str, Any]:
        return {"prompt": self.sequence, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": True}

    def take(self, answer: dict[str, Any], version: int | None) -> bool:
        """As :meth:`Draft.take`: one that was cut off is asked for again."""
        if answer["finish_reason"] == "abort":
            return False
        self.logprobs = answer["prompt_logprobs"]
        return True

    def result(self) -> list[float]:
        return self.logprobs
