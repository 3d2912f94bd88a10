"""Calling a user's functions, blocking or async, with a deadline.

Blocking functions run one at a time in a thread of their own, always the same one (a SQLite connection stays usable);
async ones share an event loop. What does not end by its deadline is left behind: its thread is told to stop (Python
code does, a call into C when it returns), and the next call gets a new one.
"""

import asyncio
import ctypes
import inspect
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class DeadlineError(Exception):
    """A function did not end in time."""

    def __init__(self, deadline_s: float, place: str | None) -> None:
        super().__init__(f"did not end within {deadline_s:g} s")
        self.place = place
        """``file:line`` where it stood, in the user's code."""


class _Abandoned(BaseException):
    """Ends a thread that nobody waits for any more."""


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine of ours on this process's background loop, and waits for it."""
    return asyncio.run_coroutine_threadsafe(coroutine, _own_loop(os.getpid())).result()


def submit(coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
    """As :func:`wait`, without waiting."""
    return asyncio.run_coroutine_threadsafe(coroutine, _own_loop(os.getpid()))


class Caller:
    """Calls the functions of one environment, from coroutines on our own loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Where the user's code lies: deadlines name a line in it."""
        self._one_at_a_time = asyncio.Lock()
        self._worker: _Worker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None

    async def __call__(self, function: Callable[..., Any], *arguments: Any, deadline_s: float, **named: Any) -> Any:
        """What the function returns, or awaits to. Raises what it raises, and DeadlineError."""
        if inspect.iscoroutinefunction(function):
            return await self._await(function(*arguments, **named), deadline_s)
        result = await self._run(lambda: function(*arguments, **named), deadline_s)
        return await self._await(result, deadline_s) if inspect.isawaitable(result) else result

    async def _run(self, function: Callable[[], Any], deadline_s: float) -> Any:
        async with self._one_at_a_time:
            worker = self._worker = self._worker or _Worker()
            outcome = asyncio.wrap_future(worker.put(function))
            done, _ = await asyncio.wait([outcome], timeout=deadline_s)
            if not done:
                self._worker = None
                place = standing(worker.thread, self.folder)
                worker.abandon()
                raise DeadlineError(deadline_s, place)
        return _unpack(outcome.result())

    async def _await(self, awaitable: Any, deadline_s: float) -> Any:
        if self._loop is None:
            self._loop, self._loop_thread = _start_loop("nanoalign-users-loop")
        loop, thread = self._loop, self._loop_thread
        future = asyncio.run_coroutine_threadsafe(_outcome(awaitable), loop)
        done, _ = await asyncio.wait([waiting := asyncio.wrap_future(future)], timeout=deadline_s)
        if done:
            return _unpack(waiting.result())
        future.cancel()
        place = None
        alive = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop))
        if not (await asyncio.wait([alive], timeout=1.0))[0]:  # it blocks the loop: the others need another one
            place = standing(thread, self.folder)
            if self._loop is loop:
                self._loop = None
            _interrupt(thread)
        raise DeadlineError(deadline_s, place)


class _Worker:
    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._serve, name="nanoalign-users-calls", daemon=True)
        self.thread.start()

    def put(self, function: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        self._tasks.put((function, future))
        return future

    def abandon(self) -> None:
        self._tasks.put(None)
        _interrupt(self.thread)

    def _serve(self) -> None:
        try:
            while task := self._tasks.get():
                function, future = task
                future.set_running_or_notify_cancel()
                outcome: tuple[Any, BaseException | None]
                try:
                    outcome = (function(), None)
                except BaseException as error:  # also sys.exit(): this is a user's function
                    outcome = (None, error)
                future.set_result(outcome)
                del task, function, future, outcome
        except _Abandoned:
            return


def standing(thread: threading.Thread | None, folder: Path) -> str | None:
    """``file:line`` of the innermost frame of a running thread that is in the user's folder."""
    frame = sys._current_frames().get(thread.ident or 0) if thread is not None else None
    stack = traceback.extract_stack(frame) if frame is not None else []
    own = [each for each in stack if folder in Path(each.filename).parents]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


async def _outcome(awaitable: Any) -> tuple[Any, BaseException | None]:
    try:
        return await awaitable, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return None, error


def _unpack(outcome: tuple[Any, BaseException | None]) -> Any:
    value, error = outcome
    if error is not None:
        raise error
    return value


def _interrupt(thread: threading.Thread | None) -> None:
    if thread is not None and thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Abandoned))


def _start_loop(name: str) -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    loop = asyncio.new_event_loop()

    def serve() -> None:
        try:
            loop.run_forever()
        except _Abandoned:
            return

    thread = threading.Thread(target=serve, name=name, daemon=True)
    thread.start()
    return loop, thread


@cache
def _own_loop(process: int) -> asyncio.AbstractEventLoop:
    """``process`` is the process's id: a forked one has no threads of its parent."""
    return _start_loop("nanoalign-environments")[0]
