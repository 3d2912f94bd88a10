"""A pool of engines in this process: a model of its own, which gets weights only when they are sent."""

import copy
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from torch import Tensor

from nanoalign.rollouts.base import Completion, Request
from nanoalign.rollouts.hf import HFEngine


class FakePool:
    """Answers at once, with the weights that it has then, whichever thread asks. ``deaf`` sends are read and forgotten;
    of ``lost`` sends the engine is lost after them, until the next; ``lost_scores`` questions for scores find none."""

    max_length: int | None = None

    def __init__(self, model: Any, thinking: Any, deaf: Sequence[int] = (), lost: Sequence[int] = (),
                 lost_scores: int = 0) -> None:  # fmt: skip
        self.engine = HFEngine(copy.deepcopy(model), thinking, batch_size=16)
        self.deaf, self.lost_at, self.lost_scores = deaf, lost, lost_scores
        self.version, self.sends, self.lost, self.closed = -1, 0, 0, False
        self.requests: list[Request] = []
        self.waiting: list[Callable[[], None]] = []
        self.one_at_a_time = threading.Lock()

    def send(
        self, tensors: Iterable[tuple[str, Tensor]], version: int, texts: Sequence[Sequence[int]] = ()
    ) -> list[list[list[float]]]:
        weights = [(name, tensor.detach().clone()) for name, tensor in tensors]
        self.sends += 1
        with self.one_at_a_time:
            self.version = version
            if version not in self.deaf:
                self.engine.load_weights(weights)
        if self.sends in self.lost_at:
            self.lost += 1
        waiting, self.waiting = self.waiting, []
        for answer in waiting:
            answer()
        if texts and self.lost_scores:
            self.lost_scores -= 1
            return []
        return [self.engine.score(texts)] if texts else []

    def wants_weights(self) -> bool:
        return bool(self.waiting)

    def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        futures: list[Future[Completion]] = [Future() for _ in requests]
        self.requests += requests

        def answer() -> None:
            with self.one_at_a_time:
                answers, version = self.engine.generate(requests), self.version
            for future, each in zip(futures, answers, strict=True):
                future.set_result(replace(each, versions=(version,) * len(each.token_ids)))

        if self.sends in self.lost_at:
            self.waiting.append(answer)
        else:
            answer()
        return futures

    def await_weightless(self) -> None: ...

    def busy_s(self) -> float:
        return 0.5 * self.sends

    def close(self) -> None:
        self.closed = True
