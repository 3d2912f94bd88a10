"""Completions from engines that all processes share, and that may sample ahead of the trainer.

The first process asks them; weights go to them from all processes at once, which under ZeRO-3 hold a part each. With
`rollouts.ahead: k` a step begins with new weights for the engines and the questions of the step k further on, and then
waits for answers that were asked k steps ago: engines and trainer work at the same time. So a token is drawn by weights
at most k optimizer steps older than those it is trained on, by construction: nothing has to be thrown away, and a
resumed stage asks again what was under way, each step's questions being a function of its number.
"""

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from typing import TYPE_CHECKING, TypeVar

from nanoalign.common.processes import shared
from nanoalign.models.weights import whole_weights
from nanoalign.rl.collect import PROBE, Collected, StepRollouts, mismatch, require_fresh

if TYPE_CHECKING:
    from nanoalign.rollouts.pool import ServerPool

T = TypeVar("T")

LOOK_S = 0.2
"""Seconds between two looks at whether an engine has been replaced."""


class SharedEngine:
    """A :data:`rl.collect.Collect`; every process makes one and calls it at the same time."""

    def __init__(self, rollouts: StepRollouts, servers: "Future[ServerPool] | None") -> None:
        """``servers``, which may still start, are None on all processes but the first."""
        self.rollouts, self.servers = rollouts, servers
        self.ahead = rollouts.stage.rollouts.ahead
        self.steps = ThreadPoolExecutor(self.ahead + 1)
        self.asked: dict[int, Future[Collected]] = {}
        """By step: its completions, judged."""
        self.left_at, self.busy_s = 0.0, 0.0
        """When the last step was handed out, and how long the engines had been busy until then."""

    def __call__(self, step: int, first: int, count: int) -> Collected:
        if self.pool is not None and not self.left_at:
            self.left_at = time.perf_counter()  # they have started
        entered = time.perf_counter()
        apart = self._give_weights(step)
        synced = time.perf_counter()
        if self.pool is not None:
            for each in range(step, min(step + self.ahead + 1, self.rollouts.steps)):
                if each not in self.asked:
                    self._ask(each)
        while (collected := shared(self._next(step, entered, synced))) is None:
            self._give_weights(step)
        if apart is None:
            apart = self.rollouts.require_fresh(collected, step)
        collected.metrics.update(mismatch=apart, sync_s=synced - entered)
        return collected.part(first, count)

    def measure(self, held_out: StepRollouts, step: int, process: int, processes: int) -> list[list[float]]:
        """The rewards of answers to all of ``held_out``, on the first process, by the weights after ``step`` steps;
        what is sampled ahead meanwhile goes on under these."""
        self._give_weights(step)
        scores: Future[list[list[float]]] | None = None
        if self.pool is not None:
            answers = held_out.begin(self.pool, 0, 0, len(held_out.prompts))
            scores = self.steps.submit(lambda: held_out.scores(0, 0, answers()))
        while not shared((found := self._await(scores)) is not None):
            self._give_weights(step)
        if self.pool is not None:
            self.left_at, self.busy_s = time.perf_counter(), self.pool.busy_s()
        return found or []

    @property
    def pool(self) -> "ServerPool | None":
        return None if self.servers is None else self.servers.result()

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()
        self.steps.shutdown(cancel_futures=True)

    def _give_weights(self, step: int) -> float | None:
        """Gives the engines the trainer's weights. Where they sample ahead, what each says of fixed texts proves them,
        and the largest mismatch is returned: completions that older weights drew prove nothing."""
        texts = [prompt.ids for prompt in self.rollouts.prompts[:PROBE]] if self.ahead else []
        while True:
            weights = whole_weights(self.rollouts.scorer.model, want=self.pool is not None)
            found = None
            if self.pool is not None:
                found = self.pool.send(weights, step, texts)
            else:
                for _ in weights:
                    pass
            if not self.ahead:
                return None
            own = self.rollouts.scorer.score(texts)
            if said := shared(found):
                forced = [[False] * len(each) for each in own]
                apart = max(mismatch(each, own, forced) for each in said)
                require_fresh(apart, self.rollouts.stage.max_mismatch, step)
                return apart
            if self.pool is not None:  # all were lost meanwhile: those that replace them want weights
                self.pool.await_weightless()

    def _ask(self, step: int) -> None:
        assert self.pool is not None
        answers = self.rollouts.begin(self.pool, step, 0, self.rollouts.stage.train.batch_size)
        self.asked[step] = self.steps.submit(lambda: self.rollouts.judge(step, 0, answers()))

    def _next(self, step: int, entered: float, synced: float) -> Collected | None:
        """A step's completions; None where a replaced engine waits for weights first, and on processes that did not
        ask. ``entered`` and ``synced`` say when the step began and when its weights were given."""
        collected = self._await(self.asked.get(step))
        if collected is not None and self.pool is not None:
            del self.asked[step]
            now, busy_s = time.perf_counter(), self.pool.busy_s()
            wall, busy = now - self.left_at, busy_s - self.busy_s
            self.left_at, self.busy_s = now, busy_s
            collected.metrics.update(
                rollout_s=now - synced, rollout_tokens_per_s=sum(map(len, collected.completion_ids)) / max(busy, 1e-9),
                trainer_idle_share=(now - entered) / wall, engine_idle_share=max(0.0, 1 - busy / wall),
                engines_lost=self.pool.lost, **staleness(collected, step, self.ahead),
            )  # fmt: skip
        return collected

    def _await(self, future: "Future[T] | None") -> T | None:
        """A result; None where a replaced engine waits for weights first, and where there is none to wait for."""
        while future is not None and self.pool is not None and not self.pool.wants_weights():
            try:
                return future.result(LOOK_S)
            except NotYetError:
                if future.done():  # a time-out of the judge's own
                    raise
        return None


def staleness(collected: Collected, step: int, ahead: int) -> dict[str, float]:
    """How many optimizer steps older than the step's weights those are that drew its trained tokens: mean, largest, and
    the share of each age. Nothing where nothing is sampled ahead."""
    if not ahead:
        return {}
    ages = Counter(
        step - version
        for versions, trained in zip(collected.versions, collected.trained, strict=True)
        for version, counts in zip(versions, trained, strict=True)
        if counts
    )
    tokens = max(1, ages.total())
    shares = {f"staleness/{age}": ages[age] / tokens for age in range(ahead + 1)}
    mean = sum(age * count for age, count in ages.items()) / tokens
    return {"staleness/mean": mean, "staleness/max": float(max(ages, default=0)), **shares}
