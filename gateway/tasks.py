"""Tasks: what runs beside the requests of a process, owned until it has ended."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from threading import Thread
from typing import Any, TypeVar

logger = logging.getLogger("gateway.tasks")

T = TypeVar("T")


class Tasks:
    """Tasks that one owner began and ends."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def repeat(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Begin a loop that runs until `stop`."""
        self.spawn(_supervised(loop))

    async def over(self, seconds: float) -> None:
        """Wait until all have ended, and end what has not by then."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        await self.stop()

    async def stop(self) -> None:
        """End all of them."""
        tasks = left = set(self._tasks)
        while left:  # A cancel can be lost, as by asyncio.wait_for of Python 3.11.
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=1)
        await asyncio.gather(*tasks, return_exceptions=True)


async def in_thread(call: Callable[[], T]) -> T:
    """Return what a call returns, or raise what it raises; no exit waits for one that hangs."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def answer(set_it: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_it(value)

    def work() -> None:
        try:
            said: tuple[Callable[[Any], None], Any] = future.set_result, call()
        except Exception as error:
            said = future.set_exception, error
        with suppress(RuntimeError):  # The loop has ended.
            loop.call_soon_threadsafe(answer, *said)

    Thread(target=work, daemon=True, name="gateway-work").start()
    return await future


async def _supervised(loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop for ever: one that breaks is a fault of ours, but must not take the rest along."""
    while True:
        try:
            await loop()
        except Exception:
            logger.exception("a loop of the replica broke")
        await asyncio.sleep(1)
