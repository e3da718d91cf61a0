"""Transport: HTTP/1.1 requests, their bodies straight from the event loop to who wants them.

httpx's own transport walks all its connections at every request and collapses with thousands of
streams; the one on aiohttp wakes a task for every event. Here what one read of the socket brought
is one chunk, handed over at once. The parsing is httptools'.

Only `ConnectError` and `ConnectTimeout` mean that the request cannot have been taken. There are no
redirects, cookies, proxies or retries.
"""

import asyncio
import select
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from time import monotonic
from typing import NamedTuple, cast

import httptools
import httpx

_KEEP = 2.0  # Seconds. A POST on a connection that the server is just closing may have been taken.
_IDLE = 64  # Connections kept for another request.
_HEAD = 64 * 1024  # Bytes of a response's head.
_FULL = 256 * 1024  # Bytes not yet taken, above which the socket is not read.

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
        self._idle: dict[Origin, list[_Connection]] = {}
        self._tls: ssl.SSLContext | None = None

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
        """Close the idle connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()

    def keep(self, origin: Origin, connection: "_Connection") -> None:
        """Take a connection back, for the next request if it is soon."""
        idle = [each for each in self._idle.get(origin, []) if each.usable]
        if connection.usable and len(idle) < _IDLE:
            connection.idle_since = monotonic()
            idle.append(connection)
        else:
            connection.abort()
        self._idle[origin] = idle

    def _reused(self, origin: Origin) -> "_Connection | None":
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()
            fresh = monotonic() - connection.idle_since < _KEEP
            if connection.usable and fresh and not connection.readable:
                return connection
            connection.abort()
        return None

    async def _connected(self, origin: Origin, seconds: float) -> "_Connection":
        scheme, host, port = origin
        try:
            async with asyncio.timeout(seconds):
                _, connection = await asyncio.get_running_loop().create_connection(
                    _Connection, host, port, ssl=self._context() if scheme == "https" else None
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection in {seconds} s") from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = httpx.create_ssl_context(trust_env=True)
        return self._tls


class Body(httpx.AsyncByteStream):
    """The body of a response, as it comes."""

    def __init__(self, connection: "_Connection", transport: Transport, origin: Origin) -> None:
        self._connection = connection
        self._transport = transport
        self._origin = origin
        self._given_back = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._connection.read():
            yield chunk

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


class _Connection(asyncio.Protocol):
    """One connection: the parser's callbacks fill it, `exchange` and `read` empty it."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._begin()
        self._closed = False
        self._broken: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._has_head = False
        self._complete = False
        self._keep_alive = False
        self._bounded = False
        self._chunks: list[bytes] = []
        self._size = 0
        self._paused = False
        self._handle: Callable[[bytes], bool] | None = None
        self._thrown: Exception | None = None

    @property
    def usable(self) -> bool:
        """Whether another request can go over it."""
        return self._complete and self._keep_alive and not self._closed and not self._chunks

    @property
    def readable(self) -> bool:
        """Whether the socket has news that the loop has not read yet: of an idle one, its close.

        After a pause of the process requests run before that is noticed, and would be lost.
        """
        assert self._transport is not None
        socket = self._transport.get_extra_info("socket")
        if socket is None:  # Not every loop shows it, as that of the simulation.
            return False
        news = select.poll()
        news.register(socket.fileno(), select.POLLIN)
        return bool(news.poll(0))

    async def exchange(self, request: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Send a request and return the status and the headers of its response."""
        self._begin()
        assert self._transport is not None
        self._transport.write(request)
        while not self._has_head:
            self._raise_if_broken()
            await self._wait()
        if self._head_size > _HEAD:
            self._raise_if_broken()
        headers, self._headers = self._headers, []
        return self._parser.get_status_code(), headers

    async def hand_over(self, handle: Callable[[bytes], bool]) -> bool:
        """See `Body.each`."""
        while self._chunks:
            if handle(await self.read()):
                return True
        self._handle = handle
        try:
            while self._handle is not None:
                if self._complete:
                    return False
                self._raise_if_broken()
                await self._wait()
            if self._thrown is not None:
                raise self._thrown
            return True  # What came with it, and how it ended, is for the next call.
        finally:
            self._handle = None

    async def read(self) -> bytes:
        """Return what came since, b"" at the end of the body; raises httpx.TransportError."""
        while not self._chunks:
            if self._complete:
                return b""
            self._raise_if_broken()
            await self._wait()
        return self._taken()

    def abort(self) -> None:
        """Close it at once: the server sees that nobody listens any more."""
        if self._transport is not None:
            self._transport.abort()

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self._closed:
            raise httpx.RemoteProtocolError("the connection was closed before the response's end")

    def _wait(self) -> "asyncio.Future[None]":
        # Not a coroutine: its frame would be kept for as long as a stream is silent.
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no common class.

    def data_received(self, data: bytes) -> None:
        if self._complete:
            self._keep_alive = False
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(httpx.RemoteProtocolError("the server wants another protocol"))
        except httptools.HttpParserError as error:
            self._fail(httpx.RemoteProtocolError(f"this is no HTTP: {error}"))
        if self._handle is not None and self._chunks:
            self._hand_over_now()
        if self._handle is None or self._complete or self._broken is not None:
            self._wake()

    def _taken(self) -> bytes:
        chunk = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        if self._paused and self._transport is not None and not self._closed:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    def _hand_over_now(self) -> None:
        try:
            if self._handle is not None and self._handle(self._taken()):
                self._handle = None
        except Exception as error:  # It is for who waits, not for the event loop.
            self._thrown, self._handle = error, None

    def eof_received(self) -> bool:
        # Without a length or chunks the body ends with the connection.
        if self._has_head and not self._bounded:
            self._complete = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        if exc is not None and not self._complete:
            self._broken = httpx.ReadError(str(exc))
        self._wake()

    def _fail(self, error: Exception) -> None:
        if not self._complete:
            self._broken = error
        self.abort()

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        self._head_size += len(name) + len(value)
        if self._head_size > _HEAD:
            self._fail(httpx.RemoteProtocolError("the response's head is too large"))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        if 100 <= self._parser.get_status_code() < 200:
            self._headers = []
            return
        names = {name.lower() for name, _ in self._headers}
        self._bounded = bool(names & {b"content-length", b"transfer-encoding"})
        self._keep_alive = self._parser.should_keep_alive()
        self._has_head = True

    def on_message_begin(self) -> None:
        if self._complete:  # Nobody has asked for another one.
            self._keep_alive = False

    def on_body(self, body: bytes) -> None:
        if self._complete:
            return
        self._chunks.append(body)
        self._size += len(body)
        if self._size > _FULL and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._has_head:
            self._complete = True


def _origin(url: httpx.URL) -> Origin:
    if url.scheme not in {"http", "https"} or not url.host or (url.port or 1) > 65535:
        raise httpx.UnsupportedProtocol(f"{url} is no http:// or https:// address")
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
