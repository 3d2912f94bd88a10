"""Episodes that do not wait for each other: each goes on when its own turn is complete."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from nanoalign.rollouts.base import Completion, Request

STEPS_AT_ONCE = 256
"""Episodes whose environments work at the same time; most of that time they wait for tools."""

E = TypeVar("E")
"""An episode under way, with an attribute ``ended`` that is true once it is over."""


class Overlapped(Generic[E]):
    """Drives episodes on an engine that takes questions at any time.

    Args:
        request: an episode's next question, or None where it is over.
        advance: takes in what was written, and the environments' answers to it; episodes are over where it says so.
        submit: asks the engine.
    """

    def __init__(
        self,
        request: Callable[[E], Request | None],
        advance: Callable[[Sequence[tuple[E, Request, Completion]]], None],
        submit: Callable[[Sequence[Request]], list[Future[Completion]]],
    ) -> None:
        self.request, self.advance, self.submit = request, advance, submit
        self.steps = ThreadPoolExecutor(STEPS_AT_ONCE, thread_name_prefix="episode")
        self.over: SimpleQueue[Exception | None] = SimpleQueue()
        """An item for each episode that is over: what it raised, or None."""
        self.playing = 0

    def ask(self, episodes: Sequence[E]) -> None:
        """Asks for the first turns of all episodes, in order."""
        self.playing = len(episodes)
        self._ask(episodes)

    def wait(self) -> None:
        """Returns when all episodes are over; raises what any of them raised."""
        try:
            for _ in range(self.playing):
                if error := self.over.get():
                    raise error
        finally:
            self.steps.shutdown(wait=False, cancel_futures=True)

    def _ask(self, episodes: Sequence[E]) -> None:
        live = []
        for episode in episodes:
            request = self.request(episode)
            if request is None:
                self.over.put(None)
            else:
                live.append((episode, request))
        if not live:
            return
        for (episode, request), answer in zip(live, self.submit([request for _, request in live]), strict=True):
            answer.add_done_callback(partial(self._go_on, episode, request))

    def _go_on(self, episode: E, request: Request, done: "Future[Completion]") -> None:
        try:
            self.steps.submit(self._step, episode, request, done)
        except RuntimeError as error:  # no further thread; or shut down, because another episode raised
            self.over.put(error)

    def _step(self, episode: Any, request: Request, done: "Future[Completion]") -> None:
        try:
            self.advance([(episode, request, done.result())])
            if episode.ended:
                self.over.put(None)
            else:
                self._ask([episode])
        except Exception as error:  # it goes on in wait()
            self.over.put(error)
