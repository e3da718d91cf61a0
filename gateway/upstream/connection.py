"""Connection: one HTTP/1.1 connection to an upstream, and the parser of what comes over it.

What a response may be is bounded in bytes as they come: its head with all that goes before it, and
whatever else is no body (extensions of chunks, trailers): one that never ends fills the memory.

A head that is odd but tells what it means (see `heads`) is read all the same: its answer is paid
for. The connection is then not used again, as where such an answer ends is a matter of opinion.
"""

import asyncio
import select
from collections.abc import Callable
from typing import cast

import httptools
import httpx

from gateway.upstream.heads import ends_in, tidied

_BARREN = 64 * 1024  # Bytes without any body among them: a head, trailers.
_FULL = 256 * 1024  # Bytes not yet taken, above which the socket is not read.
_LENIENT = {
    "lenient_headers": True,
    "lenient_chunked_length": True,
    "lenient_optional_cr_before_lf": True,
    "lenient_optional_crlf_after_chunk": True,
}


class Connection(asyncio.Protocol):
    """One connection: the parser's callbacks fill it, `exchange` and `read` empty it."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._begin()
        self._closed = False
        self._broken: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def _begin(self) -> None:
        self._parser = _parser(self)
        self._odd = False
        self._seen: list[bytes] = []  # All that came before the head was whole.
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._has_head = False
        self._complete = False
        self._keep_alive = False
        self._bounded = False
        self._chunks: list[bytes] = []
        self._size = 0  # Bytes read since somebody took some.
        self._paused = False
        self._handle: Callable[[bytes], bool] | None = None
        self._thrown: Exception | None = None

    @property
    def usable(self) -> bool:
        """Whether another request can go over it."""
        return self._complete and self._keep_alive and not self._closed and not self._chunks

    @property
    def framed(self) -> bool:
        """Whether HTTP tells the end of the body; else the connection's is it, as of one cut."""
        return self._bounded

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
        if self._head_size > _BARREN:
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
            raise httpx.ReadError("the connection was closed before the response's end")

    def _wait(self) -> "asyncio.Future[None]":
        # Not a coroutine: its frame would be kept for as long as a stream is silent.
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no common class.

    def data_received(self, data: bytes) -> None:
        """Parse what came; hand it over, or keep it and count it."""
        if self._complete:
            self.abort()  # Nobody has asked for more; who sends it may send it for ever.
            return
        self._feed(data)
        if self._handle is not None and self._chunks:
            self._hand_over_now()
        else:
            self._count(len(data))
        if self._handle is None or self._complete or self._broken is not None:
            self._wake()

    def _feed(self, data: bytes) -> None:
        if not self._has_head:
            self._seen.append(data)
        try:
            if self._odd and not self._has_head:
                data = self._tidied()
            if data:
                self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(httpx.RemoteProtocolError("the server wants another protocol"))
        except (httptools.HttpParserError, ValueError) as error:
            if self._has_head or self._odd:
                self._fail(httpx.RemoteProtocolError(f"this is no HTTP: {error}"))
            else:
                self._feed_leniently()

    def _feed_leniently(self) -> None:
        self._parser, self._odd = _parser(self, **_LENIENT), True
        self._headers, self._head_size = [], 0
        seen, self._seen = b"".join(self._seen), []
        self._feed(seen)

    def _tidied(self) -> bytes:
        if len(self._seen) > 1 and not ends_in(b"".join(self._seen[-4:])):
            return b""
        self._seen = [b"".join(self._seen)]
        return tidied(self._seen[0])

    def _count(self, size: int) -> None:
        self._size += size
        if not self._chunks:
            if self._size > _BARREN:
                self._fail(httpx.RemoteProtocolError("too much came that is no body"))
        elif self._size > _FULL and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _taken(self) -> bytes:
        chunk = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        if self._paused and self._transport is not None:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        return chunk

    def _hand_over_now(self) -> None:
        try:
            if self._handle is not None and self._handle(self._taken()):
                self._handle = None
        except Exception as error:  # It is for who waits, not for the event loop.
            self._thrown, self._handle = error, None

    def eof_received(self) -> bool:
        """Take the end of the connection for that of a body which has no other."""
        # Without a length or chunks the body ends with the connection.
        if self._has_head and not self._bounded:
            self._complete = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake who waits."""
        self._closed = True
        if exc is not None and not self._complete:
            self._broken = httpx.ReadError(str(exc))
        self._wake()

    def _fail(self, error: Exception) -> None:
        if not self._complete:
            self._broken = error
        self._keep_alive = False  # It is told of its close only later.
        self.abort()

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header of the head."""
        if self._has_head:
            return  # A trailer.
        self._headers.append((name, value))
        self._head_size += len(name) + len(value)
        if self._head_size > _BARREN:
            self._fail(httpx.RemoteProtocolError("the response's head is too large"))

    def on_headers_complete(self) -> None:
        """Tell how the body will end, and whether the connection is of use after it."""
        if self._complete:
            return
        if 100 <= self._parser.get_status_code() < 200:
            self._headers = []
            return
        if codings := fields(self._headers, b"transfer-encoding"):
            self._bounded = codings[-1] == "chunked"
        else:
            self._bounded = bool(fields(self._headers, b"content-length"))
        self._keep_alive = self._parser.should_keep_alive() and not self._odd
        self._has_head = True
        self._seen.clear()

    def on_message_begin(self) -> None:
        """Notice an answer that nobody has asked for."""
        if self._complete:  # Nobody has asked for another one.
            self._keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Keep some of the body."""
        if self._complete:
            return
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        """Note the end of the body."""
        if self._has_head:
            self._complete = True


def _parser(protocol: Connection, **lenient: bool) -> httptools.HttpResponseParser:
    parser = httptools.HttpResponseParser(protocol)
    parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True, **lenient)
    return parser


def fields(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    """Return the members of a header that is a list, in lower case, over all of its lines."""
    lines = [value for each, value in headers if each.lower() == name]
    members = b",".join(lines).decode("latin-1").lower().split(",")
    return [member for each in members if (member := each.strip())]
