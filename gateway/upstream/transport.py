"""Transport: HTTP/1.1 requests, their bodies straight from the event loop to who wants them.

httpx's own transport walks all its connections at every request and collapses with thousands of
streams; the one on aiohttp wakes a task for every event. Here what one read of the socket brought
is one chunk, handed over at once: see `connection`.

Only `ConnectError` and `ConnectTimeout` mean that the request cannot have been taken. There are no
redirects, cookies, proxies or retries.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from itertools import zip_longest
from socket import SOCK_STREAM
from time import monotonic
from typing import Any, NamedTuple

import httpx

from gateway.upstream.connection import Connection

_KEEP = 2.0  # Seconds. A POST on a connection that the server is just closing may have been taken.
_IDLE = 64  # Connections kept for another request.
_DELAY = 0.25  # Seconds that an address has before the next one is tried as well (RFC 8305 §8).

Origin = tuple[str, str, int]


class Message(NamedTuple):
    """A request without its body: where it goes, and its head up to the length of the body."""

    origin: Origin
    head: bytes

    @classmethod
    def of(cls, request: httpx.Request) -> "Message":
        """Return what is the same for all requests of a kind; raises httpx.UnsupportedProtocol."""
        lines = [b"%s %s HTTP/1.1\r\n" % (request.method.encode(), request.url.raw_path)]
        fields = [each for each in request.headers.raw if each[0].lower() != b"content-length"]
        return cls(
            _origin(request.url), b"".join([*lines, *(b"%s: %s\r\n" % each for each in fields)])
        )

    def with_body(self, body: bytes) -> bytes:
        """Return the bytes that are sent."""
        return b"%scontent-length: %d\r\n\r\n%s" % (self.head, len(body), body)


class Reply(NamedTuple):
    """A response once its head is there."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: "Body"


class Transport:
    """Sends requests, one at a time on a connection; unbounded in number, as runs are counted."""

    def __init__(self) -> None:
        self._idle: dict[Origin, list[Connection]] = {}
        self._tls: ssl.SSLContext | None = None
        self._asked: dict[Origin, asyncio.Task[list[str]]] = {}

    async def send(self, message: Message, body: bytes, connect: float) -> Reply:
        """Return the response once its head is there; raises httpx.TransportError.

        `connect` is the seconds that a new connection may take.
        """
        origin = message.origin
        connection = self._reused(origin) or await self._connected(origin, connect)
        try:
            status, headers = await connection.exchange(message.with_body(body))
        except BaseException:
            connection.abort()
            raise
        return Reply(status, headers, Body(connection, self, origin))

    async def aclose(self) -> None:
        """Close the idle connections, and ask for no more addresses."""
        for task in self._asked.values():
            task.cancel()
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()

    def keep(self, origin: Origin, connection: Connection) -> None:
        """Take a connection back, for the next request if it is soon."""
        idle = [each for each in self._idle.get(origin, []) if each.usable]
        if connection.usable and len(idle) < _IDLE:
            connection.idle_since = monotonic()
            idle.append(connection)
        else:
            connection.abort()
        self._idle[origin] = idle

    def _reused(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()
            fresh = monotonic() - connection.idle_since < _KEEP
            if connection.usable and fresh and not connection.readable:
                return connection
            connection.abort()
        return None

    async def _connected(self, origin: Origin, seconds: float) -> Connection:
        try:
            async with asyncio.timeout(seconds):
                addresses = await self._addresses(origin)
                return await _first([partial(self._open, origin, each) for each in addresses])
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection in {seconds} s") from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error

    async def _addresses(self, origin: Origin) -> list[str]:
        """Return the addresses of a host, asked for once at a time.

        The few threads that ask are the whole process's: a name whose server hangs would take all.
        """
        with suppress(ValueError):
            return [str(ip_address(origin[1]))]
        if (task := self._asked.get(origin)) is None:
            task = self._asked[origin] = asyncio.create_task(_addresses(origin))
            task.add_done_callback(partial(self._answered, origin))
        return await asyncio.shield(task)

    def _answered(self, origin: Origin, task: asyncio.Task[list[str]]) -> None:
        del self._asked[origin]
        if not task.cancelled():
            task.exception()  # Who asked may have left.

    async def _open(self, origin: Origin, address: str) -> Connection:
        scheme, host, port = origin
        tls = scheme == "https"
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection,
            address,
            port,
            ssl=self._context() if tls else None,
            server_hostname=host if tls else None,
        )
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = httpx.create_ssl_context(trust_env=True)
        return self._tls


class Body:
    """The body of a response, as it comes. No generator: nobody may read it to its end."""

    def __init__(self, connection: Connection, transport: Transport, origin: Origin) -> None:
        self._connection = connection
        self._transport = transport
        self._origin = origin
        self._given_back = False
        self.framed = connection.framed  # Whether HTTP tells its end.

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if chunk := await self._connection.read():
            return chunk
        raise StopAsyncIteration

    def each(self, handle: Callable[[bytes], bool]) -> Coroutine[None, None, bool]:
        """Hand over what comes, from within the socket's callback, until `handle` says stop.

        Spares an event the wake-up of a task. Returns whether it was stopped, else the body is
        over; raises httpx.TransportError, and what `handle` raises.
        """
        return self._connection.hand_over(handle)

    async def aclose(self) -> None:
        """Give the connection back; once, as it may carry another request by now."""
        if not self._given_back:
            self._given_back = True
            self._transport.keep(self._origin, self._connection)


def _origin(url: httpx.URL) -> Origin:
    if url.scheme not in {"http", "https"} or not url.host or (url.port or 1) > 65535:
        raise httpx.UnsupportedProtocol(f"{url.host!r} is in no http:// or https:// address")
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


async def _addresses(origin: Origin) -> list[str]:
    """Return the addresses of a host, its families in turn (RFC 8305 §4)."""
    _, host, port = origin
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=SOCK_STREAM)
    families: dict[int, list[str]] = {}
    for family, _, _, _, (address, *_) in found:
        if address not in families.setdefault(family, []):
            families[family].append(str(address))
    return [each for turn in zip_longest(*families.values()) for each in turn if each is not None]


async def _first(ways: list[Callable[[], Coroutine[Any, Any, Connection]]]) -> Connection:
    """Return the first connection made; each way has a short time before the next begins as well.

    A name's first address may be one that swallows everything, as of a family without a route.
    """
    if len(ways) == 1:
        return await ways[0]()
    tasks: set[asyncio.Task[Connection]] = set()
    error: BaseException = OSError("the name has no address")
    try:
        while ways or tasks:
            if ways:
                tasks.add(asyncio.create_task(ways.pop(0)()))
            patience = _DELAY if ways else None
            done, _ = await asyncio.wait(
                tasks, timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                tasks.discard(task)
                if (failed := task.exception()) is None:
                    return task.result()
                error = failed
        raise error
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(_drop)


def _drop(task: asyncio.Task[Connection]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().abort()
