"""Answers: what a response is: a stream, a refusal or something else; and the way to its bytes.

A stream that says so is taken at its word. Proxies lose, double and rewrite the type of others, and
they are paid for all the same: those are judged by their first bytes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import httpx

from gateway.config.presets import Preset
from gateway.errors import UpstreamFailure
from gateway.upstream.codings import compressions, unpacked, unreadable
from gateway.upstream.connection import fields
from gateway.upstream.failures import broken, no_stream, not_readable, refused
from gateway.upstream.protocols.table import protocol_of
from gateway.upstream.transport import Body, Reply

ERRORS = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)

_EMPTY = frozenset({204, 205})
_BODY_WAIT = 2.0  # Seconds for the body of a refusal.
_SNAPSHOT = 4 << 20  # Bytes of an answer as a whole.
_LOOKED_AT = 64 * 1024  # Bytes read of what is no stream, or not known to be one.


class Chunks:
    """The body of a stream, unpacked if need be; raises UpstreamFailure where it breaks."""

    __slots__ = ("_body", "_first", "_unpacked", "framed")

    def __init__(
        self, body: Body, unpacked: AsyncIterator[bytes] | None = None, first: bytes = b""
    ) -> None:
        self.framed = False  # Whether HTTP tells the body's end: without, a cut may look like one.
        self._body = body
        self._unpacked = unpacked  # One for all calls: it stands in the middle of a slice.
        self._first = first  # What was looked at.

    async def each(self, handle: Callable[[bytes], bool]) -> bool:
        """Hand over what comes until `handle` says stop; return whether it did."""
        while self._first or self._unpacked is not None:
            chunk = await anext(self, None)
            if chunk is None:
                return False
            if handle(chunk):
                return True
        try:
            return await self._body.each(handle)
        except ERRORS as error:
            raise broken(error) from error

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        try:
            return await anext(self._unpacked or self._body)
        except ERRORS as error:
            raise broken(error) from error


async def opened(reply: Reply, preset: Preset) -> Chunks:
    """Return the body of a stream; raises UpstreamFailure if it is none."""
    chunks = await _opened(reply, preset)
    chunks.framed = reply.body.framed
    return chunks


async def whole(reply: Reply) -> bytes:
    """Return a body that is no stream, or the beginning of a long one; raises UpstreamFailure."""
    codings = _codings(reply)
    plain = unpacked(reply.body, codings) if codings and not unreadable(codings) else None
    body = bytearray()
    async for chunk in Chunks(reply.body, plain):
        body += chunk
        if len(body) > _SNAPSHOT:
            break
    return bytes(body)


def _codings(reply: Reply) -> list[str]:
    names = (b"content-encoding", b"transfer-encoding")  # In the order in which they were put on.
    return compressions([each for name in names for each in fields(reply.headers, name)])


async def _opened(reply: Reply, preset: Preset) -> Chunks:
    codings = _codings(reply)
    strange = unreadable(codings)
    if not 200 <= reply.status < 300 or reply.status in _EMPTY:
        plain = unpacked(reply.body, codings) if codings and not strange else None
        body = b"" if strange else await _start_of(Chunks(reply.body, plain), preset)
        raise refused(reply.status, httpx.Headers(reply.headers), body, preset)
    if strange:
        raise not_readable(reply.status, strange, preset)
    kinds = [each.partition(";")[0].strip() for each in fields(reply.headers, b"content-type")]
    protocol = protocol_of(preset)
    is_one = len(set(kinds)) == 1 and protocol.types.issuperset(kinds)
    if is_one and not codings:
        return Chunks(reply.body)
    try:
        chunks, first = await _looked_at(reply, codings, protocol.starts)
    except ERRORS as error:
        raise broken(error) from error
    if is_one or first.startswith(protocol.starts):
        return chunks
    raise no_stream(reply.status, kinds, await _start_of(chunks, preset), preset)


async def _looked_at(
    reply: Reply, codings: list[str], starts: tuple[bytes, ...]
) -> tuple[Chunks, bytes]:
    """Return a body of which nothing is lost, and what it begins with."""
    raw = await _beginning(reply.body, starts)
    begun = _first_line(raw)
    if not codings or begun.startswith(starts):  # Unpacked on the way, as its head does not say.
        return Chunks(reply.body, None, raw), begun
    plain = unpacked(reply.body, codings, raw)
    first = await _beginning(plain, starts)
    return Chunks(reply.body, plain, first), _first_line(first)


async def _beginning(chunks: AsyncIterator[bytes], starts: tuple[bytes, ...]) -> bytes:
    """Return what comes until it is known what it is."""
    seen = b""
    async for chunk in chunks:
        seen += chunk
        begun = _first_line(seen)
        may_be = any(each.startswith(begun) for each in starts)
        if begun.startswith(starts) or not may_be or len(seen) > _LOOKED_AT:
            break
    return seen


def _first_line(body: bytes) -> bytes:
    return body.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")


async def _start_of(chunks: Chunks, preset: Preset) -> bytes:
    body = b""
    with suppress(UpstreamFailure, TimeoutError):  # What came is enough: the status tells it.
        async with asyncio.timeout(min(_BODY_WAIT, preset.first_byte / 2)):
            async for chunk in chunks:
                body += chunk
                if len(body) >= _LOOKED_AT:
                    break
    return body[:_LOOKED_AT]
