"""What a pool keeps of each server, and of each thing that servers are asked for."""

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from nanoalign.rollouts.drafts import Draft, Scored
from nanoalign.rollouts.server import Server


class Keeper(Protocol):
    """How a server of a pool is started, the first time and after each loss. Its methods run on one thread."""

    def start(self, given_up: Callable[[], bool]) -> Server:
        """A server with the model's weights that answers; ``given_up()`` ends the wait for it. Raises ConfigError or
        EngineLostError."""
        ...

    def stop(self, server: Server | None) -> None:
        """Ends what :meth:`start` has made, be it half-way."""
        ...


@dataclass(eq=False)
class Job:
    """Something that a server is asked for, and who waits for it."""

    number: int
    work: Draft | Scored
    future: "Future[Any]" = field(default_factory=Future)

    def settle(self, result: Any) -> None:
        """A result, or an exception, unless the waiting one has gone."""
        try:
            if isinstance(result, Exception):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)
        except InvalidStateError:
            pass


@dataclass(eq=False)
class Slot:
    """One server's place in the pool."""

    keeper: Keeper
    state: Literal["starting", "waiting", "loading", "ready", "dead"] = "starting"
    """waiting: for the weights of the next :meth:`rollouts.pool.ServerPool.send`; dead: its restarts are used up."""
    server: Server | None = None
    jobs: dict[int, Job] = field(default_factory=dict)
    """Under way, by number."""
    version: int | None = None
    losses: int = 0
    """In a row, without a whole answer in between."""
    error: Exception | None = None
