"""Threads: where a callable of the app's own may block; an exit waits for none that hangs."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any

from gateway.errors import Unavailable

_Call = tuple[Callable[[], Any], "asyncio.Future[tuple[Any, BaseException | None]]"]

_OF_COROUTINES = (StopIteration, StopAsyncIteration)  # None may raise these.


class Threads:
    """A few threads, started as they are needed, and a few calls that wait for one."""

    def __init__(self, most: int, waiting: int) -> None:
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._most = most
        self._waiting = waiting
        self._threads = 0
        self._open = 0  # Calls that nobody has answered.

    async def run(self, call: Callable[[], Any]) -> Any:
        """Return what a call returns, or raise what it raises; Unavailable if all are busy."""
        if self._open >= self._most + self._waiting:
            raise Unavailable("auth_unavailable", reason="too many calls wait for a thread")
        future: asyncio.Future[tuple[Any, BaseException | None]]
        future = asyncio.get_running_loop().create_future()
        self._open += 1
        if self._threads < min(self._open, self._most):
            self._threads += 1
            Thread(target=self._work, daemon=True, name="gateway-auth").start()
        self._calls.put((call, future))
        result, error = await asyncio.shield(future)  # A thread cannot be stopped: it counts on.
        if error is None:
            return result
        if isinstance(error, Exception) and not isinstance(error, _OF_COROUTINES):
            raise error
        # An exit or a cancellation of theirs is none of ours.
        raise RuntimeError(repr(error)).with_traceback(error.__traceback__)

    def _work(self) -> None:
        while True:
            call, future = self._calls.get()
            said: Any = None
            error: BaseException | None = None
            try:
                said = call()
            except BaseException as caught:  # Also an exit: a caller's future has to be answered.
                error = caught
            with suppress(RuntimeError):  # The loop has ended.
                future.get_loop().call_soon_threadsafe(self._answer, future, said, error)

    def _answer(
        self,
        future: "asyncio.Future[tuple[Any, BaseException | None]]",
        said: Any,
        error: BaseException | None,
    ) -> None:
        self._open -= 1
        if not future.done():
            future.set_result((said, error))
