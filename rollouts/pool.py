"""The rollout engine on one or many vLLM servers: prompts spread by load, lost servers replaced, weights while it runs.

Requests wait in one queue, first come first served; the server with the fewest under way gets the next. Each server
has a thread that keeps it (starts it, and anew where it was lost), each request under way a thread that waits for its
answer. Versions are exact: a server that is to get weights is paused, what it has written comes back, and nothing is
asked of it until it has them. So all tokens of an answer were drawn under the version of when it was asked for.
"""

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import ConfigError
from nanoalign.rollouts.base import Completion, Done, EngineLostError, Request
from nanoalign.rollouts.drafts import Draft, Scored
from nanoalign.rollouts.server import Server
from nanoalign.rollouts.slots import Job, Keeper, Slot

if TYPE_CHECKING:
    import torch

    from nanoalign.rollouts.delivery import Delivery

AGAIN_S = 0.1
"""Seconds between two pauses of a server whose answers have not all come back: a request may reach it after one."""
LOOK_S = 1.0
"""Seconds between two looks whether :meth:`ServerPool.generate` waits for what cannot come."""
END_S = 60.0
"""Seconds for which :meth:`ServerPool.close` waits for servers to end."""


class ServerPool:
    """A :class:`rollouts.base.RolloutEngine` on servers, which takes requests and weights while it generates.

    ``restarts`` bounds the losses in a row of each server. :meth:`load_weights` holds its tensors, not copies, for
    servers that come later: they must not change between that and the questions. :meth:`send` holds none: a server that
    comes later waits for the next.
    """

    def __init__(
        self, keepers: Sequence[Keeper], thinking: ThinkingTokens, delivery: "Delivery", *, parallel: int,
        restarts: int, control_s: float, keep: bool, budgets: bool = True,
    ) -> None:  # fmt: skip
        """Starts all servers at once and waits for them.

        Args:
            parallel: requests at most under way at each server.
            restarts: see above.
            control_s: seconds in which a paused server must give back what it has written.
            keep: whether a completion that was cut off goes on from its tokens; otherwise it begins anew.
            budgets: whether the servers enforce thinking budgets.

        Raises:
            ConfigError, EngineLostError: one does not start.
        """
        self.thinking, self.delivery, self.parallel, self.restarts = thinking, delivery, parallel, restarts
        self.control_s, self.keep, self.budgets = control_s, keep, budgets
        self.max_length: int | None = None
        self.lost = 0
        """Servers lost so far."""
        self.changed = threading.Condition()
        """Guards all that follows."""
        self.queue: deque[Job] = deque()
        self.numbers = 0
        self.opened = self.closed = False
        self.busy, self.busy_since = 0.0, time.monotonic()
        self.running = False
        self.sending = threading.Lock()
        """Held while weights are on their way, and for these two."""
        self.held: list[tuple[str, torch.Tensor]] | None = None
        self.sent = False
        """Weights have come by :meth:`send`: those with which a server starts are old."""
        self.slots = [Slot(keeper) for keeper in keepers]
        self.threads = [threading.Thread(target=self._keep, args=(slot,), daemon=True) for slot in self.slots]
        for thread in self.threads:
            thread.start()
        with self.changed:
            self.changed.wait_for(lambda: all(slot.state == "ready" or slot.error for slot in self.slots))
            self.opened = True
        for slot in self.slots:
            if slot.error is not None:
                self.close()
                raise slot.error

    def submit(self, requests: Sequence[Request]) -> list["Future[Completion]"]:
        """Futures of the completions, at once. They end with EngineLostError where no server is left, with ConfigError
        where a server refuses the request.

        Raises ConfigError for a request with a budget where the servers enforce none."""
        if not self.budgets and any(request.sampling.thinking_budget is not None for request in requests):
            raise ConfigError("rollout: a request with a thinking budget to an engine that was opened without budgets")
        return [job.future for job in self._enqueue([Draft(each, self.thinking, self.keep) for each in requests])]

    def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        """One completion a request, in order. The servers batch them; the longest ends last. ``done`` is told of each
        as it ends."""
        futures = self.submit(requests)
        if done is None:
            return self._wait(futures)
        ended: SimpleQueue[tuple[int, Future[Completion]]] = SimpleQueue()
        for place, future in enumerate(futures):
            future.add_done_callback(lambda future, place=place: ended.put((place, future)))  # type: ignore[misc]
        try:
            for left in range(len(futures), 0, -1):
                place, future = self._next(ended, left)
                done(place, future.result())
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of every token but the first, by the servers' own forward pass over prompts."""
        return self._wait([job.future for job in self._enqueue([Scored(each) for each in sequences])])

    def await_weightless(self) -> None:
        """Waits until a server :meth:`wants_weights`. Raises EngineLostError where none is left."""
        with self.changed:
            self.changed.wait_for(lambda: any(slot.state in ("waiting", "dead") for slot in self.slots))
        self._require_some()

    def send(
        self, tensors: "Iterable[tuple[str, torch.Tensor]]", version: int, texts: Sequence[Sequence[int]] = ()
    ) -> list[list[list[float]]]:
        """Gives weights to every live server, which counts them as ``version``. What is under way is cut off, and goes
        on or begins anew under them. ``tensors`` is read once and to its end whatever happens.

        Returns what each server says of ``texts`` under them, as by :meth:`score`, before it generates on: proof that
        they have arrived. One that is lost on the way is left out.

        Raises:
            EngineLostError: no server is left. ConfigError: a server refuses the weights.
        """
        said: list[list[list[float]]] = []
        with self.sending:
            self.held, self.sent = None, True
            self._give(tensors, version, self._live(), lambda server: said.append(_scores(server, texts)))
        self._require_some()
        return said

    def load_weights(self, tensors: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """Gives weights to every server, those that come later included."""
        with self.sending:
            self.held = None  # dropped before the next ones are computed: a merge sweep's are another full model
            self.held = list(tensors)
            self._give(self.held, None, self._live())
        self._require_some()

    def wants_weights(self) -> bool:
        """Whether a server, new or replaced, waits for the next :meth:`send`."""
        with self.changed:
            return any(slot.state == "waiting" for slot in self.slots)

    def busy_s(self) -> float:
        """Seconds so far in which a server that was not paused had something to do."""
        with self.changed:
            self._clock()
            return self.busy

    def sleep(self) -> None:
        """Servers keep their memory: they have GPUs of their own."""

    def close(self) -> None:
        """Ends our own servers; cancels what is still waited for."""
        with self.changed:
            self.closed = True
            for job in [*self.queue, *(job for slot in self.slots for job in slot.jobs.values())]:
                job.future.cancel()
            self.queue.clear()
            self.changed.notify_all()
        end = time.monotonic() + END_S
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))

    # Requests

    def _enqueue(self, works: Sequence[Draft | Scored]) -> list[Job]:
        with self.changed:
            jobs = [Job(self.numbers + place, work) for place, work in enumerate(works)]
            self.numbers += len(jobs)
            if self.closed:
                raise EngineLostError("the pool is closed")
            self.queue += jobs
            self._advance()
        return jobs

    def _next(
        self, ended: "SimpleQueue[tuple[int, Future[Completion]]]", left: int
    ) -> tuple[int, "Future[Completion]"]:
        while True:
            try:
                return ended.get(timeout=LOOK_S)
            except Empty:
                self._check_weights(left)

    def _check_weights(self, left: int) -> None:
        with self.changed:
            if left and all(slot.state in ("waiting", "dead") for slot in self.slots):
                raise EngineLostError("every server waits for weights: send them, then ask")

    def _wait(self, futures: Sequence["Future[Any]"]) -> list[Any]:
        try:
            left: set[Future[Any]] = set(futures)
            while left:
                done, left = wait(left, LOOK_S, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                self._check_weights(len(left))
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def _advance(self) -> None:
        """After every change, under the lock: gives out what can be given out."""
        if not self.closed and all(slot.state == "dead" for slot in self.slots):
            while self.queue:
                self.queue.popleft().settle(self._last_error())
        given: dict[Slot, list[Job]] = {}
        while self.queue and not self.closed:
            free = [slot for slot in self.slots if slot.state == "ready" and len(slot.jobs) < self.parallel]
            if not free:
                break
            job = self.queue.popleft()
            if not job.future.done():
                slot = min(free, key=lambda slot: len(slot.jobs))
                slot.jobs[job.number] = job
                given.setdefault(slot, []).append(job)
        for slot, jobs in given.items():
            asked = (slot, slot.server, jobs, [job.work.body() for job in jobs])
            threading.Thread(target=self._ask, args=asked, daemon=True).start()
        self._clock()
        self.changed.notify_all()

    def _ask(self, slot: Slot, server: Server, jobs: list[Job], bodies: list[dict[str, Any]]) -> None:
        """The thread of requests that are asked together."""
        try:
            server.complete(bodies, lambda place, answer: self._take(slot, server, jobs[place], answer))
        except ConfigError as error:  # of all that is left
            for job in jobs:
                self._take(slot, server, job, {"error": str(error)})
        except Exception as error:
            self._lose(slot, server, error)

    def _take(self, slot: Slot, server: Server, job: Job, answer: dict[str, Any]) -> None:
        """An answer; raises EngineLostError for one that no server should give."""
        with self.changed:
            if slot.server is not server or job.number not in slot.jobs:
                return  # it was lost meanwhile, and the job given to another
            refused = server.refusal(answer)
            whole = refused is not None or job.work.take(answer, slot.version)
            del slot.jobs[job.number]
            if whole:
                slot.losses = 0
            else:
                self._put_back([job])
            self._advance()
        if whole:
            job.settle(refused or job.work.result())

    def _put_back(self, jobs: Iterable[Job]) -> None:
        self.queue = deque(sorted([*jobs, *self.queue], key=lambda job: job.number))

    def _clock(self) -> None:
        """Counts the time up to now by what went on in it."""
        now = time.monotonic()
        self.busy += now - self.busy_since if self.running else 0.0
        self.busy_since = now
        self.running = any(slot.state == "ready" and slot.jobs for slot in self.slots)

    # Servers

    def _keep(self, slot: Slot) -> None:
        """A server's thread, as long as the pool: our own servers end with the thread that has started them."""
        while not self.closed and slot.state != "dead":
            server = None
            try:
                server = slot.keeper.start(lambda: self.closed)
                self._welcome(slot, server)
                with self.changed:
                    self.changed.wait_for(lambda: self.closed or slot.server is not server)  # noqa: B023
            except Exception as error:
                self._lose(slot, slot.server, error)
            finally:
                slot.keeper.stop(server)

    def _welcome(self, slot: Slot, server: Server) -> None:
        """Gives a server that has started what the others have."""
        with self.sending:
            with self.changed:
                slot.server, slot.version, self.max_length = server, None, server.max_length
                if self.held is not None:
                    slot.state = "loading"
                else:
                    slot.state = "waiting" if self.sent else "ready"
                self._advance()
            if self.held is not None:
                self._give(self.held, None, [(slot, server)])

    def _lose(self, slot: Slot, server: Server | None, error: Exception) -> None:
        """Takes a server out of service; its thread replaces it."""
        with self.changed:
            if slot.server is not server or slot.state == "dead" or self.closed:
                return
            slot.losses, slot.error, self.lost = slot.losses + 1, error, self.lost + 1
            left = self.restarts - slot.losses if self.opened else -1
            slot.server, slot.state = None, "starting" if left >= 0 else "dead"
            jobs, slot.jobs = slot.jobs, {}
            self._put_back(jobs.values())
            self._advance()
        if left >= 0:
            warnings.warn(f"restarting the rollout engine, {left} restarts left: {error}", stacklevel=2)

    def _last_error(self) -> EngineLostError:
        error = next(slot.error for slot in reversed(self.slots) if slot.error is not None)
        return error if isinstance(error, EngineLostError) else EngineLostError(f"no server is left: {error}")

    def _require_some(self) -> None:
        with self.changed:
            if all(slot.state == "dead" for slot in self.slots):
                raise self._last_error()

    # Weights

    def _live(self) -> list[tuple[Slot, Server]]:
        with self.changed:
            return [(slot, slot.server) for slot in self.slots if slot.server is not None]

    def _give(
        self, tensors: "Iterable[tuple[str, torch.Tensor]]", version: int | None, live: list[tuple[Slot, Server]],
        prove: Callable[[Server], object] = lambda _: None,
    ) -> None:  # fmt: skip
        """Weights for the servers of ``live``; one that is lost on the way is left out from there on. ``prove`` comes
        before other requests."""

        def still() -> list[tuple[Slot, Server]]:
            with self.changed:
                return [(slot, server) for slot, server in live if slot.server is server]

        def on_each(ask: Callable[[Slot, Server], object]) -> None:
            def insist(slot: Slot, server: Server) -> None:
                try:
                    ask(slot, server)
                except EngineLostError as error:
                    self._lose(slot, server, error)

            if now := still():
                with ThreadPoolExecutor(len(now)) as threads:
                    for asked in [threads.submit(insist, *each) for each in now]:
                        asked.result()

        def halt() -> None:
            with self.changed:
                for slot, _ in still():
                    slot.state = "loading"
                self._advance()
            on_each(self._halt)

        rest = iter(tensors)
        try:
            if live:
                self.delivery(rest, halt, lambda ask: on_each(lambda _, server: ask(server)))
                on_each(lambda _, server: server.refresh())
                on_each(lambda _, server: server.resume())
                on_each(lambda _, server: prove(server))
            with self.changed:
                for slot, _ in still():
                    slot.state, slot.version = "ready", version
                self._advance()
        finally:
            with self.changed:
                for slot, _ in still():
                    slot.state = "waiting" if slot.state == "loading" else slot.state
            for _ in rest:
                pass  # under ZeRO-3 this is a collective, which the other processes are in

    def _halt(self, slot: Slot, server: Server) -> None:
        """Stops a server and waits for all that it has written."""
        end = time.monotonic() + self.control_s
        while True:
            server.pause()
            with self.changed:
                if self.changed.wait_for(lambda: not slot.jobs or slot.server is not server, AGAIN_S):
                    return
            if time.monotonic() > end:
                raise EngineLostError(f"{server.url}: paused, it does not give back {len(slot.jobs)} requests")


def _scores(server: Server, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-probability of every token but the first of each text, asked for at once."""
    asked = [Scored(text) for text in texts]

    def take(place: int, answer: dict[str, Any]) -> None:
        if (refused := server.refusal(answer)) is not None:
            raise refused
        if not asked[place].take(answer, None):
            raise EngineLostError(f"{server.url}: cut off while its weights were proved")

    server.complete([each.body() for each in asked], take)
    return [each.result() for each in asked]
