"""A user's function as a component of a reward: in this process, or in worker processes with a deadline."""

import asyncio
import base64
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.printable import printable
from nanoalign.reward.base import FLOOR, Progress, RewardError, Sample, Score
from nanoalign.reward.config import section_of
from nanoalign.reward.own.call import Failure, Function, Value, described
from nanoalign.reward.own.source import check, signature
from nanoalign.reward.own.watch import told_when_slow
from nanoalign.reward.sandbox import TOO_LONG
from nanoalign.reward.verifier_pool import ProcessPool

DEADLINE_S = 60.0
"""Of a worker, for one sample, where the recipe gives none."""
NOT_APPLICABLE = "does not apply"
"""Why a sample has a 0 where the function returned None."""


class OwnComponent:
    """One reward of a user's. Raises ConfigError where it cannot be found, imported or called."""

    def __init__(self, key: str, name: str, value: Any) -> None:
        self.key, self.name, self.section = key, name, section_of(value)
        self.columns: dict[str, None] = {}
        """Keys that tasks were seen to have: TRL's functions get each as a column."""
        if (fault := check(key, self.section)) is not None:
            raise ConfigError(f"reward {key!r}: {': '.join(part for part in fault if part)}")
        apart = self.section.workers or self.section.deadline_s is not None
        self.function = None if apart else Function(key, name, self.section)
        if apart and not self.section.workers and (known := signature(key)) and known.awaited:
            self.function = Function(key, name, self.section)

    def know(self, tasks: Iterable[Mapping[str, Any]]) -> None:
        """Takes note of the keys that these tasks have."""
        self.columns |= dict.fromkeys(key for task in tasks for key in task)

    def require_columns(self) -> None:
        """Raises RewardError where the function wants a column that no task had; a worker says so when it is asked."""
        if self.function is not None:
            self.function.arguments([], Progress(), self.columns)

    def start(self, samples: Sequence[Sample], progress: Progress) -> Callable[[], list[Score]]:
        """Begins to score; what it returns waits for the scores. Async functions and worker processes work meanwhile; a
        plain function in this process is called only then.

        Raises:
            RewardError: no usable scores; with the user's file and line, and the sample where it is one's fault.
        """
        self.know(sample.task for sample in samples)
        columns = tuple(self.columns)
        if self.function is None:
            lines = [base64.b64encode(pickle.dumps((sample, progress, columns))) for sample in samples]
            replies = self.pool.start(lines)
            return lambda: self.judged(samples, [self.value(reply) for reply in replies])
        function = self.function
        if function.signature.awaited:
            seconds = self.section.deadline_s
            waiting = asyncio.run_coroutine_threadsafe(function.awaited(samples, progress, columns, seconds), self.loop)
            return lambda: self.judged(samples, waiting.result())

        def here() -> list[Score]:
            with told_when_slow(self.name, function.file, len(samples)):
                values = function.scores(samples, progress, columns)
            return self.judged(samples, values)

        return here

    @cached_property
    def pool(self) -> ProcessPool:
        command = [sys.executable, "-m", "nanoalign.reward.own.worker", self.key, self.name]
        path = os.pathsep.join(each for each in sys.path if each)
        return ProcessPool(
            self.name,
            [*command, self.section.model_dump_json()],
            {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
            self.section.workers or 1,
            self.section.deadline_s or DEADLINE_S,
        )

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """One for all batches: what a function keeps open between them is bound to it."""
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name=f"reward-{self.name}", daemon=True).start()
        return loop

    def value(self, reply: list[Any]) -> Value:
        """What a worker answered."""
        if len(reply) == 2:  # it is gone
            late = reply[1] == TOO_LONG
            reason = TOO_LONG if late else "its process ended"
            seconds = self.section.deadline_s or DEADLINE_S
            return Failure(reason, f"took more than {seconds:g} s" if late else f"ended its process ({self.key})")
        score, reason, detail, *error = reply
        if error:
            raise RewardError(error[0])
        return Failure(reason, detail) if reason else score

    def judged(self, samples: Sequence[Sample], values: Sequence[Value]) -> list[Score]:
        """The scores, or the error that ends the run."""
        failures = [place for place, value in enumerate(values) if isinstance(value, Failure)]
        if failures and self.section.on_error == "stop":
            place = failures[0]
            failure: Any = values[place]
            count = f" (and {len(failures) - 1} more of the batch)" if len(failures) > 1 else ""
            raise RewardError(printable(
                f"reward {self.name!r} {failure.detail}, {described(samples[place])}{count}; "
                "`on_error: count` scores such samples 0 and counts them"
            ))  # fmt: skip
        numbers = [value for value in values if isinstance(value, float)]
        low = min([FLOOR, *numbers])  # a failure is never better than an answer
        return [
            Score(low, value.reason) if isinstance(value, Failure)
            else Score(FLOOR, NOT_APPLICABLE) if value is None else Score(value)
            for value in values
        ]  # fmt: skip
