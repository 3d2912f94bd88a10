"""Restarts a lost engine and repeats the request, so that a worker's death does not cost the step."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from nanoalign.rollouts.base import Completion, Done, EngineLostError, Request, RolloutEngine

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class RestartingEngine:
    """A :class:`RolloutEngine` behind which another one may be lost.

    ``restarts`` bounds the new starts in a row for one question; the error of the last one goes through. New engines
    get the weights of the last :meth:`load_weights`: the tensors (or what can be iterated again for them) are held, not
    copied, so they must not change between that and the questions (in GRPO they change after them).
    """

    def __init__(self, start: Callable[[], RolloutEngine], restarts: int) -> None:
        self.start, self.restarts = start, restarts
        self.engine = start()
        self.weights: Iterable[tuple[str, torch.Tensor]] | None = None
        self.left_alone = False
        """The engine's weights cannot be given to another."""
        self.lost = 0
        """Engines lost so far."""

    @property
    def max_length(self) -> int | None:
        return self.engine.max_length

    def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        """With ``done``, what had ended before an engine was lost is not asked for again."""
        if done is None:
            return self._insist(lambda: self.engine.generate(requests))
        ended: dict[int, Completion] = {}

        def rest() -> None:
            left = [place for place in range(len(requests)) if place not in ended]

            def keep(number: int, completion: Completion) -> None:
                ended[left[number]] = completion
                done(left[number], completion)

            self.engine.generate([requests[place] for place in left], keep)

        self._insist(rest)
        return [ended[place] for place in range(len(requests))]

    def load_weights(self, tensors: "Iterable[tuple[str, torch.Tensor]]") -> None:
        self.weights = None  # dropped before the next ones are computed: a merge sweep's are another full model
        weights = list(tensors) if iter(tensors) is tensors else tensors
        self._insist(lambda: self.engine.load_weights(weights))
        self.weights = weights  # only now: an engine lost in between would be given them twice

    def stream_weights(self, tensors: "Iterator[tuple[str, torch.Tensor]]") -> None:
        """:meth:`load_weights` of tensors that nobody could hold, or give again alone: parts of them are on other
        processes. An engine that is lost before the next ones ends the stage."""
        self.weights = None
        self.engine.load_weights(tensors)
        self.left_alone = True

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self._insist(lambda: self.engine.score(sequences))

    def sleep(self) -> None:
        self.engine.sleep()

    def close(self) -> None:
        self.engine.close()

    def _insist(self, ask: Callable[[], T]) -> T:
        left, lost = 0 if self.left_alone else self.restarts, False
        while True:
            try:
                if lost:
                    self._start_anew()
                    lost = False
                return ask()
            except EngineLostError as error:
                if not left:
                    raise
                left, lost, self.lost = left - 1, True, self.lost + 1
                warnings.warn(f"restarting the rollout engine, {left} restarts left: {error}", stacklevel=2)

    def _start_anew(self) -> None:
        self.engine.close()
        self.engine = self.start()
        if self.weights is not None:
            self.engine.load_weights(self.weights)
