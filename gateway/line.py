"""Line: one Redis connection on which the commands of many callers travel together.

While one batch is in flight, what others want gathers and becomes the next one: no caller waits for
a timer, a rush costs few round trips, and connections do not grow with callers. A pool with a
connection for each caller costs ten times the CPU for a command.
"""

import asyncio
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

Command = Sequence[Any]


class Batch(NamedTuple):
    """What one caller sends, and where the replies go; on one connection only, if it says which."""

    commands: list[Command]
    replies: "asyncio.Future[list[Any]]"
    generation: int | None


class Line:
    """Sends what callers give it, in their order; `timeout` is in seconds, for one batch.

    A command whose connection broke is not sent again, as it may have run; with `once_more` it is,
    once, which is for commands that may run twice. `together` bounds the commands of a batch.
    """

    def __init__(
        self, pool: ConnectionPool, *, timeout: float, once_more: bool, together: int = 1000
    ) -> None:
        self.generation = 0  # Of the connection: a new one may lead to another server.
        self._together = together
        self._pool = pool
        self._timeout = timeout
        self._tries = 2 if once_more else 1
        self._queue: list[Batch] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connection: AbstractConnection | None = None

    async def send(self, commands: Iterable[Command], generation: int | None = None) -> list[Any]:
        """Return the replies, an error reply as a ResponseError among them; raises RedisError.

        With a generation nothing is sent on any connection but that one.
        """
        batch = list(commands)
        if not batch:
            return []
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        replies: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._queue.append(Batch(batch, replies, generation))
        self._wake.set()
        return await replies

    async def close(self) -> None:
        """End the connection; what is still waiting fails."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        _fail(self._queue, RedisConnectionError("the line is closed"))
        await self._hang_up()

    async def _run(self) -> None:
        while True:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
            batches = self._next()
            try:
                await self._deliver(batches)
            except Exception as error:  # Whatever it is, the line must go on for the others.
                await self._hang_up()
                _fail(batches, error)
            except BaseException:
                _fail(batches, RedisConnectionError("the line is closed"))
                raise

    def _next(self) -> list[Batch]:
        """Take what waits, up to a bound, but never a part of what one caller sent."""
        count = size = 0
        for batch in self._queue:
            if count and size + len(batch.commands) > self._together:
                break
            size += len(batch.commands)
            count += 1
        batches, self._queue = self._queue[:count], self._queue[count:]
        return batches

    async def _deliver(self, batches: list[Batch]) -> None:
        for left in reversed(range(self._tries)):
            try:
                async with asyncio.timeout(self._timeout):
                    await self._exchange(batches)
                return
            except TimeoutError:
                await self._hang_up()
                raise RedisTimeoutError("no answer in time") from None
            except (RedisConnectionError, OSError):
                await self._hang_up()
                if not left:
                    raise

    async def _exchange(self, batches: list[Batch]) -> None:
        connection = await self._connected()
        stale = [each for each in batches if each.generation not in (None, self.generation)]
        _fail(stale, RedisConnectionError("the connection is a new one"))
        commands = [each for batch in batches if batch not in stale for each in batch.commands]
        packed = b"".join(pack_command(tuple(each)) for each in commands)
        await connection.send_packed_command(packed, False)
        replies = [await _reply(connection) for _ in commands]
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            await self._hang_up()  # It leads to a master that is none any more.
        _answer([batch for batch in batches if batch not in stale], replies)

    async def _connected(self) -> AbstractConnection:
        if self._connection is None:
            self._connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            self.generation += 1
        return self._connection

    async def _hang_up(self) -> None:
        """Close the connection: nobody knows what replies it still holds."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)
            await self._pool.release(connection)


async def _reply(connection: AbstractConnection) -> Any:
    try:
        # Without a time-out of its own, which would cost more than the reply.
        return await connection.read_response(timeout=math.inf)
    except ResponseError as error:
        return error


def _answer(batches: list[Batch], replies: list[Any]) -> None:
    start = 0
    for batch in batches:
        end = start + len(batch.commands)
        if not batch.replies.done():
            batch.replies.set_result(replies[start:end])
        start = end


def _fail(batches: list[Batch], error: Exception) -> None:
    for batch in batches:
        if not batch.replies.done():
            batch.replies.set_exception(error)
