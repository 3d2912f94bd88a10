"""What the processes of a launch agree on, and what one does beside its main work."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

BUILDING = threading.RLock()
"""Held while transformers builds or loads a model: it exchanges functions of its classes meanwhile, and two threads at
once leave them exchanged, after which no embedding is tied to its head (findings/transformers_two_threads_untie.sh)."""


def shared(value: T) -> T:
    """The first process's value, on every process; all call it at the same point. Alone, it is the value itself."""
    from accelerate.utils import broadcast_object_list

    first: T = broadcast_object_list([value])[0]
    return first


def in_background(work: Callable[[], T]) -> Future[T]:
    """``work()`` in a thread that no process waits for when it ends."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
