"""Connection: one Redis connection on which the commands of many callers travel together.

While one batch is in flight, what others want gathers and becomes the next one: no caller waits for
a timer, a rush costs few round trips, and connections do not grow with callers.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from hiredis import Reader, pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway import clock
from gateway.store.outage import Outage

Command = Sequence[Any]

_KINDS: dict[str, type[ResponseError]] = {
    "NOSCRIPT": NoScriptError,
    "TRYAGAIN": TryAgainError,
    "READONLY": ReadOnlyError,
    "NOREPLICAS": ReadOnlyError,  # Of a master that is cut off: there may be another by now.
    "MASTERDOWN": ReadOnlyError,
}
_REDIRECTIONS = {"MOVED": MovedError, "ASK": AskError}


class CommandSender(Protocol):
    """Where commands are sent: a connection to one server, or a router to many."""

    async def send(self, commands: Iterable[Command]) -> list[Any]:
        """Return the replies, errors among them; raises RedisError."""


class Batch(NamedTuple):
    """What one caller sends, and where the replies go; on one connection only, if it says which."""

    commands: list[Command]
    replies: "asyncio.Future[list[Any]]"
    generation: int | None


class PipelinedConnection:
    """Sends what callers give it, in their order; `timeout` is in seconds, for one batch.

    A command whose connection broke is not sent again, as it may have run; with `idempotent` it is,
    once, which is for commands that may run twice. `together` bounds the commands of a batch;
    `outage`, which a server's connections share, hears whether it answers.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        outage: Outage,
        timeout: float,
        idempotent: bool,
        together: int = 1000,
    ) -> None:
        self.generation = 0  # Of the connection: a new one may lead to another server.
        self.replaced = float("-inf")  # When the last one took the place of another.
        self._outage = outage
        self._together = together
        self._pool = pool
        self._timeout = timeout
        self._tries = 2 if idempotent else 1
        self._queue: list[Batch] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connection: AbstractConnection | None = None
        self._link: _Link | None = None
        self._busy = False

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

    async def send_now(self, commands: Sequence[Command], generation: int) -> list[Any]:
        """Do as `send`, from within the caller's task if nothing is in flight.

        That spares the handing over to the connection's task and back. A caller that is cancelled
        cuts the connection.
        """
        if self._busy or self._queue or self._link is None:
            return await self.send(commands, generation)
        if generation != self.generation:
            raise RedisConnectionError("the connection is a new one")
        self._busy = True
        try:
            return await self._replies(self._link, commands)
        except BaseException as error:
            if isinstance(error, Exception):
                self._outage.failed(error)
            await self._hang_up()
            raise
        finally:
            self._busy = False
            if self._queue:
                self._wake.set()

    async def close(self) -> None:
        """End the connection; what is still waiting fails."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        queue, self._queue = self._queue, []  # Whoever sends later must not send these as well.
        _fail(queue, RedisConnectionError("the connection is closed"))
        await self._hang_up()

    async def _run(self) -> None:
        while True:
            if self._busy or not self._queue:
                self._wake.clear()
                await self._wake.wait()
            else:
                await self._try(self._next())

    async def _try(self, batches: list[Batch]) -> None:
        self._busy = True
        try:
            await self._deliver(batches)
        except Exception as error:  # Whatever it is, the connection must go on for the others.
            self._outage.failed(error)
            await self._hang_up()
            _fail(batches, error)
        except BaseException:
            _fail(batches, RedisConnectionError("the connection is closed"))
            await self._hang_up()
            raise
        finally:
            self._busy = False

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
                await self._exchange(batches)
                return
            except (RedisTimeoutError, TimeoutError):
                raise RedisTimeoutError("no answer in time") from None
            except (RedisConnectionError, OSError):
                if not left:
                    raise
                await self._hang_up()

    async def _exchange(self, batches: list[Batch]) -> None:
        link = await self._connected()
        stale = [each for each in batches if each.generation not in (None, self.generation)]
        if stale:
            _fail(stale, RedisConnectionError("the connection is a new one"))
            batches = [each for each in batches if each not in stale]
        commands = [each for batch in batches for each in batch.commands]
        if not commands:
            return
        _answer(batches, await self._replies(link, commands))

    async def _replies(self, link: "_Link", commands: Sequence[Command]) -> list[Any]:
        packed = b"".join([pack_command(tuple(each)) for each in commands])
        replies = await link.exchange(packed, len(commands), self._timeout)
        if self._outage.open:
            self._outage.passed()
        if ReadOnlyError in map(type, replies):
            await self._hang_up()  # It leads to a master that is none any more.
        return replies

    async def _connected(self) -> "_Link":
        if self._link is not None and self._link.lost:
            await self._hang_up()  # It was idle: that it was closed meanwhile is no outage now.
        if self._link is None:
            async with asyncio.timeout(self._timeout):
                self._connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            if self.generation:
                self.replaced = clock.now()
            self.generation += 1
            self._link = _link(self._connection)
        return self._link

    async def _hang_up(self) -> None:
        """Close the connection: nobody knows what replies it still holds."""
        if self._connection is not None:
            connection, self._connection, self._link = self._connection, None, None
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)
            await self._pool.release(connection)


class _Link(Protocol):
    """What carries one batch at a time."""

    lost: bool  # Whether it is known to be closed.

    async def exchange(self, packed: bytes, count: int, timeout: float) -> list[Any]:
        """Send bytes and return that many replies, errors among them; raises RedisError."""


class _SocketTransport(asyncio.Protocol):
    """The socket of a connection that redis-py has made: TLS, AUTH, SELECT, Sentinel are its work.

    From then on replies are parsed where they arrive, with one wake-up for a batch instead of one
    and several layers for each reply.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._reader = Reader(replyError=_error)
        self._replies: list[Any] = []
        self._count = 0
        self._waiter: asyncio.Future[list[Any]] | None = None
        self.lost = transport.is_closing()
        self._loop = asyncio.get_running_loop()  # Asking for it costs a system call.
        transport.set_protocol(self)
        transport.resume_reading()

    async def exchange(self, packed: bytes, count: int, timeout: float) -> list[Any]:
        if self.lost:
            raise RedisConnectionError("Connection closed by server.")
        self._replies, self._count = [], count
        self._waiter = self._loop.create_future()
        self._transport.write(packed)
        timer = self._loop.call_later(timeout, self._fail, RedisTimeoutError("no answer in time"))
        try:
            return await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        replies = self._replies
        while (reply := self._reader.gets()) is not False:
            replies.append(reply)
        if self._waiter is not None and len(replies) >= self._count and not self._waiter.done():
            self._waiter.set_result(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._fail(RedisConnectionError("Connection closed by server."))

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)


class _StreamTransport:
    """A connection that has no socket: the embedded store."""

    lost = False

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def exchange(self, packed: bytes, count: int, timeout: float) -> list[Any]:
        async with asyncio.timeout(timeout):
            await self._connection.send_packed_command(packed, False)
            return [await self._reply() for _ in range(count)]

    async def _reply(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error


def _link(connection: AbstractConnection) -> _Link:
    transport: Any = getattr(getattr(connection, "_writer", None), "transport", None)
    return (
        _SocketTransport(transport)
        if hasattr(transport, "set_protocol")
        else _StreamTransport(connection)
    )


def _error(message: str) -> ResponseError:
    word, _, rest = message.partition(" ")
    if word in _REDIRECTIONS:
        error = _REDIRECTIONS[word](rest)
        error.args = (message,)
        return error
    return _KINDS.get(word, ResponseError)(message)


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
